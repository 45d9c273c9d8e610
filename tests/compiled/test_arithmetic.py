"""Pointwise instructions against Python's integers and fractions, libm, and torch."""

import ctypes
import ctypes.util
import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch

from simulator import Unsupported
from simulator.arithmetic import find

COUNT = 600
DTYPE = {
    "u16": np.uint16, "s16": np.int16, "u32": np.uint32, "s32": np.int32, "u64": np.uint64,
    "s64": np.int64, "f32": np.float32, "f64": np.float64, "pred": np.bool_,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


def operands(kind, count=COUNT, seed=0):
    """Random bits, and the values at the edges, shuffled."""
    random = np.random.default_rng(seed)
    dtype = np.dtype(DTYPE[kind])
    if kind == "pred":
        return random.integers(0, 2, count).astype(bool)
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        values = random.integers(info.min, info.max, count, dtype, endpoint=True)
        values[::2] >>= random.integers(0, 8 * dtype.itemsize, values[::2].size).astype(dtype)
        edges = [info.min, info.max, 0, 1, info.max - 1, info.min + 1, 255, 31, 32]
    else:
        info = np.finfo(dtype)
        values = (random.standard_normal(count) * 10.0 ** random.integers(-9, 9, count)).astype(
            dtype
        )
        edges = [
            0.0,
            -0.0,
            np.inf,
            -np.inf,
            np.nan,
            info.max,
            info.min,
            info.tiny,
            info.tiny / 4,
            1,
            -1,
        ]
    values[random.integers(0, count, 2 * len(edges))] = np.array(edges * 2).astype(dtype)
    return values


def compute(name, *values):
    """The instruction on arrays as it runs: (rows, 32)."""
    opcode, *modifiers = name.split(".")
    operation = find(opcode, tuple(modifiers))
    assert len(operation.sources) == len(values), name
    for value, kind in zip(values, operation.sources, strict=True):
        assert value.dtype == DTYPE[kind], (name, kind)
    result = operation.compute(*values)
    assert np.asarray(result).dtype == DTYPE[operation.result], name
    return np.broadcast_to(result, values[0].shape)


def run(name):
    """(operands, result) of an instruction on random operands."""
    opcode, *modifiers = name.split(".")
    values = [
        operands(kind, seed=k) for k, kind in enumerate(find(opcode, tuple(modifiers)).sources)
    ]
    return values, compute(name, *values)


def wrap(value, kind):
    bits = int(kind[1:])
    value %= 1 << bits
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def truncating(a, b):
    quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return quotient, a - quotient * b


INTEGER = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
    "div": lambda a, b: truncating(a, b)[0] if b else -1,
    "rem": lambda a, b: truncating(a, b)[1] if b else -1,
    "abs": abs,
    "neg": lambda a: -a,
    "mad.lo": lambda a, b, c: a * b + c,
}


@pytest.mark.parametrize("kind", ("u16", "s16", "u32", "s32", "u64", "s64"))
@pytest.mark.parametrize("name", INTEGER)
def test_integers(name, kind):
    if name in ("abs", "neg") and kind[0] == "u":
        pytest.skip("signed only")
    values, result = run(f"{name}.{kind}")
    for *arguments, got in zip(*values, result, strict=True):
        assert int(got) == wrap(INTEGER[name](*map(int, arguments)), kind), arguments


@pytest.mark.parametrize("kind", ("u16", "s16", "u32", "s32"))
@pytest.mark.parametrize("opcode", ("mul", "mad"))
def test_wide_products(opcode, kind):
    values, result = run(f"{opcode}.wide.{kind}")
    wide = f"{kind[0]}{2 * int(kind[1:])}"
    for a, b, *c, got in zip(*values, result, strict=True):
        assert int(got) == wrap(int(a) * int(b) + sum(map(int, c)), wide)


@pytest.mark.parametrize("kind", ("u16", "s16", "u32", "s32", "u64", "s64"))
def test_high_products(kind):
    (a, b), result = run(f"mul.hi.{kind}")
    for x, y, got in zip(a, b, result, strict=True):
        assert int(got) == wrap(int(x) * int(y) >> int(kind[1:]), kind)


@pytest.mark.parametrize("kind", ("b16", "b32", "b64"))
def test_bitwise(kind):
    for name, oracle in (
        ("and", lambda a, b: a & b),
        ("or", lambda a, b: a | b),
        ("xor", lambda a, b: a ^ b),
    ):
        (a, b), result = run(f"{name}.{kind}")
        assert [int(r) for r in result] == [
            oracle(int(x), int(y)) for x, y in zip(a, b, strict=True)
        ]
    (a,), result = run(f"not.{kind}")
    assert all(int(r) == ~int(x) % (1 << int(kind[1:])) for x, r in zip(a, result, strict=True))


