"""Pointwise instructions on integers, and on bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .operations import (
    BITS,
    INTEGERS,
    SIGNED,
    Operation,
    dtype_of,
    one_of,
    refuse,
    same,
    take,
    type_of,
    width_of,
)


def _on(function: Callable, sources: int = 2, types: tuple[str, ...] = INTEGERS) -> Callable:
    """An instruction that one function of numpy computes in all types."""
    return lambda kinds: same(function, type_of(kinds, *types), sources)


def _multiply(kinds):
    result, kind, product = _product(kinds)
    return Operation(product, result, (kind, kind))


def _multiply_add(kinds):
    result, kind, product = _product(kinds)
    return Operation(lambda a, b, c: product(a, b) + c, result, (kind, kind, result))


def _product(kinds):
    """(type of the result, type of the factors, function) for the low, high or wide product."""
    kind, part = type_of(kinds, *INTEGERS), one_of(kinds, "lo", "hi", "wide")
    width = width_of(kind)
    if part == "lo":
        return kind, kind, np.multiply
    if width == 64:
        if part == "wide":
            refuse(f"the wide product of {kind}")
        return kind, kind, _high_product_s64 if kind == "s64" else _high_product_u64
    double = f"{kind[0]}{2 * width}"
    wide, narrow = dtype_of(double), dtype_of(kind)

    def whole(a, b):
        return np.multiply(a, b, dtype=wide)

    if part == "wide":
        return double, kind, whole
    return kind, kind, lambda a, b: (whole(a, b) >> wide(width)).astype(narrow)


def _high_product_u64(a, b):
    """The upper 64 bits of a 128-bit product, by halves of 32 bits."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    a_high, a_low, b_high, b_low = a >> shift, a & low, b >> shift, b & low
    middle = a_high * b_low + (a_low * b_low >> shift)
    carry = (middle & low) + a_low * b_high
    return a_high * b_high + (middle >> shift) + (carry >> shift)


def _high_product_s64(a, b):
    """Correct the unsigned product: a negative factor counts 2⁶⁴ too much in it."""
    high = _high_product_u64(a.view(np.uint64), b.view(np.uint64)).view(np.int64)
    zero = np.int64(0)
    return high - np.where(a < 0, b, zero) - np.where(b < 0, a, zero)


