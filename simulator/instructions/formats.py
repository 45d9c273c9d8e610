"""Number formats that numpy lacks: bfloat16 and tf32, as bits; sums and products rounded once.

Conversions return the canonical NaN of the target, as on a GPU. Elsewhere NaN has the payload that
numpy gives it: Triton's kernels do not look at payloads.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

_NAN16, _NAN32 = np.uint16(0x7FFF), np.uint32(0x7FFFFFFF)
_TINY = np.finfo(np.float32).tiny  # the smallest normal number
_LARGEST = np.finfo(np.float32).max
_HALF_UNIT = np.uint64(1 << 28)  # of a float32, among the bits of a float64
_BELOW_HALF_UNIT = np.uint64((1 << 28) - 1)


# ---- conversions


def from_bf16(bits) -> np.ndarray:
    """The float32 values of bfloat16 bits (uint16)."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(values) -> np.ndarray:
    """The bits of the nearest bfloat16 numbers, ties to even, of float32 values."""
    values = np.asarray(values, np.float32)
    bits = values.view(np.uint32)
    to_even = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = ((bits + to_even) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(values), _NAN16, rounded)


def truncated_bf16(values) -> np.ndarray:
    """The bits of the next bfloat16 numbers toward zero, of float32 values."""
    bits = np.asarray(values).view(np.uint32) >> np.uint32(16)
    return np.where(np.isnan(values), _NAN16, bits.astype(np.uint16))


def from_f16(bits) -> np.ndarray:
    """The float32 values of float16 bits (uint16)."""
    return np.asarray(bits, np.uint16).view(np.float16).astype(np.float32)


def to_f16(values) -> np.ndarray:
    """The bits of the nearest float16 numbers, ties to even."""
    values = np.asarray(values)
    return np.where(np.isnan(values), _NAN16, values.astype(np.float16).view(np.uint16))


def truncated_f16(values) -> np.ndarray:
    """The bits of the next float16 numbers toward zero."""
    bits = np.asarray(truncated(values, np.float16)).view(np.uint16)
    return np.where(np.isnan(values), _NAN16, bits)


def truncated(values, dtype) -> np.ndarray:
    """Round to a narrower floating-point type, toward zero."""
    nearest = values.astype(dtype)
    beyond = np.abs(nearest) > np.abs(values)
    return np.where(beyond, np.nextafter(nearest, dtype(0)), nearest)


def directed(values, rounding: str) -> np.ndarray:
    """Round float64 values to float32: "rz" toward zero, "rm" down, "rp" up."""
    if rounding == "rz":
        return truncated(values, np.float32)
    nearest = values.astype(np.float32)
    beyond, way = (nearest > values, -np.inf) if rounding == "rm" else (nearest < values, np.inf)
    return np.where(beyond, np.nextafter(nearest, np.float32(way)), nearest)