@pytest.mark.parametrize("kind", ("b16", "u16", "s16", "b32", "u32", "s32", "b64", "u64", "s64"))
@pytest.mark.parametrize("opcode", ("shl", "shr"))
def test_shifts(opcode, kind):
    width = int(kind[1:])
    source = kind.replace("b", "u")
    a = operands(source)
    count = np.resize(np.array([0, 1, width - 1, width, width + 1, 255, 5], np.uint32), a.size)
    result = compute(f"{opcode}.{kind}", a, count)
    for x, n, got in zip(a.tolist(), count.tolist(), result, strict=True):
        exact = x << n if opcode == "shl" else x >> n
        assert int(got) == wrap(exact, source), (x, n)


def test_funnel_shift():
    low, high, count = (operands("u32", seed=k) for k in range(3))
    count[:50] = np.arange(50)
    for side in "lr":
        for mode in ("wrap", "clamp"):
            result = compute(f"shf.{side}.{mode}.b32", low, high, count)
            for a, b, n, got in zip(
                low.tolist(), high.tolist(), count.tolist(), result, strict=True
            ):
                n = n % 32 if mode == "wrap" else min(n, 32)
                both = b << 32 | a
                assert int(got) == ((both << n >> 32) if side == "l" else both >> n) % (1 << 32)


@pytest.mark.parametrize("table", (0x80, 0xFE, 0x96, 0xCA, 0xE8, 0x00, 0xFF, 0x1B))
def test_lop3(table):
    a, b, c = (operands("u32", 50, seed=k) for k in range(3))
    result = compute("lop3.b32", a, b, c, np.uint32(table))
    for x, y, z, got in zip(a.tolist(), b.tolist(), c.tolist(), result, strict=True):
        bits = (
            table >> (4 * (x >> k & 1) + 2 * (y >> k & 1) + (z >> k & 1)) & 1 for k in range(32)
        )
        assert int(got) == sum(bit << k for k, bit in enumerate(bits))


def test_permute():
    (a, b, selector), result = run("prmt.b32")
    for x, y, s, got in zip(a.tolist(), b.tolist(), selector.tolist(), result, strict=True):
        source = x.to_bytes(4, "little") + y.to_bytes(4, "little")
        want = []
        for k in range(4):
            byte = source[s >> (4 * k) & 7]
            want.append((255 if byte > 127 else 0) if s >> (4 * k) & 8 else byte)
        assert int(got) == int.from_bytes(want, "little")


@pytest.mark.parametrize("kind", ("u32", "s32", "u64", "s64"))
def test_bit_fields(kind):
    width = int(kind[1:])
    a = operands(kind)
    position = np.resize(np.array([0, 3, 31, 16, 40, 63], np.uint32), a.size)
    length = np.resize(np.array([4, 1, 8, 32, 0, 16, 64], np.uint32), a.size)
    result = compute(f"bfe.{kind}", a, position, length)
    for x, p, n, got in zip(a.tolist(), position.tolist(), length.tolist(), result, strict=True):
        bits = [x >> min(p + k, width - 1) & 1 for k in range(n)]
        inside = [bit if p + k < width else 0 for k, bit in enumerate(bits)]
        want = sum(bit << k for k, bit in enumerate(inside[:width]))
        if kind[0] == "s" and n:
            sign = x >> min(p + n - 1, width - 1) & 1
            kept = min(n, max(0, width - p))
            want = want % (1 << kept) - (sign << kept)
        assert int(got) == wrap(want, kind), (x, p, n)


@pytest.mark.parametrize("kind", ("b32", "b64"))
def test_insert_reverse_and_count(kind):
    width = int(kind[1:])
    register = f"u{width}"
    a, b = operands(register), operands(register, seed=1)
    position = np.resize(np.array([0, 3, 31, 16], np.uint32), a.size)
    length = np.resize(np.array([4, 1, 8, 32, 0], np.uint32), a.size)
    result = compute(f"bfi.{kind}", a, b, position, length)
    columns = (v.tolist() for v in (a, b, position, length))
    for x, y, p, n, got in zip(*columns, result, strict=True):
        mask = ((1 << n) - 1) << p
        assert int(got) == (y & ~mask | x << p & mask) % (1 << width)
    others = (compute(f"{opcode}.{kind}", a) for opcode in ("brev", "popc", "clz"))
    for x, reverse, population, zeros in zip(a.tolist(), *others, strict=True):
        text = format(x, f"0{width}b")
        assert int(reverse) == int(text[::-1], 2)
        assert int(population) == text.count("1")
        assert int(zeros) == width - x.bit_length()


