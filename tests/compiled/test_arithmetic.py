"""Pointwise instructions against Python's integers and fractions, and against torch."""

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
        values[count // 2 :] >>= random.integers(0, 8 * dtype.itemsize, count // 2).astype(dtype)
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


def nearest(exact, digits, smallest):
    """A Fraction rounded to a binary float of so many digits, ties to even."""
    if exact == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(exact))) + 1 - digits, smallest)
    scaled = exact / Fraction(2) ** exponent
    if abs(scaled) >= 2**digits:
        exponent, scaled = exponent + 1, scaled / 2
    return float(round(scaled) * Fraction(2) ** exponent)


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
