"""Operands for pointwise instructions, and exactly rounded results."""

from fractions import Fraction

import numpy as np
import torch

from simulator.instructions.arithmetic import find

COUNT = 600


DTYPE = {
    "u16": np.uint16, "s16": np.int16, "u32": np.uint32, "s32": np.int32, "u64": np.uint64,
    "s64": np.int64, "f32": np.float32, "f64": np.float64, "pred": np.bool_,
}  # fmt: skip


def operands(kind, count=COUNT, seed=0):
    """Random bits and edge cases, shuffled."""
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
    """Run the instruction on arrays (rows, 32)."""
    opcode, *modifiers = name.split(".")
    operation = find(opcode, tuple(modifiers))
    assert len(operation.sources) == len(values), name
    for value, kind in zip(values, operation.sources, strict=True):
        assert value.dtype == DTYPE[kind], (name, kind)
    result = operation.compute(*values)
    assert np.asarray(result).dtype == DTYPE[operation.result], name
    return np.broadcast_to(result, values[0].shape)


def run(name):
    """The operands and the result of an instruction on random operands."""
    opcode, *modifiers = name.split(".")
    values = [
        operands(kind, seed=k) for k, kind in enumerate(find(opcode, tuple(modifiers)).sources)
    ]
    return values, compute(name, *values)


def wrap(value, kind):
    bits = int(kind[1:])
    value %= 1 << bits
    return value - (1 << bits) if kind[0] == "s" and value >> (bits - 1) else value


def same(got, want):
    """Compare bit by bit, but take all NaNs as equal."""
    got, want = torch.tensor(np.array(got)), torch.as_tensor(want)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
    zeros = want == 0
    assert torch.equal(got[zeros].signbit(), want[zeros].signbit())


def nearest(exact, digits, smallest, to_integer=round):
    """Round a Fraction to a binary float with this number of digits, ties to even."""
    if exact == 0:
        return 0.0
    # 2 ** (magnitude - 1) < abs(exact) < 2 ** (magnitude + 1)
    magnitude = exact.numerator.bit_length() - exact.denominator.bit_length()
    magnitude += abs(exact) >= Fraction(2) ** magnitude
    exponent = max(magnitude - digits, smallest)
    return float(to_integer(exact / Fraction(2) ** exponent) * Fraction(2) ** exponent)


HALF = {"f16": torch.float16, "bf16": torch.bfloat16}


def half_operands(kind, seed=0):
    bits = np.random.default_rng(seed).integers(0, 1 << 16, COUNT).astype(np.uint16)
    return bits, torch.tensor(bits.view(np.int16)).view(HALF[kind])


def half_values(bits, kind):
    return torch.tensor(np.ascontiguousarray(bits).view(np.int16)).view(HALF[kind])


FORMATS = {"f16": (11, -24), "bf16": (8, -133)}


def with_ties(digits, count=1000):
    """float64 values near the midpoints of numbers with this number of digits."""
    random = np.random.default_rng(digits)
    x = 1 + np.ldexp(random.integers(0, 1 << digits - 1, count) + 0.5, 1 - digits)
    x = x + random.choice([0.0, 2.0**-30, -(2.0**-30), 2.0**-50, -(2.0**-50)], count)
    return x * np.ldexp(random.choice([1.0, -1.0], count), random.integers(-40, 15, count))