def same(got, want):
    """Bit for bit, but that any NaN is as good as another."""
    got, want = torch.tensor(np.array(got)), torch.as_tensor(want)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    zeros = want == 0
    assert torch.equal(got[zeros].signbit(), want[zeros].signbit())


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


def nearest(exact, digits, smallest, to_integer=round):
    """A Fraction rounded to a binary float of so many digits, ties to even."""
    if exact == 0:
        return 0.0
    # 2 ** (magnitude - 1) < abs(exact) < 2 ** (magnitude + 1)
    magnitude = exact.numerator.bit_length() - exact.denominator.bit_length()
    magnitude += abs(exact) >= Fraction(2) ** magnitude
    exponent = max(magnitude - digits, smallest)
    return float(to_integer(exact / Fraction(2) ** exponent) * Fraction(2) ** exponent)


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


HALF = {"f16": torch.float16, "bf16": torch.bfloat16}


def half_operands(kind, seed=0):
    bits = np.random.default_rng(seed).integers(0, 1 << 16, COUNT).astype(np.uint16)
    return bits, torch.tensor(bits.view(np.int16)).view(HALF[kind])


def half_values(bits, kind):
    return torch.tensor(np.ascontiguousarray(bits).view(np.int16)).view(HALF[kind])


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


@pytest.mark.parametrize("kind", HALF)
def test_conversions_of_halves(kind):
    a = operands("f32", 4000)
    x = torch.tensor(a)
    want = x.to(HALF[kind])
    torch.testing.assert_close(
        half_values(compute(f"cvt.rn.{kind}.f32", a), kind), want, rtol=0, atol=0, equal_nan=True
    )
    bits, values = half_operands(kind)
    same(compute(f"cvt.f32.{kind}", bits), values.float())
    b = operands("f32", 4000, seed=1)
    pair = compute(f"cvt.rn.{kind}x2.f32", a, b)
    high = half_values((pair >> np.uint32(16)).astype(np.uint16), kind)
    torch.testing.assert_close(high, want, rtol=0, atol=0, equal_nan=True)
    toward_zero = half_values(compute(f"cvt.rz.{kind}.f32", a), kind).float()
    finite = x.isfinite() & (x.abs() < torch.finfo(HALF[kind]).max)
    assert (toward_zero.abs() <= x.abs())[finite].all()


@pytest.mark.parametrize("target", ("u16", "s16", "u32", "s32", "u64", "s64"))
@pytest.mark.parametrize("source", ("f32", "f64"))
def test_floats_to_integers(source, target):
    a = operands(source)
    rounders = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
    info = np.iinfo(DTYPE[target])
    for rounding, function in rounders.items():
        result = compute(f"cvt.{rounding}.{target}.{source}", a)
        for x, got in zip(a.tolist(), result, strict=True):
            if math.isnan(x):
                want = 0
            elif math.isinf(x):
                want = info.max if x > 0 else info.min
            else:
                want = min(max(function(x), info.min), info.max)
            assert int(got) == want, (x, rounding)


@pytest.mark.parametrize("source", ("u16", "s16", "u32", "s32", "u64", "s64"))
def test_integers_to_others(source):
    a = operands(source)
    for target in ("u16", "s16", "u32", "s32", "u64", "s64"):
        result = compute(f"cvt.{target}.{source}", a)
        assert [int(r) for r in result] == [wrap(x, target) for x in a.tolist()]
    for target, code in (("f32", "f"), ("f64", "d")):
        result = compute(f"cvt.rn.{target}.{source}", a)
        digits = 24 if code == "f" else 53
        want = [nearest(Fraction(x), digits, -1000) for x in a.tolist()]
        assert [struct.pack(code, r) for r in result] == [struct.pack(code, w) for w in want]


def test_tf32():
    a = operands("u32")
    a = a[np.isfinite(a.view(np.float32)) & (a >> np.uint32(23) & np.uint32(255) < 254)]
    for x, got in zip(a.tolist(), compute("cvt.rna.tf32.f32", a).tolist(), strict=True):
        assert got == (x + 0x1000 & 0xFFFFE000)
    assert not (compute("cvt.rn.tf32.f32", a) & np.uint32(0x1FFF)).any()


