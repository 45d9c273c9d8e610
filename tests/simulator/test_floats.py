"""Pointwise instructions on floats, against fractions, libm and torch."""

import ctypes
import ctypes.util
import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.support.instruction_operands import (
    COUNT,
    DTYPE,
    HALF,
    compute,
    half_operands,
    half_values,
    nearest,
    operands,
    run,
    same,
)


@pytest.mark.parametrize("kind", ("f32", "f64"))
def test_floats(kind):
    a, b = (torch.tensor(operands(kind, seed=k)) for k in range(2))
    x, y = a.numpy(), b.numpy()
    same(compute(f"add.rn.{kind}", x, y), torch.add(a, b))
    same(compute(f"sub.{kind}", x, y), torch.sub(a, b))
    same(compute(f"mul.{kind}", x, y), torch.mul(a, b))
    same(compute(f"div.rn.{kind}", x, y), torch.div(a, b))
    same(compute(f"neg.{kind}", x), torch.neg(a))
    same(compute(f"abs.{kind}", x), torch.abs(a))
    same(compute(f"min.{kind}", x, y) + 0.0, torch.fmin(a, b) + 0.0)
    same(compute(f"max.{kind}", x, y) + 0.0, torch.fmax(a, b) + 0.0)
    # torch takes its square roots from a library that rounds some of them wrongly.
    roots = [math.sqrt(value) if value >= 0 else math.nan for value in x.tolist()]
    same(compute(f"sqrt.rn.{kind}", x), torch.tensor(roots, dtype=a.dtype))
    same(compute(f"copysign.{kind}", x, y), torch.copysign(b, a))


def test_min_and_max_that_keep_nan():
    a, b = (torch.tensor(operands("f32", seed=k)) for k in range(2))
    same(compute("max.NaN.f32", a.numpy(), b.numpy()) + 0.0, torch.maximum(a, b) + 0.0)
    same(compute("min.NaN.f32", a.numpy(), b.numpy()) + 0.0, torch.minimum(a, b) + 0.0)


@pytest.mark.parametrize(
    ("name", "function"),
    (
        ("ex2.approx", torch.exp2), ("lg2.approx", torch.log2), ("sin.approx", torch.sin),
        ("cos.approx", torch.cos), ("tanh.approx", torch.tanh), ("rcp.approx", torch.reciprocal),
        ("rsqrt.approx", torch.rsqrt), ("sqrt.approx", torch.sqrt),
    ),
)  # fmt: skip
def test_functions(name, function):
    a = operands("f32")
    a = a[np.isfinite(a) & (np.abs(a) < 1e4) | ~np.isfinite(a)]
    exact = function(torch.tensor(a).double())
    got = torch.tensor(compute(f"{name}.f32", a).copy()).double()
    finite = exact.isfinite() & (exact.abs() < torch.finfo(torch.float32).max)
    finite &= exact.abs() > torch.finfo(torch.float32).tiny
    torch.testing.assert_close(got[finite], exact[finite], rtol=3e-7, atol=0)
    assert torch.equal(got.isnan(), exact.isnan())


def test_subnormals_are_flushed():
    tiny = np.array([1e-40, -1e-40, 1.0, -0.0], np.float32)
    assert np.signbit(compute("add.ftz.f32", tiny, 0 * tiny)).tolist() == [False, True, False, True]
    assert compute("mul.ftz.f32", tiny, np.ones(4, np.float32)).tolist() == [0.0, -0.0, 1.0, -0.0]
    assert compute("abs.ftz.f32", tiny).tolist() == [0.0, 0.0, 1.0, 0.0]
    assert compute("add.sat.f32", tiny, tiny).tolist() == [tiny[0] + tiny[0], 0.0, 1.0, 0.0]


