"""Pointwise instructions on integers and bits, against Python's integers."""

import numpy as np
import pytest

from tests.support.instruction_operands import compute, operands, run, wrap


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


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in INTEGER
        for kind in ("u16", "s16", "u32", "s32", "u64", "s64")
        if kind[0] == "s" or name not in ("abs", "neg")
    ],
)
def test_integers(name, kind):
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