def test_comparisons():
    a, b = operands("f32"), operands("f32", seed=1)
    b[::5] = a[::5]
    ordered = {
        "eq": "__eq__",
        "lt": "__lt__",
        "le": "__le__",
        "gt": "__gt__",
        "ge": "__ge__",
        "ne": "__ne__",
    }
    for name, method in ordered.items():
        for unordered in ("", "u"):
            result = compute(f"setp.{name}{unordered}.f32", a, b)
            for x, y, got in zip(a.tolist(), b.tolist(), result.tolist(), strict=True):
                if math.isnan(x) or math.isnan(y):
                    assert got == bool(unordered)
                else:
                    assert got == getattr(x, method)(y)
    nans = np.isnan(a) | np.isnan(b)
    assert np.array_equal(compute("setp.nan.f32", a, b), nans)
    assert np.array_equal(compute("setp.num.f32", a, b), ~nans)
    also = operands("pred")
    for join, function in (("and", all), ("or", any)):
        result = compute(f"setp.lt.{join}.s32", a.view(np.int32), b.view(np.int32), also)
        for x, y, z, got in zip(a.view(np.int32), b.view(np.int32), also, result, strict=True):
            assert got == function((int(x) < int(y), bool(z)))
    x, y = operands("u32"), operands("u32", seed=1)
    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    assert compute("setp.lo.u32", x, y).tolist() == [p < q for p, q in pairs]
    choice = compute("selp.b32", x, y, also).tolist()
    assert choice == [p if z else q for (p, q), z in zip(pairs, also, strict=True)]


@pytest.mark.parametrize(
    "name",
    (
        "add.rz.f32", "add.cc.u32", "mul.hi.f32", "fma.rm.f32", "cvt.rn.e4m3x2.f32", "cvt.f32.s32",
        "prmt.f4e.b32", "setp.lt.nand.s32", "ex2.approx.e5m2", "min.xorsign.f32", "cvta.shared.u64",
    ),
)  # fmt: skip
def test_what_is_not_known(name):
    opcode, *modifiers = name.split(".")
    with pytest.raises(Unsupported):
        find(opcode, tuple(modifiers))


def test_other_families_are_not_pointwise():
    for opcode in ("ld", "st", "bra", "mov", "mma", "bar"):
        assert find(opcode, ("b32",)) is None


# All pointwise instructions of the compiled cells, from Triton 3.7.1 for sm_80 and sm_90.
EMITTED = """
abs.f32 abs.f64 abs.ftz.f32 add.bf16 add.f16 add.f32 add.f64 add.rn.f64 add.s32 add.s64 and.b32
and.b64 and.pred bfe.s32 bfe.u32 cvt.f32.bf16 cvt.f32.f16 cvt.rn.bf16.f32 cvt.rn.bf16x2.f32
cvt.rn.f16.f32 cvt.rn.f16x2.f32 cvt.s64.s32 cvt.u16.u32 cvt.u32.u64 cvt.u64.u32 div.full.f32
div.rn.f64 ex2.approx.f32 fma.rn.bf16 fma.rn.f32 fma.rn.f64 mad.lo.s32 mad.lo.s64 mad.wide.s32
mad.wide.u32 mul.f32 mul.f64 mul.lo.s32 mul.lo.s64 mul.wide.s32 mul.wide.u32 neg.f32 neg.f64
neg.s32 neg.s64 not.b32 not.pred or.b32 or.b64 selp.b32 selp.b64 selp.f32 selp.f64 setp.eq.b32
setp.ge.s32 setp.geu.f32 setp.gt.s64 setp.lt.bf16 setp.lt.f16 setp.lt.f32 setp.lt.f64 setp.lt.s32
setp.lt.s64 setp.lt.u32 setp.ne.b32 setp.ne.b64 setp.num.f64 shl.b32 shl.b64 shr.s32 shr.u32
shr.u64 sub.f32 sub.f64 sub.s32 sub.s64 xor.b32
"""
# One or more of every other opcode and of the ways to compute.
OTHERS = """
abs.s16 neg.bf16x2 sub.f16x2 add.sat.f32 mul.hi.u32 mul.hi.s64 mul.wide.u16 mad.hi.s64 mad.rn.f32
div.s32 rem.u64 min.s16 max.NaN.f32 min.bf16x2 xor.pred cnot.b16 shl.b16 shr.s64 shf.l.wrap.b32
shf.r.clamp.b32 lop3.b32 prmt.b32 bfe.s64 bfi.b32 bfi.b64 brev.b32 clz.b64 popc.b32 bfind.s32
bfind.shiftamt.u64 slct.f64.s32 slct.ftz.b32.f32 set.lt.u32.f32 set.gt.and.f32.s32
setp.hs.xor.u16 setp.ltu.ftz.or.f32 cvta.to.global.u64 fma.rn.sat.f16x2 fma.rn.ftz.f16
lg2.approx.f32 rcp.approx.ftz.f32 sqrt.rn.f64 rsqrt.approx.f64 sin.approx.f32 cos.approx.f32
tanh.approx.bf16x2 copysign.f64 testp.normal.f32 cvt.sat.u8.s32 cvt.s64.s8
cvt.rn.bf16.u64 cvt.rni.s8.f16
cvt.rzi.f32.f32 cvt.rz.f32.f64 cvt.rn.relu.f16x2.f32 cvt.rna.satfinite.tf32.f32 cvt.rn.bf16.f16
"""
KNOWN = (EMITTED + OTHERS).split()


