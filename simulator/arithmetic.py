"""Pointwise instructions as pure functions of numpy arrays.

``find`` turns an opcode with its modifiers into an ``Operation``: what it computes, and the types
of its operands. Halves are passed as their bits, in u16; packed pairs in u32; 8-bit values in u16.
Functions that hardware approximates (``.approx``, ``.full``) are computed to the last bit: what a
GPU gives differs from that by the bounds of the PTX manual.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import conversions
from .errors import Unsupported
from .formats import flushed, fma32, fma64, from_bf16, from_f16, to_bf16, to_f16

_SIGNED, _UNSIGNED = ("s16", "s32", "s64"), ("u16", "u32", "u64")
_BITS = {"b16": "u16", "b32": "u32", "b64": "u64", "pred": "pred"}
_HALVES = {"f16": (from_f16, to_f16), "bf16": (from_bf16, to_bf16)}


@dataclass(frozen=True)
class Operation:
    """What a pointwise instruction does.

    Args:
        compute: of the sources' values, (warps, 32) or scalars; returns the destination's.
        result: register type of the destination: "pred", "u16", "s32", "f32", ...
        sources: register type of each source, in the order of the operands.
    """

    compute: Callable
    result: str
    sources: tuple[str, ...]


def find(opcode: str, modifiers: tuple[str, ...]) -> Operation | None:
    """The operation of an instruction; None where the opcode is of another family.

    Raises:
        Unsupported: a modifier or a type that is not known for this opcode.
    """
    maker = _MAKERS.get(opcode)
    if maker is None:
        return None
    kinds = list(modifiers)
    operation = maker(opcode, kinds)
    if kinds:
        raise Unsupported(f"modifiers {'.'.join(kinds)}")
    return operation


def _take(kinds: list[str], *known: str) -> str:
    """Remove and return the one of the known modifiers that is there, or ""."""
    for kind in known:
        if kind in kinds:
            kinds.remove(kind)
            return kind
    return ""


def _type(kinds: list[str], *known: str) -> str:
    """Remove and return the type, which comes last."""
    if not kinds or kinds[-1] not in known:
        raise Unsupported(f"type {kinds[-1] if kinds else 'missing'}")
    return kinds.pop()


def _width(kind: str) -> int:
    return int(kind[1:])


def _integer(kind: str) -> type:
    return np.dtype(f"{'i' if kind[0] == 's' else 'u'}{_width(kind) // 8}").type


# ---- floating point


def _float(function, count: int, kinds: list[str], roundings=("rn",)) -> Operation:
    """An operation on floats of any kind, from its function on float32 and float64."""
    kind = _type(kinds, "f32", "f64", "f16", "bf16", "f16x2", "bf16x2")
    # .rn is how numpy rounds; the others would need more than numpy has.
    _take(kinds, *roundings)
    if kind in ("f32", "f64"):
        if _take(kinds, "ftz"):
            inner = function

            def function(*values):
                return flushed(inner(*map(flushed, values)))

        if _take(kinds, "sat"):
            unclamped = function

            def function(*values):  # .sat makes NaN zero
                return np.fmin(np.fmax(unclamped(*values), np.float32(0)), np.float32(1))

        return Operation(function, kind, (kind,) * count)
    return _on_halves(function, kind, count)


def _on_halves(function, kind: str, count: int) -> Operation:
    """A function of float32 values, on halves: exact in float32 or rounded by it innocuously."""
    widen, narrow = _HALVES[kind.removesuffix("x2")]
    if not kind.endswith("x2"):
        return Operation(lambda *bits: narrow(function(*map(widen, bits))), "u16", ("u16",) * count)

    def on_pairs(*pairs):
        low, high = (
            narrow(function(*(widen((p >> np.uint32(at)).astype(np.uint16)) for p in pairs)))
            for at in (0, 16)
        )
        return low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)

    return Operation(on_pairs, "u32", ("u32",) * count)


def _fma(opcode, kinds):
    if kinds[-1] == "f64":
        return _float(fma64, 3, kinds)
    if kinds[-1] == "f32":
        return _float(fma32, 3, kinds)
    # The product of two halves is exact in float32; their sum in float64 is rounded to odd there
    # by way of float32's fma, whose 24 bits are enough to round to 11 or 8 once more.
    return _float(_fma_for_halves, 3, kinds)


def _fma_for_halves(a, b, c):
    """a · b + c in float32, with the last bit odd where it is not exact."""
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c  # exact but for a sum of very different sizes
    rounded = total.astype(np.float32)
    bits = np.asarray(rounded).view(np.int32)
    error = total - rounded.astype(np.float64)
    inexact = (error != 0) & (bits & 1 == 0) & np.isfinite(rounded)
    step = np.where((error > 0) == (rounded >= 0), 1, -1).astype(np.int32)
    return np.where(inexact, (bits + step).view(np.float32), rounded)


def _extreme(opcode, kinds):
    if kinds[-1][0] in "us":
        kind = _type(kinds, *_SIGNED, *_UNSIGNED)
        return Operation(np.minimum if opcode == "min" else np.maximum, kind, (kind, kind))
    keeps_nan = _take(kinds, "NaN")
    if opcode == "min":
        return _float(np.minimum if keeps_nan else np.fmin, 2, kinds)
    return _float(np.maximum if keeps_nan else np.fmax, 2, kinds)


def _sign(function):
    """neg and abs: of integers, floats and halves alike."""

    def make(opcode, kinds):
        if kinds[-1] in _SIGNED:
            kind = _type(kinds, *_SIGNED)
            return Operation(function, kind, (kind,))
        return _float(function, 1, kinds)

    return make


def _arithmetic(function):
    """add, sub and, on floats, mul."""

    def make(opcode, kinds):
        if kinds[-1] in (*_SIGNED, *_UNSIGNED):
            kind = _type(kinds, *_SIGNED, *_UNSIGNED)
            return Operation(function, kind, (kind, kind))
        return _float(function, 2, kinds)

    return make


def _unary(function):
    """ex2, sqrt and the like; approximated or rounded, it is the exact value to the last bit."""

    def make(opcode, kinds):
        return _float(function, 1, kinds, roundings=("approx", "rn"))

    return make


def _reciprocal(x):
    return np.reciprocal(x)


def _reciprocal_root(x):
    return np.reciprocal(np.sqrt(x))


# ---- integers


def _multiply(opcode, kinds):
    if kinds[-1][0] not in "us":
        return _float(np.multiply, 2, kinds)
    part = _take(kinds, "lo", "hi", "wide")
    kind = _type(kinds, *_SIGNED, *_UNSIGNED)
    result, product = _product(part, kind)
    if opcode == "mul":
        return Operation(product, result, (kind, kind))
    return Operation(lambda a, b, c: product(a, b) + c, result, (kind, kind, result))


def _product(part: str, kind: str):
    """(type of the result, function) of the low, high or whole product."""
    if part == "lo":
        return kind, np.multiply
    width = _width(kind)
    if part == "wide" and width < 64:
        wide = f"{kind[0]}{2 * width}"
        return wide, lambda a, b: np.multiply(a, b, dtype=_integer(wide))
    if part == "hi" and width < 64:
        wide, narrow = _integer(f"{kind[0]}{2 * width}"), _integer(kind)
        return kind, lambda a, b: (np.multiply(a, b, dtype=wide) >> wide(width)).astype(narrow)
    if part == "hi":
        return kind, lambda a, b: _high_product(a, b, kind[0] == "s")
    raise Unsupported(f"mul.{part or 'without .lo .hi .wide'}.{kind}")


def _high_product(a, b, signed: bool):
    """The upper 64 bits of a 128-bit product, by halves of 32 bits."""
    x, y = np.asarray(a).view(np.uint64), np.asarray(b).view(np.uint64)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    middle = (x >> shift) * (y & low) + ((x & low) * (y & low) >> shift)
    carry = (middle & low) + (x & low) * (y >> shift)
    high = (x >> shift) * (y >> shift) + (middle >> shift) + (carry >> shift)
    if signed:
        zero = np.uint64(0)
        high = high - np.where(np.asarray(a) < 0, y, zero) - np.where(np.asarray(b) < 0, x, zero)
        return high.view(np.int64)
    return high


def _divide(opcode, kinds):
    if kinds[-1][0] not in "us":
        return _float(np.divide, 2, kinds, roundings=("full", "approx", "rn"))
    kind = _type(kinds, *_SIGNED, *_UNSIGNED)
    ones = _integer(kind)(-1 if kind[0] == "s" else (1 << _width(kind)) - 1)

    def divide(a, b):
        by = np.where(b == 0, b.dtype.type(1), b)
        rest = np.fmod(a, by)  # truncating, as PTX's
        quotient = (a - rest) // by
        return np.where(b == 0, ones, quotient if opcode == "div" else rest)  # x / 0: unspecified

    return Operation(divide, kind, (kind, kind))


def _bitwise(function, count: int = 2):
    def make(opcode, kinds):
        kind = _BITS[_type(kinds, *_BITS)]
        return Operation(function, kind, (kind,) * count)

    return make


def _shift(opcode, kinds):
    kind = _type(kinds, "b16", "b32", "b64", *_SIGNED, *_UNSIGNED)
    kind = _BITS.get(kind, kind)
    width, dtype = _width(kind), _integer(kind)
    function = np.left_shift if opcode == "shl" else np.right_shift

    def shift(a, count):
        inside = np.minimum(count, np.uint32(width - 1)).astype(dtype)
        result = function(a, inside)
        if dtype(0) - dtype(1) < 0 and opcode == "shr":
            return result  # beyond the width the sign fills everything, as at width - 1
        return np.where(count < width, result, dtype(0))

    return Operation(shift, kind, (kind, "u32"))


def _funnel_shift(opcode, kinds):
    side, mode = _take(kinds, "l", "r"), _take(kinds, "wrap", "clamp")
    _type(kinds, "b32")

    def shift(low, high, count):
        count = (count & np.uint32(31)) if mode == "wrap" else np.minimum(count, np.uint32(32))
        both = np.asarray(high).astype(np.uint64) << np.uint64(32) | low
        if side == "l":
            return ((both << count.astype(np.uint64)) >> np.uint64(32)).astype(np.uint32)
        return (both >> count.astype(np.uint64)).astype(np.uint32)

    return Operation(shift, "u32", ("u32",) * 3)


def _lop3(opcode, kinds):
    _type(kinds, "b32")

    def combine(a, b, c, table):
        """Bit k of the table, k from a, b and c as bits 2, 1 and 0."""
        result = np.uint32(0)
        for k in range(8):
            if int(table) >> k & 1:
                result = result | (
                    (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
                )
        return result

    return Operation(combine, "u32", ("u32",) * 4)


def _permute(opcode, kinds):
    _type(kinds, "b32")

    def permute(a, b, selector):
        """Each result byte is one of eight, or its sign repeated."""
        a, b, selector = np.broadcast_arrays(a, b, selector)
        both = b.astype(np.uint64) << np.uint64(32) | a
        result = np.zeros(both.shape, np.uint32)
        for k in range(4):
            choice = (selector >> np.uint32(4 * k)).astype(np.uint64)
            byte = both >> (np.uint64(8) * (choice & np.uint64(7))) & np.uint64(255)
            sign = np.where(byte > 127, np.uint64(255), np.uint64(0))
            byte = np.where(choice & np.uint64(8), sign, byte)
            result |= byte.astype(np.uint32) << np.uint32(8 * k)
        return result

    return Operation(permute, "u32", ("u32",) * 3)


def _extract(opcode, kinds):
    kind = _type(kinds, "u32", "s32", "u64", "s64")
    width, wide = _width(kind), np.uint64

    def extract(a, position, length):
        """Bits from position on, as many as length; the sign is repeated."""
        position, length = (np.asarray(x).astype(wide) & wide(255) for x in (position, length))
        unsigned = np.asarray(a).view(f"u{width // 8}").astype(wide)
        room = wide(width) - np.minimum(position, wide(width))
        kept = np.minimum(length, room)
        field = np.where(position < width, unsigned >> np.minimum(position, wide(63)), wide(0))
        mask = np.where(kept < 64, (wide(1) << np.minimum(kept, wide(63))) - wide(1), ~wide(0))
        field = field & mask
        if kind[0] == "s":
            at = np.minimum(position + length - wide(1), wide(width - 1))
            sign = (unsigned >> at & wide(1)).astype(bool) & (length > 0)
            field = np.where(sign, field | ~mask, field)
        return field.astype(f"u{width // 8}").view(_integer(kind))

    return Operation(extract, kind, (kind, "u32", "u32"))


def _insert(opcode, kinds):
    kind = _BITS[_type(kinds, "b32", "b64")]
    width, wide = _width(kind), np.uint64

    def insert(a, b, position, length):
        """The low bits of a, as many as length, put into b at position."""
        position, length = (np.asarray(x).astype(wide) & wide(255) for x in (position, length))
        ones = np.where(length < 64, (wide(1) << np.minimum(length, wide(63))) - wide(1), ~wide(0))
        inside = position < width
        place = np.minimum(position, wide(63))
        mask = np.where(inside, ones << place, wide(0))
        result = np.asarray(b).astype(wide) & ~mask | np.asarray(a).astype(wide) << place & mask
        return result.astype(_integer(kind))

    return Operation(insert, kind, (kind, kind, "u32", "u32"))


def _count_bits(opcode, kinds):
    kind = _BITS[_type(kinds, "b32", "b64")]
    width = _width(kind)
    if opcode == "popc":
        return Operation(lambda a: np.bitwise_count(a).astype(np.uint32), "u32", (kind,))

    def leading_zeros(a):
        for step in (1, 2, 4, 8, 16, 32)[: 5 + (width == 64)]:  # ones below the highest one
            a = a | a >> a.dtype.type(step)
        return (width - np.bitwise_count(a)).astype(np.uint32)

    return Operation(leading_zeros, "u32", (kind,))


def _reverse_bits(opcode, kinds):
    kind = _BITS[_type(kinds, "b32", "b64")]
    width, dtype = _width(kind), _integer(kind)

    def reverse(a):
        result = np.zeros_like(a)
        for k in range(width):
            result = result | (a >> dtype(k) & dtype(1)) << dtype(width - 1 - k)
        return result

    return Operation(reverse, kind, (kind,))


# ---- comparing and choosing

_COMPARE = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
_JOIN = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _comparison(name: str, is_float: bool):
    """A function of two values; ordered comparisons of NaN are false, unordered ones true."""
    if not is_float:
        return _COMPARE[name]

    def unordered(a, b):
        return np.isnan(a) | np.isnan(b)

    if name == "nan":
        return unordered
    if name == "num":
        return lambda a, b: ~unordered(a, b)
    if name == "ne":
        return lambda a, b: (a != b) & ~unordered(a, b)
    if name.endswith("u"):
        ordered = _COMPARE[name[:-1]]
        return lambda a, b: ordered(a, b) | unordered(a, b)
    return _COMPARE[name]


def _set_predicate(opcode, kinds):
    kind = _type(kinds, *_BITS, *_SIGNED, *_UNSIGNED, "f32", "f64", "f16", "bf16")
    join, flush = _take(kinds, *_JOIN), _take(kinds, "ftz")
    name = _take(
        kinds, *_COMPARE, *(f"{c}u" for c in ("eq", "ne", "lt", "le", "gt", "ge")), "nan", "num"
    )
    compare = _comparison(name, "f" in kind)
    register = _BITS.get(kind, kind)
    if kind in _HALVES:
        widen, on_values, register = _HALVES[kind][0], compare, "u16"

        def compare(a, b):
            return on_values(widen(a), widen(b))

    elif flush:
        unflushed = compare

        def compare(a, b):
            return unflushed(flushed(a), flushed(b))

    if not join:
        return Operation(compare, "pred", (register, register))
    combine = _JOIN[join]
    return Operation(
        lambda a, b, also: combine(compare(a, b), also), "pred", (register, register, "pred")
    )


def _select(opcode, kinds):
    kind = _type(kinds, *_BITS, *_SIGNED, *_UNSIGNED, "f32", "f64")
    kind = _BITS.get(kind, kind)
    return Operation(lambda a, b, choose: np.where(choose, a, b), kind, (kind, kind, "pred"))


def _copy_sign(opcode, kinds):
    kind = _type(kinds, "f32", "f64")
    return Operation(lambda sign, value: np.copysign(value, sign), kind, (kind, kind))


def _test_property(opcode, kinds):
    kind = _type(kinds, "f32", "f64")
    tiny = np.finfo(np.float32 if kind == "f32" else np.float64).tiny
    tests = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= tiny),
        "subnormal": lambda a: (np.abs(a) < tiny) & (a != 0),
    }
    name = _take(kinds, *tests)
    if not name:
        raise Unsupported("testp of this property")
    return Operation(tests[name], "pred", (kind,))


def _address(opcode, kinds):
    """cvta: spaces lie apart in the simulator, and a global address is a generic one."""
    _take(kinds, "to")
    if not _take(kinds, "global"):
        raise Unsupported("cvta of a space other than global")
    kind = _type(kinds, "u64")
    return Operation(lambda a: a, kind, (kind,))


def _convert(opcode, kinds):
    return Operation(*conversions.find(kinds))


_MAKERS = {
    "add": _arithmetic(np.add),
    "sub": _arithmetic(np.subtract),
    "mul": _multiply,
    "mad": _multiply,
    "fma": _fma,
    "div": _divide,
    "rem": _divide,
    "abs": _sign(np.abs),
    "neg": _sign(np.negative),
    "min": _extreme,
    "max": _extreme,
    "and": _bitwise(np.bitwise_and),
    "or": _bitwise(np.bitwise_or),
    "xor": _bitwise(np.bitwise_xor),
    "not": _bitwise(np.invert, 1),
    "shl": _shift,
    "shr": _shift,
    "shf": _funnel_shift,
    "lop3": _lop3,
    "prmt": _permute,
    "bfe": _extract,
    "bfi": _insert,
    "brev": _reverse_bits,
    "clz": _count_bits,
    "popc": _count_bits,
    "ex2": _unary(np.exp2),
    "lg2": _unary(np.log2),
    "rcp": _unary(_reciprocal),
    "sqrt": _unary(np.sqrt),
    "rsqrt": _unary(_reciprocal_root),
    "sin": _unary(np.sin),
    "cos": _unary(np.cos),
    "tanh": _unary(np.tanh),
    "setp": _set_predicate,
    "selp": _select,
    "copysign": _copy_sign,
    "testp": _test_property,
    "cvta": _address,
    "cvt": _convert,
}