@pytest.mark.parametrize(("kind", "digits", "smallest"), (("f32", 24, -149), ("f64", 53, -1074)))
def test_fma_is_rounded_once(kind, digits, smallest):
    random = np.random.default_rng(0)
    dtype = DTYPE[kind]
    a, b = random.standard_normal((2, COUNT)).astype(dtype)
    c = -a * b * random.choice([1, 1 + 2.0**-20, 3, 2.0**-28], COUNT).astype(dtype)
    # Products that make ties, and tails that decide them.
    unit = dtype(2.0 ** (1 - digits))
    a[:99], b[:99] = 1 + unit * random.integers(1, 99, 99), 1 + unit * random.integers(1, 99, 99)
    c[:99] = unit * unit * random.integers(-9, 9, 99) + dtype(2) * random.integers(0, 2, 99)
    got = compute(f"fma.rn.{kind}", a, b, c.astype(dtype))
    for x, y, z, result in zip(a, b, c, got, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        assert float(result) == nearest(exact, digits, smallest), (x, y, z)
    special = np.array([np.inf, np.nan, 0, 1], dtype)
    result = compute(f"fma.rn.{kind}", special, np.zeros(4, dtype), np.ones(4, dtype))
    assert np.isnan(result).tolist() == [True, True, False, False]
    assert np.isinf(compute(f"fma.rn.{kind}", special[:1], special[3:], special[3:]))[0]


@pytest.mark.parametrize("kind", HALF)
def test_halves(kind):
    (a, x), (b, y), (c, z) = (half_operands(kind, seed) for seed in range(3))
    for name, want in (("add", x + y), ("sub", x - y), ("mul", x * y)):
        torch.testing.assert_close(
            half_values(compute(f"{name}.{kind}", a, b), kind), want, rtol=0, atol=0, equal_nan=True
        )
    got = half_values(compute(f"fma.rn.{kind}", a, b, c), kind)
    for p, q, r, value in zip(x.tolist(), y.tolist(), z.tolist(), got.tolist(), strict=True):
        if all(map(math.isfinite, (p, q, r))):
            exact = Fraction(p) * Fraction(q) + Fraction(r)
            digits, smallest = (11, -24) if kind == "f16" else (8, -133)
            want = nearest(exact, digits, smallest)
            if abs(want) <= torch.finfo(HALF[kind]).max and exact != 0:
                assert value == want, (p, q, r)
    pairs = [
        p.astype(np.uint32) | q.astype(np.uint32) << np.uint32(16) for p, q in ((a, b), (b, a))
    ]
    both = compute(f"add.{kind}x2", *pairs)
    one = compute(f"add.{kind}", a, b)
    assert np.array_equal(both & np.uint32(0xFFFF), one)
    assert np.array_equal(both >> np.uint32(16), compute(f"add.{kind}", b, a))


@pytest.mark.parametrize("kind", ("f32", "f64", "f16", "bf16"))
def test_zeros_of_min_and_max(kind):
    zeros = {
        "f32": np.array([0.0, -0.0], np.float32),
        "f64": np.array([0.0, -0.0]),
    }.get(kind, np.array([0, 0x8000], np.uint16))
    a, b = np.repeat(zeros, 2), np.tile(zeros, 2)
    for nan in ("", ".NaN"):
        low, high = compute(f"min{nan}.{kind}", a, b), compute(f"max{nan}.{kind}", a, b)
        if kind in HALF:
            low, high = low == 0x8000, high == 0x8000
        else:
            low, high = np.signbit(low), np.signbit(high)
        assert low.tolist() == [False, True, True, True]
        assert high.tolist() == [False, False, False, True]


@pytest.mark.parametrize("kind", HALF)
def test_other_functions_of_halves(kind):
    (a, x), (b, y), (c, _) = (half_operands(kind, seed) for seed in range(3))

    def packed(high, low):
        return high.astype(np.uint32) << np.uint32(16) | low

    def numbers(function):
        """torch's own fmin takes a signaling NaN for a number."""
        chosen = [
            q if math.isnan(p) else p if math.isnan(q) else function(p, q)
            for p, q in zip(x.tolist(), y.tolist(), strict=True)
        ]
        return torch.tensor(chosen, dtype=HALF[kind])

    for name, want in (
        ("neg", -x), ("abs", x.abs()), ("min", numbers(min)), ("max", numbers(max)),
        ("min.NaN", torch.minimum(x, y)), ("max.NaN", torch.maximum(x, y)),
        ("ex2.approx", x.double().exp2().to(HALF[kind])),
        ("tanh.approx", x.double().tanh().to(HALF[kind])),
    ):  # fmt: skip
        values = [a, b] if name[:3] in ("min", "max") else [a]
        got = compute(f"{name}.{kind}", *values)
        torch.testing.assert_close(half_values(got, kind), want, rtol=0, atol=0, equal_nan=True)
        pairs = compute(f"{name}.{kind}x2", *(packed(v, v[::-1]) for v in values))
        assert np.array_equal(pairs, packed(got, got[::-1])), name
    for name, values in (("sub", (a, b)), ("mul", (a, b)), ("fma.rn", (a, b, c))):
        got = compute(f"{name}.{kind}", *values)
        pairs = compute(f"{name}.{kind}x2", *(packed(v, v[::-1]) for v in values))
        assert np.array_equal(pairs, packed(got, got[::-1])), name


def test_a_signaling_nan_is_no_number():
    nans = np.array([0x7F800001, 0xFF800001, 0x7FC00000] * 11, np.uint32).view(np.float32)
    ones = np.ones_like(nans)
    for name in ("min", "max"):
        assert (compute(f"{name}.f32", nans, ones) == 1).all()
        assert (compute(f"{name}.f32", ones, nans) == 1).all()
        assert np.isnan(compute(f"{name}.NaN.f32", ones, nans)).all()


@pytest.mark.parametrize(("kind", "digits"), (("f16", 11), ("bf16", 8)))
def test_fma_of_halves_with_a_distant_tail(kind, digits):
    """A product that is a tie, and a summand so small that only its sign counts."""

    def bits(values):
        return torch.tensor(values, dtype=HALF[kind]).view(torch.int16).numpy().view(np.uint16)

    unit = 2.0 ** (1 - digits)
    tail = 2.0**-24 if kind == "f16" else 2.0**-120
    c = [tail, 0.0, -tail]
    # (1 + u) · (1 + 2^k u) with k such that the last bit of the product is half a unit.
    ties = [(1 + unit, 1.5), (1 + 3 * unit, 1.5), (1 + 3 * unit, 0.75)]
    for a, b in ties:
        for scale in (1.0, -1.0):
            got = compute(f"fma.rn.{kind}", bits([a] * 3), bits([scale * b] * 3), bits(c))
            want = [
                nearest(Fraction(a) * Fraction(scale * b) + Fraction(z), digits, -133) for z in c
            ]
            assert half_values(got, kind).tolist() == want, (a, b)


@pytest.mark.parametrize("kind", ("f32", "f64"))
def test_fma_against_libm(kind):
    """Over the whole range: subnormal and overflowing products and sums, cancellation."""
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    function, number = (libm.fmaf, ctypes.c_float) if kind == "f32" else (libm.fma, ctypes.c_double)
    function.argtypes, function.restype = [number] * 3, number
    random = np.random.default_rng(5)
    dtype = np.dtype(DTYPE[kind])
    info, count = np.finfo(dtype), 4000
    low, high = info.minexp - info.nmant, info.maxexp

    def numbers(exponents):
        # Few bits make ties, many bits make tails.
        mantissas = np.where(
            random.random(count) < 0.5, random.random(count), random.integers(1, 16, count) / 16
        )
        signs = random.choice([-1.0, 1.0], count)
        return np.ldexp((signs * (1 + mantissas)).astype(dtype), exponents).astype(dtype)

    of_a = random.integers(low, high, count)
    of_product = np.where(
        random.random(count) < 0.5,
        random.integers(low - 10, low + 60, count),
        random.integers(low, high + 1, count),
    )
    a, b = numbers(of_a), numbers(np.clip(of_product - of_a, low, high - 1))
    gap = random.integers(-2 * info.nmant - 4, info.nmant + 4, count)
    c = numbers(np.clip(of_product - gap, low, high - 1))
    c[::5] = -(a * b)[::5]
    specials = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, info.max, info.tiny], dtype)
    grid = [x.ravel() for x in np.meshgrid(specials, specials, specials)]
    a, b, c = (np.concatenate(pair) for pair in zip((a, b, c), grid, strict=True))
    got = compute(f"fma.rn.{kind}", a, b, c)
    want = [function(*xyz) for xyz in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    same(got, torch.tensor(want, dtype=torch.float32 if kind == "f32" else torch.float64))
    same(compute(f"mad.rn.{kind}", a, b, c), torch.tensor(got))


def test_fma_of_float64_with_a_tail_beside_a_tie():
    """The product is just below half a unit of c: by float64 arithmetic alone it seems a tie."""
    unit = 2.0**-52
    a, b, c = np.array([1 + unit]), np.array([unit / 2 * (1 - unit)]), np.array([1 + unit])
    assert Fraction(a[0]) * Fraction(b[0]) < Fraction(unit) / 2
    assert compute("fma.rn.f64", a, b, c)[0] == c[0]
    assert compute("fma.rn.f64", -a, b, -c)[0] == -c[0]


def test_fma_with_a_subnormal_tie():
    """Sums that float64 would round to the middle of two subnormal float32 numbers."""
    unit = 2.0**-149
    a = np.full(4, 2.0**-75 * (1 + 2.0**-20), np.float32)
    b = np.array([1, -1, 1, -1], np.float32) * np.float32(2.0**-75 * (1 - 2.0**-20))
    # The product is half a unit, less 2^-190.
    odd, even = 2.0**-127 + unit, 2.0**-127
    c = np.array([odd, odd, -even, -odd], np.float32)
    want = [odd, odd, -even, -odd]
    got = compute("fma.rn.f32", a, b, c).tolist()
    columns = (values.tolist() for values in (a, b, c))
    exact = [Fraction(x) * Fraction(y) + Fraction(z) for x, y, z in zip(*columns, strict=True)]
    assert got == [nearest(x, 24, -149) for x in exact] == want


@pytest.mark.parametrize("kind", ("f32", "f16", "bf16"))
def test_all_subnormals_are_flushed(kind):
    """.ftz: of sources and results alike, keeping the sign."""
    random = np.random.default_rng(1)
    if kind == "f32":
        a = np.concatenate(
            [operands("f32"), random.integers(0, 1 << 23, 99).astype(np.uint32).view(np.float32)]
        )
        a = np.concatenate([a, -a])
        tiny, to_values = 2.0**-126, torch.tensor
    else:
        a, tiny = half_operands(kind)[0], 2.0**-14 if kind == "f16" else 2.0**-126
        a[:200] &= 0x83FF if kind == "f16" else 0x807F
        to_values = lambda bits: half_values(bits, kind)  # noqa: E731

    def flush(x):
        return torch.where(x.abs() < tiny, torch.zeros_like(x).copysign(x), x)

    x = flush(to_values(a))
    for name, want in (("add", x + x), ("mul", x * x), ("neg", -x), ("abs", x.abs())):
        values = (a,) if name in ("neg", "abs") else (a, a)
        got = to_values(np.array(compute(f"{name}.ftz.{kind}", *values)))
        torch.testing.assert_close(got, flush(want), rtol=0, atol=0, equal_nan=True)
        assert torch.equal(got[got == 0].signbit(), flush(want)[got == 0].signbit())
    if kind != "bf16":
        flushed = compute(f"setp.eq.ftz.{kind}", a, np.zeros_like(a))
        assert torch.equal(torch.tensor(np.array(flushed)), x == 0)
    unflushed = compute(f"setp.eq.{kind}", a, np.zeros_like(a))
    assert torch.equal(torch.tensor(np.array(unflushed)), to_values(a) == 0)


def test_properties_of_floats():
    for kind, tiny in (("f32", np.float32(1e-40)), ("f64", np.float64(1e-310))):
        inf, nan = tiny.dtype.type(np.inf), tiny.dtype.type(np.nan)
        a = np.array([0.0, -0.0, 1.0, -tiny, inf, -inf, nan], tiny.dtype)
        for name, want in (
            ("finite", "1111000"), ("infinite", "0000110"), ("number", "1111110"),
            ("notanumber", "0000001"), ("normal", "1110000"), ("subnormal", "0001000"),
        ):  # fmt: skip
            assert compute(f"testp.{name}.{kind}", a).tolist() == [c == "1" for c in want], name


@pytest.mark.parametrize("rounding", ("rz", "rm", "rp"))
@pytest.mark.parametrize("name", ("add", "sub", "mul", "fma"))
def test_directed_roundings(name, rounding):
    """Against fractions: the result is on the right side of the exact one, and nearest there."""
    values, got = run(f"{name}.{rounding}.f32")
    exactly = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "fma": lambda a, b, c: a * b + c,
    }[name]
    checked = 0
    for *row, result in zip(*(v.ravel().tolist() for v in values), got.ravel(), strict=True):
        if not np.isfinite(row).all():
            continue
        exact = exactly(*map(Fraction, row))
        down = rounding == "rm" or (rounding == "rz" and exact > 0)
        low, high = (result, np.nextafter(result, np.float32(np.inf)))
        if not down:
            low, high = np.nextafter(result, np.float32(-np.inf)), result
        low, high = float(low), float(high)  # compared exactly
        inside = low <= exact < high if down else low < exact <= high
        assert inside, (row, result)
        checked += 1
    assert checked > 400


def test_upper_halves_of_float64():
    x = operands("f64")
    x = np.where(np.abs(x) < 1e-300, 1.0, x)
    for name, function in (("rcp", lambda v: 1 / v), ("rsqrt", lambda v: v**-0.5)):
        got = compute(f"{name}.approx.ftz.f64", np.abs(x))
        np.testing.assert_allclose(got, function(np.abs(x)), rtol=2.0**-19, atol=1e-307)
        assert not (got[np.isfinite(got)].view(np.uint64) & np.uint64(0xFFFFFFFF)).any()