@pytest.mark.parametrize("name", KNOWN)
def test_immediates_give_what_registers_give(name):
    opcode, *modifiers = name.split(".")
    operation = find(opcode, tuple(modifiers))
    values = [operands(kind, seed=k) for k, kind in enumerate(operation.sources)]
    # The table of lop3 is always an immediate.
    table = [np.uint32(0xCA)] if name == "lop3.b32" else []
    values = values[: len(values) - len(table)]
    result = operation.compute(*values, *table)
    for k in range(20):
        scalars = [value[k] for value in values]
        first = [scalars[0], *values[1:], *table]
        last = [*values[:-1], scalars[-1], *table]
        for got in (
            operation.compute(*scalars, *table),
            np.broadcast_to(operation.compute(*first), result.shape)[k],
            np.broadcast_to(operation.compute(*last), result.shape)[k],
        ):
            assert got.dtype == DTYPE[operation.result]
            assert np.array_equal(got, result[k], equal_nan=got.dtype.kind == "f")


@pytest.mark.parametrize("name", KNOWN)
def test_no_modifier_is_ignored(name):
    opcode, *modifiers = name.split(".")
    for wrong in ("bogus", modifiers[0], "rp", "cc"):
        with pytest.raises(Unsupported):
            find(opcode, (wrong, *modifiers))
    with pytest.raises(Unsupported):
        find(opcode, (*modifiers[:-1], "b128"))
    with pytest.raises(Unsupported):
        find(opcode, ())


# Of these opcodes, and either no PTX or not modelled.
UNKNOWN = """
add.ftz.f64 add.ftz.s32 add.sat.bf16 add.sat.s32 mul.s32 mul.wide.u64 mad.lo.f32 mad.f32
mad.rn.f16 div.f32 div.full.f64 div.approx.f16 rem.f32 min.rn.f32 neg.u32 and.u32 shl.f32
shf.l.b32 shf.wrap.b32 lop3.b64 bfe.u16 bfi.u32 clz.u32 bfind.b32 setp.f32 setp.lt.b32
setp.lo.s32 setp.nan.s32 setp.ltu.u32 setp.lo.f32 setp.eq.ftz.f64 set.lt.f32 set.lt.f16.f32
selp.f16 slct.f32.f64 ex2.f32 ex2.approx.f64 ex2.rn.f32 lg2.approx.f16 rcp.approx.f64 rcp.f32
rcp.approx.ftz.f64 sqrt.rz.f32 tanh.approx.f64 testp.zero.f32 fma.f32 fma.rz.f64 cvt.f32
cvt.f32.f64 cvt.rn.f64.f32 cvt.rni.f32.f64 cvt.s32.f32 cvt.rn.s32.f32 cvt.rn.u8.u32
cvt.f16.f32 cvt.rn.f32.f16 cvt.rz.f32.s32 cvt.ftz.s32.s64 cvt.rn.f16x2.f64 cvt.rn.relu.f32.f64
cvt.rna.f16.f32 cvt.tf32.f32 cvt.rn.ftz.tf32.f32 cvt.rn.f16x2.e4m3x2 cvt.pack.sat.s16.s32
cvt.rn.satfinite.e4m3x2.f32 cvta.to.shared.u64 cvta.u64 prmt.b32.f4e
"""


@pytest.mark.parametrize("name", UNKNOWN.split())
def test_what_is_no_instruction_or_not_modelled(name):
    opcode, *modifiers = name.split(".")
    with pytest.raises(Unsupported):
        find(opcode, tuple(modifiers))