def _divide(remainder: bool) -> Callable:
    """div and rem: truncating. Division by zero, which PTX leaves undefined, gives all ones."""

    def make(kinds):
        kind = type_of(kinds, *INTEGERS)
        one, ones = dtype_of(kind)(1), ~dtype_of(kind)(0)

        def compute(a, b):
            divisor = np.where(b == 0, one, b)
            rest = np.fmod(a, divisor)
            return np.where(b == 0, ones, rest if remainder else (a - rest) // divisor)

        return same(compute, kind, 2)

    return make


def _bitwise(function: Callable, sources: int = 2) -> Callable:
    def make(kinds):
        kind = type_of(kinds, *BITS, "pred")
        return same(function, BITS.get(kind, kind), sources)

    return make


def _is_zero(kinds):
    """cnot: the negation of C."""
    kind = BITS[type_of(kinds, *BITS)]
    return same(lambda a: (a == 0).astype(dtype_of(kind)), kind, 1)


def _shift(function: Callable) -> Callable:
    def make(kinds):
        kind = type_of(kinds, *BITS, *INTEGERS)
        kind = BITS.get(kind, kind)
        width, dtype = np.uint32(width_of(kind)), dtype_of(kind)

        def compute(a, count):
            # Like PTX, numpy shifts all bits out at the width, and fills with the sign if any.
            return function(a, np.minimum(count, width).astype(dtype))

        return Operation(compute, kind, (kind, "u32"))

    return make


def _funnel_shift(kinds):
    """shf: two words shifted as one: its upper word for a left shift, the lower for a right one."""
    type_of(kinds, "b32")
    side, mode = one_of(kinds, "l", "r"), one_of(kinds, "wrap", "clamp")
    half = np.uint64(32)

    def compute(low, high, count):
        count = count & np.uint32(31) if mode == "wrap" else np.minimum(count, np.uint32(32))
        count = count.astype(np.uint64)
        both = high.astype(np.uint64) << half | low
        shifted = (both << count) >> half if side == "l" else both >> count
        return shifted.astype(np.uint32)

    return same(compute, "u32", 3)


def _logic(kinds):
    """lop3: any function of three bits, given as a table of eight."""
    type_of(kinds, "b32")

    def compute(a, b, c, table):
        """Bit k of the table is the result where a, b and c are the bits 2, 1 and 0 of k."""
        result = np.uint32(0)
        for k in range(8):
            if table >> np.uint32(k) & np.uint32(1):
                case = (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
                result = result | case
        return result

    return same(compute, "u32", 4)


def _permute(kinds):
    """prmt: each byte of the result is one of eight source bytes, or its sign bit repeated."""
    type_of(kinds, "b32")
    byte_bits = np.uint64(255)

    def compute(a, b, selector):
        both = b.astype(np.uint64) << np.uint64(32) | a
        result = np.uint32(0)
        for k in range(4):
            choice = (selector >> np.uint32(4 * k)).astype(np.uint64)
            byte = both >> np.uint64(8) * (choice & np.uint64(7)) & byte_bits
            sign = (byte >> np.uint64(7)) * byte_bits
            byte = np.where(choice & np.uint64(8), sign, byte)
            result = result | byte.astype(np.uint32) << np.uint32(8 * k)
        return result

    return same(compute, "u32", 3)


def _extract(kinds):
    """bfe: ``length`` bits starting at ``position``; sign-extended for a signed type."""
    kind = type_of(kinds, "u32", "s32", "u64", "s64")
    width, dtype = np.uint32(width_of(kind)), dtype_of(kind)

    def compute(a, position, length):
        position, length = position & np.uint32(255), length & np.uint32(255)
        # Push out what is above the field, then what is below it.
        above = width - np.minimum(position + length, width)
        field = (a << above.astype(dtype)) >> (above + position).astype(dtype)
        return np.where(length == 0, dtype(0), field)

    return Operation(compute, kind, (kind, "u32", "u32"))


def _insert(kinds):
    """bfi: the low ``length`` bits of a, inserted into b at ``position``."""
    kind = BITS[type_of(kinds, "b32", "b64")]
    dtype, one = dtype_of(kind), np.uint64(1)

    def compute(a, b, position, length):
        position, length = ((x & np.uint32(255)).astype(np.uint64) for x in (position, length))
        # All ones for a length of 64 or more: numpy's 1 << 64 is 0.
        field = ((one << length) - one) << position
        placed = a.astype(np.uint64) << position
        return (placed & field | b & ~field).astype(dtype)

    return Operation(compute, kind, (kind, kind, "u32", "u32"))


def _reverse_bits(kinds):
    kind = BITS[type_of(kinds, "b32", "b64")]
    width, dtype = width_of(kind), dtype_of(kind)
    steps = [1 << k for k in range(width.bit_length() - 1)]
    # Groups of as many ones as the step, and as many zeros, in turn.
    masks = [((1 << width) - 1) // ((1 << step) + 1) for step in steps]
    swaps = [(dtype(step), dtype(mask)) for step, mask in zip(steps, masks, strict=True)]

    def compute(a):
        for step, mask in swaps:
            a = (a >> step & mask) | (a & mask) << step
        return a

    return same(compute, kind, 1)


def _bit_length(a):
    """The bit length of an unsigned number, as u32."""
    for step in (1, 2, 4, 8, 16, 32):  # ones below the highest one
        a = a | a >> a.dtype.type(step)
    return np.bitwise_count(a).astype(np.uint32)


def _leading_zeros(kinds):
    kind = BITS[type_of(kinds, "b32", "b64")]
    width = np.uint32(width_of(kind))
    return Operation(lambda a: width - _bit_length(a), "u32", (kind,))


def _count_ones(kinds):
    kind = BITS[type_of(kinds, "b32", "b64")]
    return Operation(lambda a: np.bitwise_count(a).astype(np.uint32), "u32", (kind,))


def _find_highest(kinds):
    """bfind: the position of the highest one, or of a negative number's highest zero."""
    kind = type_of(kinds, "u32", "s32", "u64", "s64")
    one, highest = np.uint32(1), np.uint32(width_of(kind) - 1)
    as_shift = take(kinds, "shiftamt")

    def compute(a):
        if kind[0] == "s":
            a = np.where(a < 0, ~a, a).view(f"u{width_of(kind) // 8}")
        length = _bit_length(a)
        place = length - one  # all ones if there is none: it wraps around
        return np.where(length == 0, place, highest - place) if as_shift else place

    return Operation(compute, "u32", (kind,))


MAKERS = {
    "add": _on(np.add),
    "sub": _on(np.subtract),
    "mul": _multiply,
    "mad": _multiply_add,
    "div": _divide(remainder=False),
    "rem": _divide(remainder=True),
    "abs": _on(np.abs, 1, SIGNED),
    "neg": _on(np.negative, 1, SIGNED),
    "min": _on(np.minimum),
    "max": _on(np.maximum),
    "and": _bitwise(np.bitwise_and),
    "or": _bitwise(np.bitwise_or),
    "xor": _bitwise(np.bitwise_xor),
    "not": _bitwise(np.invert, sources=1),
    "cnot": _is_zero,
    "shl": _shift(np.left_shift),
    "shr": _shift(np.right_shift),
    "shf": _funnel_shift,
    "lop3": _logic,
    "prmt": _permute,
    "bfe": _extract,
    "bfi": _insert,
    "brev": _reverse_bits,
    "clz": _leading_zeros,
    "popc": _count_ones,
    "bfind": _find_highest,
}