def tf32_of(bits) -> np.ndarray:
    """Float32 bits as a tensor core reads them: 10 bits of the fraction."""
    return (np.asarray(bits, np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def to_tf32(values, rounding: str) -> np.ndarray:
    """The bits of float32 values rounded to tf32: "rn" and "rna" to nearest, "rz" toward zero."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    if rounding == "rn":
        bits = bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))
    elif rounding == "rna":
        bits = bits + np.uint32(0x1000)
    return np.where(np.isnan(values), _NAN32, bits & np.uint32(0xFFFFE000))


# ---- .ftz: zeros, of the same sign, for subnormal numbers


def flushed(values) -> np.ndarray:
    """Of float32 values."""
    return np.where(np.abs(values) < _TINY, np.copysign(np.float32(0), values), values)


def flushed_f16(bits) -> np.ndarray:
    """Of float16 bits."""
    return np.where(bits & np.uint16(0x7C00), bits, bits & np.uint16(0x8000))


def flushed_bf16(bits) -> np.ndarray:
    """Of bfloat16 bits."""
    return np.where(bits & np.uint16(0x7F80), bits, bits & np.uint16(0x8000))


# ---- exact sums and products


def two_sum(a, b):
    """a + b as (sum, its rounding error), exactly (Knuth)."""
    total = a + b
    virtual = total - a
    return total, (a - (total - virtual)) + (b - virtual)


def two_product(a, b):
    """a · b as (product, its rounding error), exact except for over- and underflow (Dekker)."""
    product = a * b
    a_high, a_low = _split(a)
    b_high, b_low = _split(b)
    error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, error


def _split(x):
    scaled = x * 134217729.0  # 2²⁷ + 1
    high = scaled - (scaled - x)
    return high, x - high


def to_odd(rounded, error):
    """Move rounded numbers that are not exact to the adjacent one with an odd last bit.

    Rounding the result again, to a format with at least two bits fewer, gives what rounding the
    exact value gives: it is never halfway between two numbers of that format.

    Args:
        rounded: float32 or float64, the nearest to the exact values.
        error: the exact values less the rounded ones, or anything of the same sign.
    """
    rounded = np.asarray(rounded)
    bits = rounded.view(f"i{rounded.dtype.itemsize}")
    move = (error != 0) & (bits & 1 == 0) & np.isfinite(rounded)
    # Toward the exact value, which may have the larger or the smaller magnitude.
    outward = (error > 0) != np.signbit(rounded)
    moved = bits + np.where(outward, 1, -1).astype(bits.dtype)
    return np.where(move, moved.view(rounded.dtype), rounded)


def to_odd_f32(values) -> np.ndarray:
    """float64 values as float32 with an odd last bit where that is not exact."""
    rounded = values.astype(np.float32)
    # Beyond the largest float32, that is the adjacent number with an odd last bit.
    beyond = np.isinf(rounded) & np.isfinite(values)
    rounded = np.where(beyond, np.copysign(_LARGEST, rounded), rounded)
    return to_odd(rounded, values - rounded)


def fma_to_odd(a, b, c) -> np.ndarray:
    """a · b + c of float32 values that were halves: exact, or in float32 with an odd last bit."""
    product = np.multiply(a, b, dtype=np.float64)
    return to_odd_f32(to_odd(*two_sum(product, np.asarray(c, np.float64))))


def directed_fma32(a, b, c, rounding: str) -> np.ndarray:
    """a · b + c of float32 values, rounded once as ``directed`` does."""
    product, c = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)
    result = directed(to_odd(*two_sum(product, c)), rounding)
    if rounding == "rm":  # a sum that cancels is -0 then
        cancels = (result == 0) & (np.signbit(product) != np.signbit(c))
        result = np.where(cancels, np.float32(-0.0), result)
    return result


def fma32(a, b, c) -> np.ndarray:
    """a · b + c of float32 values, rounded once."""
    product = np.multiply(a, b, dtype=np.float64)  # exact: 48 bits
    total = product + c
    # Rounding to float64 and then to float32 errs only where the first rounding makes a tie.
    bits = np.asarray(total).view(np.uint64)
    short = bits & _BELOW_HALF_UNIT == 0
    if short.any():  # most are exact sums of round numbers
        subnormal = np.abs(total) < _TINY  # these have ties at higher bits
        ties = short & ((bits & _HALF_UNIT != 0) | subnormal) & (total != 0)
        if ties.any():
            exactly = to_odd(*two_sum(product, np.asarray(c, np.float64)))
            total = np.where(ties, exactly, total)
    return total.astype(np.float32)


def fma64(a, b, c) -> np.ndarray:
    """a · b + c of float64 values, rounded once (Boldo and Melquiond, 2008)."""
    a, b, c = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (a, b, c)))
    high, low = two_product(a, b)
    tail_high, tail_low = two_sum(c, low)
    sum_high, sum_low = two_sum(high, tail_high)
    exact = sum_high + to_odd(*two_sum(tail_low, sum_low))
    # If a part over- or underflows, the parts do not add up to the exact value.
    safe = np.isfinite(exact) & (np.abs(high) > 1e-290) & (np.maximum(np.abs(a), np.abs(b)) < 1e290)
    if safe.all():
        return exact
    factors = np.isfinite(a) & np.isfinite(b)
    plain = np.where(factors & np.isinf(c), c, a * b + c)  # a · b is finite before rounding
    result = np.where(safe, exact, plain)
    unsafe = ~safe & factors & np.isfinite(c) & (a != 0) & (b != 0)
    result[unsafe] = [
        _fma_of_fractions(*parts)
        for parts in zip(a[unsafe].tolist(), b[unsafe].tolist(), c[unsafe].tolist(), strict=True)
    ]
    return result


def _fma_of_fractions(a: float, b: float, c: float) -> float:
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    try:
        return float(exact)
    except OverflowError:
        return math.inf if exact > 0 else -math.inf