@pytest.mark.parametrize("kind", ("u16", "s16", "u32", "s32", "u64", "s64"))
def test_high_multiply_add(kind):
    (a, b, c), result = run(f"mad.hi.{kind}")
    for x, y, z, got in zip(a.tolist(), b.tolist(), c.tolist(), result.tolist(), strict=True):
        assert got == wrap((x * y >> int(kind[1:])) + z, kind)


@pytest.mark.parametrize("kind", ("u32", "s32", "u64", "s64"))
def test_bit_fields_at_all_edges(kind):
    """As the manual puts it: bit by bit; only the low 8 bits of position and length count."""
    width = int(kind[1:])
    edges = [0, 1, width // 2, width - 1, width, width + 1, 63, 64, 255, 256, 257]
    pairs = np.array([(p, n) for p in edges for n in edges], np.uint32)
    a = operands(kind, len(pairs))
    result = compute(f"bfe.{kind}", a, *pairs.T)
    for x, (p, n), got in zip(a.tolist(), pairs.tolist(), result.tolist(), strict=True):
        p, n, last = p & 255, n & 255, width - 1
        sign = x >> min(p + n - 1, last) & 1 if kind[0] == "s" and n else 0
        bits = [x >> p + k & 1 if k < n and p + k <= last else sign for k in range(width)]
        assert got == wrap(sum(bit << k for k, bit in enumerate(bits)), kind), (x, p, n)
    if kind[0] == "s":
        return
    b = operands(kind, len(pairs), seed=1)
    result = compute(f"bfi.b{width}", a, b, *pairs.T)
    columns = (a.tolist(), b.tolist(), pairs.tolist(), result.tolist())
    for x, y, (p, n), got in zip(*columns, strict=True):
        p, n = p & 255, n & 255
        bits = [x >> k - p & 1 if p <= k < p + n else y >> k & 1 for k in range(width)]
        assert got == sum(bit << k for k, bit in enumerate(bits)), (x, y, p, n)


@pytest.mark.parametrize("kind", ("u32", "s32", "u64", "s64"))
def test_highest_bit(kind):
    width = int(kind[1:])
    a = operands(kind)
    a[:3] = 0, 1, ~a.dtype.type(0)
    places = compute(f"bfind.{kind}", a).tolist()
    shifts = compute(f"bfind.shiftamt.{kind}", a).tolist()
    for x, place, shift in zip(a.tolist(), places, shifts, strict=True):
        text = format(x % (1 << width), f"0{width}b")
        at = text.find("0" if x < 0 else "1")
        assert place == (width - 1 - at if at >= 0 else 0xFFFFFFFF)
        assert shift == (at if at >= 0 else 0xFFFFFFFF)


def test_logic_of_predicates_and_zero():
    a, b = operands("pred"), operands("pred", seed=1)
    for name, table in (("and", 0b1000), ("or", 0b1110), ("xor", 0b0110)):
        want = [bool(table >> 2 * x + y & 1) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        assert compute(f"{name}.pred", a, b).tolist() == want
    assert compute("not.pred", a).tolist() == [not x for x in a.tolist()]
    for kind in ("b16", "b32", "b64"):
        (x,), result = run(f"cnot.{kind}")
        assert result.tolist() == [int(not value) for value in x.tolist()]


# ---- floating point


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


@pytest.mark.parametrize("kind", ("f16", "bf16", "f64", "s16", "u16", "s64", "u64"))
def test_comparisons_of_other_types(kind):
    if kind in HALF:
        (a, x), (b, y) = half_operands(kind), half_operands(kind, 1)
        b[::5], y[::5] = a[::5], x[::5]
        x, y = x.tolist(), y.tolist()
    else:
        a, b = operands(kind), operands(kind, seed=1)
        b[::5] = a[::5]
        x, y = a.tolist(), b.tolist()
    names = {"lt": "lt", "le": "le", "gt": "gt", "ge": "ge", "eq": "eq", "ne": "ne"}
    if kind[0] == "u":
        names |= {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
    other = operands("pred")
    for name, method in names.items():
        pairs = list(zip(x, y, strict=True))
        want = [getattr(p, f"__{method}__")(q) if p == p and q == q else False for p, q in pairs]
        assert compute(f"setp.{name}.{kind}", a, b).tolist() == want, name
        joined = compute(f"setp.{name}.xor.{kind}", a, b, other).tolist()
        assert joined == [p != q for p, q in zip(want, other.tolist(), strict=True)]
        for result, true in (("u32", 0xFFFFFFFF), ("s32", -1), ("f32", 1.0)):
            got = compute(f"set.{name}.{result}.{kind}", a, b)
            assert got.tolist() == [true if w else 0 for w in want]


def test_select_by_sign():
    a, b = operands("u32"), operands("u32", seed=1)
    for kind, sign in (("s32", operands("s32", seed=2)), ("f32", operands("f32", seed=2))):
        got = compute(f"slct.b32.{kind}", a, b, sign)
        rows = zip(a.tolist(), b.tolist(), sign.tolist(), strict=True)
        assert got.tolist() == [x if s >= 0 else y for x, y, s in rows]
    tiny = np.array([-1e-40], np.float32)
    for ftz, want in (("", 2), ("ftz.", 1)):
        assert compute(f"slct.{ftz}b32.f32", np.uint32([1]), np.uint32([2]), tiny) == want


# ---- conversions


@pytest.mark.parametrize("source", ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"))
def test_narrow_and_saturating_conversions(source):
    """8-bit values come in 16 bits, of which only the lower 8 count."""
    register = source[0] + "16" if source[1:] == "8" else source
    a = operands(register)
    values = [wrap(x, source) for x in a.tolist()]
    for target in ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"):
        got = compute(f"cvt.{target}.{source}", a)
        assert got.tolist() == [wrap(x, target) for x in values], target
        low = -(1 << int(target[1:]) - 1) if target[0] == "s" else 0
        high = low + (1 << int(target[1:])) - 1
        got = compute(f"cvt.sat.{target}.{source}", a)
        assert got.tolist() == [min(max(x, low), high) for x in values], target


FORMATS = {"f16": (11, -24), "bf16": (8, -133)}


def with_ties(digits, count=1000):
    """float64 values near the middle of two numbers of so many digits."""
    random = np.random.default_rng(digits)
    x = 1 + np.ldexp(random.integers(0, 1 << digits - 1, count) + 0.5, 1 - digits)
    x = x + random.choice([0.0, 2.0**-30, -(2.0**-30), 2.0**-50, -(2.0**-50)], count)
    return x * np.ldexp(random.choice([1.0, -1.0], count), random.integers(-40, 15, count))


@pytest.mark.parametrize("kind", HALF)
def test_halves_are_rounded_once(kind):
    digits, smallest = FORMATS[kind]
    wide = with_ties(digits)
    for source, a in (("f64", wide), ("f32", wide.astype(np.float32))):
        for rounding, to_integer in (("rn", round), ("rz", math.trunc)):
            got = half_values(compute(f"cvt.{rounding}.{kind}.{source}", a), kind)
            want = [nearest(Fraction(x), digits, smallest, to_integer) for x in a.tolist()]
            assert got.tolist() == want, (source, rounding)
    tiny = compute(f"cvt.rn.{kind}.f64", np.array([1e-60, -1e-60, 0.0, -0.0]))
    assert tiny.tolist() == [0, 0x8000, 0, 0x8000]
    for source in ("s32", "u64", "s64"):
        a = operands(source, 2000)
        half_unit = a.dtype.type(1) << a.dtype.type(int(source[1:]) - 2 - digits)
        top = a.dtype.type(1) << a.dtype.type(int(source[1:]) - 2)
        tails = np.resize(np.array([0, 1, 2], a.dtype) - a.dtype.type(1), 500)
        a[:500] = top + (2 * np.arange(500).astype(a.dtype) % 128 + 1) * half_unit + tails
        got = half_values(compute(f"cvt.rn.{kind}.{source}", a), kind).tolist()
        largest = torch.finfo(HALF[kind]).max
        for x, value in zip(a.tolist(), got, strict=True):
            want = nearest(Fraction(x), digits, smallest)
            assert value == (want if abs(want) <= largest else math.copysign(math.inf, x)), x


@pytest.mark.parametrize("kind", HALF)
def test_special_values_of_halves(kind):
    largest = torch.finfo(HALF[kind]).max
    big = np.array([np.inf, -np.inf, 3.4e38, -3.4e38, -1.0, -0.0, 2.0], np.float32)
    inf = math.inf
    for modifiers, want in (
        ("rn", [inf, -inf, inf, -inf, -1, 0, 2]),
        ("rz", [inf, -inf, largest, -largest, -1, 0, 2]),
        ("rn.relu", [inf, 0, inf, 0, 0, 0, 2]),
        ("rn.satfinite", [largest, -largest, largest, -largest, -1, 0, 2]),
        ("rn.relu.satfinite", [largest, 0, largest, 0, 0, 0, 2]),
    ):
        got = half_values(compute(f"cvt.{modifiers}.{kind}.f32", big), kind).tolist()
        if kind == "bf16" and modifiers in ("rn", "rn.relu"):
            got[2:4] = want[2:4]  # 3.4e38 is above the largest number, but not by half a unit
        if kind == "bf16" and modifiers == "rz":
            got[2:4] = want[2:4]
        assert got == want, modifiers
        payloads = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
        assert (compute(f"cvt.{modifiers}.{kind}.f32", payloads) == 0x7FFF).all(), modifiers
    a, b = operands("f32"), operands("f32", seed=1)
    for rounding in ("rn", "rz"):
        pair = compute(f"cvt.{rounding}.{kind}x2.f32", a, b)
        low = compute(f"cvt.{rounding}.{kind}.f32", b)
        high = compute(f"cvt.{rounding}.{kind}.f32", a)
        assert np.array_equal(pair, high.astype(np.uint32) * 65536 + low)


def test_between_floats():
    a = operands("f64", 2000)
    a[:500] = with_ties(24, 500)
    a[500:900] = np.ldexp(a[500:900], -140)
    x = torch.tensor(a)
    same(compute("cvt.rn.f32.f64", a), x.float())
    same(compute("cvt.f64.f32", a.astype(np.float32)), x.float().double())
    got = compute("cvt.rz.f32.f64", a)
    for value, result in zip(a.tolist(), got.tolist(), strict=True):
        if not math.isfinite(value):
            assert result == value or math.isnan(value)
        else:
            want = nearest(Fraction(value), 24, -149, math.trunc)
            assert result == max(min(want, 2.0**128 - 2.0**104), -(2.0**128 - 2.0**104))
    for kind in ("f32", "f64"):
        x = torch.tensor(operands(kind))
        for name, function in (
            ("rni", torch.round), ("rzi", torch.trunc), ("rmi", torch.floor), ("rpi", torch.ceil),
        ):  # fmt: skip
            same(compute(f"cvt.{name}.{kind}.{kind}", x.numpy()), function(x))
        same(compute(f"cvt.sat.{kind}.{kind}", x.numpy()), x.nan_to_num(0, 1, 0).clamp(0, 1) + 0.0)
    tiny = np.array([1e-40, -1e-40], np.float32)
    assert compute("cvt.ftz.f64.f32", tiny).tolist() == [0.0, 0.0]
    assert compute("cvt.rn.ftz.f32.f64", np.array([1e-40, -1e-40])).tolist() == [0.0, 0.0]
    bits = np.arange(1 << 16).astype(np.uint16)
    for kind in HALF:
        same(compute(f"cvt.f64.{kind}", bits), half_values(bits, kind).double())
        other = "bf16" if kind == "f16" else "f16"
        got = half_values(compute(f"cvt.rn.{other}.{kind}", bits), other)
        want = half_values(bits, kind).to(HALF[other])
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("target", ("u8", "s8", "s32", "u64"))
def test_halves_and_bytes_from_floats(target):
    width, signed = int(target[1:]), target[0] == "s"
    low = -(1 << width - 1) if signed else 0
    high = low + (1 << width) - 1
    bits, values = half_operands("f16")
    sources = [("f16", bits, values.tolist())]
    bits, values = half_operands("bf16")
    sources.append(("bf16", bits, values.tolist()))
    a = operands("f32")
    sources.append(("f32", a, a.tolist()))
    for source, a, numbers in sources:
        got = compute(f"cvt.rni.{target}.{source}", a)
        for x, result in zip(numbers, got.tolist(), strict=True):
            x = 0 if math.isnan(x) else min(max(x, -1e30), 1e30)
            assert result == min(max(round(x), low), high), (source, x)


def test_tf32_roundings():
    a = operands("f32", 2000)
    a[:1000] = with_ties(11)
    bits = a.view(np.uint32)

    def away(x):
        return math.floor(abs(x) + Fraction(1, 2)) * (1 if x > 0 else -1)

    for rounding, to_integer in (("rn", round), ("rna", away), ("rz", math.trunc)):
        got = compute(f"cvt.{rounding}.tf32.f32", bits)
        assert not (got[~np.isnan(a)] & np.uint32(0x1FFF)).any()
        for x, result in zip(a.tolist(), got.view(np.float32).tolist(), strict=True):
            if math.isfinite(x):
                want = nearest(Fraction(x), 11, -136, to_integer)
                assert result == (want if abs(want) < 2.0**128 else math.copysign(math.inf, x))
            else:
                assert result == x or math.isnan(x) == math.isnan(result)
    nan = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32)
    assert (compute("cvt.rna.tf32.f32", nan) == 0x7FFFFFFF).all()
