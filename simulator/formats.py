"""Number formats that numpy lacks, as bits: bfloat16, tf32; and sums and products rounded once."""

from __future__ import annotations

import numpy as np

_F32_TIE = np.uint64(1 << 28)  # the bits of a float64 beyond a float32's, at half a unit
_F32_TAIL = np.uint64((1 << 29) - 1)


def from_bf16(bits) -> np.ndarray:
    """The float32 values of bfloat16 bits (uint16)."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values) -> np.ndarray:
    """The bits of the nearest bfloat16 numbers, ties to even, of float32 values."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    to_even = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.where(np.isnan(values), np.uint32(0x7FFF), (bits + to_even) >> np.uint32(16)).astype(
        np.uint16
    )


def from_f16(bits) -> np.ndarray:
    """The float32 values of float16 bits (uint16)."""
    return np.asarray(bits, np.uint16).view(np.float16).astype(np.float32)


def to_f16(values) -> np.ndarray:
    """The bits of the nearest float16 numbers, ties to even."""
    return np.asarray(values).astype(np.float16).view(np.uint16)


def truncated_f16(values) -> np.ndarray:
    """The bits of the next float16 numbers toward zero."""
    values = np.asarray(values, np.float32)
    bits = to_f16(values)
    beyond = np.abs(from_f16(bits)) > np.abs(values)
    return np.where(beyond, bits - np.uint16(1), bits)


def tf32_of(bits) -> np.ndarray:
    """What a tensor core sees of float32 bits: 10 bits of the fraction."""
    return (np.asarray(bits, np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def to_tf32(bits, ties_away: bool) -> np.ndarray:
    """The nearest float32 bits whose last 13 are zeros."""
    half = (
        np.uint32(0x1000)
        if ties_away
        else np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    )
    return (bits + half) & np.uint32(0xFFFFE000)


def flushed(values) -> np.ndarray:
    """float32 values with zeros, of the same sign, for subnormal ones."""
    tiny = np.abs(values) < np.finfo(np.float32).tiny
    return np.where(tiny, np.copysign(np.float32(0), values), values)


def two_sum(a, b):
    """a + b as (sum, its rounding error), exactly (Knuth)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


def two_product(a, b):
    """a · b as (product, its rounding error), exactly where nothing overflows (Dekker)."""
    product = a * b
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _split(x):
    scaled = x * 134217729.0  # 2²⁷ + 1
    high = scaled - (scaled - x)
    return high, x - high


def to_odd(total, error):
    """A rounded sum moved to the neighbour with an odd last bit where it is not exact."""
    bits = np.asarray(total).view(np.int64)
    inexact = (error != 0) & (bits & 1 == 0) & np.isfinite(total)
    # Toward the exact value, which may have a smaller or a larger magnitude.
    step = np.where((error > 0) == (total >= 0), 1, -1)
    return np.where(inexact, (bits + step).view(np.float64), total)


def fma32(a, b, c) -> np.ndarray:
    """a · b + c of float32 values, rounded once."""
    product = np.multiply(a, b, dtype=np.float64)  # exact: 48 bits
    total = product + c
    # Rounded again to float32 this is wrong only where the first rounding made a tie.
    ties = np.asarray(total).view(np.uint64) & _F32_TAIL == _F32_TIE
    if ties.any():
        _, error = two_sum(product, np.asarray(c, np.float64))
        total = np.where(ties, to_odd(total, error), total)
    return total.astype(np.float32)


def fma64(a, b, c) -> np.ndarray:
    """a · b + c of float64 values, rounded once (Boldo and Melquiond, 2008).

    Where a part would overflow, or underflow, it is the plain a · b + c.
    """
    a, b, c = (np.asarray(x, np.float64) for x in (a, b, c))
    plain = a * b + c
    high, low = two_product(a, b)
    tail_high, tail_low = two_sum(c, low)
    sum_high, sum_low = two_sum(high, tail_high)
    exact = sum_high + to_odd(*two_sum(tail_low, sum_low))
    safe = np.isfinite(exact) & (np.abs(high) > 1e-290) & (np.maximum(np.abs(a), np.abs(b)) < 1e290)
    return np.where(safe, exact, plain)
