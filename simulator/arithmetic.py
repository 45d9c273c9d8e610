"""Pointwise instructions as pure functions of numpy arrays.

``find`` turns an opcode with its modifiers into an ``Operation``: what it computes, and the types
of its operands. Halves are passed as their bits, in u16; packed pairs in u32; 8-bit values in u16.
Functions that hardware approximates (``.approx``, ``.full``) are computed as exactly as the type
allows: what a GPU gives differs from that by the bounds of the PTX manual.

The table of all opcodes is at the end. Its functions take the modifiers as a list and remove what
they have understood; what is left over is an error, so that no modifier is ignored silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import conversions
from .errors import Unsupported
from .formats import (
    flushed,
    flushed_bf16,
    flushed_f16,
    fma32,
    fma64,
    fma_to_odd,
    from_bf16,
    from_f16,
    to_bf16,
    to_f16,
)

_SIGNED, _UNSIGNED = ("s16", "s32", "s64"), ("u16", "u32", "u64")
_INTEGERS = (*_SIGNED, *_UNSIGNED)
_HALVES = {  # from bits to float32 and back, and what .ftz does to the bits
    "f16": (from_f16, to_f16, flushed_f16),
    "bf16": (from_bf16, to_bf16, flushed_bf16),
}
_SMALL = ("f16", "f16x2", "bf16", "bf16x2")
_FLOATS = ("f32", "f64", *_SMALL)
# The type that untyped bits have in registers.
_BITS = {"b16": "u16", "b32": "u32", "b64": "u64"}


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
    if not modifiers:
        raise Unsupported(f"{opcode} without a type")
    kinds = list(modifiers)
    operation = maker(kinds)
    if kinds:
        raise Unsupported(f"modifier {'.'.join(kinds)} of {opcode}.{'.'.join(modifiers)}")
    return operation


# ---- reading modifiers


def _take(kinds: list[str], *known: str) -> str:
    """Remove and return the one of the known modifiers that is there, or ""."""
    for kind in known:
        if kind in kinds:
            kinds.remove(kind)
            return kind
    return ""


def _one_of(kinds: list[str], *known: str) -> str:
    """The same for modifiers of which there has to be one."""
    return _take(kinds, *known) or _refuse(f"none of .{', .'.join(known)}")


def _type(kinds: list[str], *known: str) -> str:
    """Remove and return the type, which comes last."""
    if not kinds or kinds[-1] not in known:
        _refuse(f"type {kinds[-1] if kinds else 'missing'}")
    return kinds.pop()


def _refuse(what: str):
    raise Unsupported(what)


def _width(kind: str) -> int:
    return int(kind[1:])


def _dtype(kind: str) -> type:
    """The numpy type of an integer type."""
    return np.dtype(f"{'i' if kind[0] == 's' else 'u'}{_width(kind) // 8}").type


def _same(function: Callable, kind: str, sources: int) -> Operation:
    """An operation whose sources have the type of its result."""
    return Operation(function, kind, (kind,) * sources)


# ---- floating point


def _float(
    kinds: list[str],
    function: Callable,
    sources: int,
    types: tuple[str, ...] = _FLOATS,
    saturates: bool = False,
) -> Operation:
    """An operation on floats of any kind, from its function on float32 and float64 values."""
    kind = _type(kinds, *types)
    if saturates and kind in ("f32", "f16", "f16x2") and _take(kinds, "sat"):
        function = _saturating(function)
    flush = kind != "f64" and _take(kinds, "ftz")
    if kind in ("f32", "f64"):
        return _same(_flushing(function, flushed) if flush else function, kind, sources)
    widen, narrow, flush_bits = _HALVES[kind.removesuffix("x2")]

    # Exact in float32, or rounded twice to no harm: float32 has more than twice as many bits.
    def on_bits(*halves):
        return narrow(function(*map(widen, halves)))

    if flush:
        on_bits = _flushing(on_bits, flush_bits)
    if kind.endswith("x2"):
        return _same(_on_pairs(on_bits), "u32", sources)
    return _same(on_bits, "u16", sources)


def _saturating(function: Callable) -> Callable:
    """.sat: results in [0, 1], zero for NaN."""

    def compute(*values):
        result = function(*values)
        return np.where(result > 0, np.minimum(result, np.float32(1)), np.float32(0))

    return compute


def _flushing(function: Callable, flush: Callable) -> Callable:
    """.ftz: subnormal sources and results are zeros of their sign."""
    return lambda *values: flush(function(*map(flush, values)))


def _on_pairs(function: Callable) -> Callable:
    """A function of halves for both halves of 32 bits."""
    low_bits, sixteen = np.uint32(0xFFFF), np.uint32(16)

    def compute(*pairs):
        low = function(*((pair & low_bits).astype(np.uint16) for pair in pairs))
        high = function(*((pair >> sixteen).astype(np.uint16) for pair in pairs))
        return high.astype(np.uint32) << sixteen | low

    return compute


def _add_or_subtract(function: Callable) -> Callable:
    def make(kinds):
        if kinds[-1] in _INTEGERS:
            return _same(function, _type(kinds, *_INTEGERS), 2)
        _take(kinds, "rn")  # the default, and what numpy does
        return _float(kinds, function, 2, saturates=True)

    return make


def _multiply(kinds):
    if kinds[-1] in _INTEGERS:
        result, kind, product = _product(kinds)
        return Operation(product, result, (kind, kind))
    _take(kinds, "rn")  # the default, and what numpy does
    return _float(kinds, np.multiply, 2, saturates=True)


def _multiply_add(kinds):
    if kinds[-1] in _INTEGERS:
        result, kind, product = _product(kinds)
        return Operation(lambda a, b, c: product(a, b) + c, result, (kind, kind, result))
    if kinds[-1] not in ("f32", "f64"):
        _refuse(f"mad of {kinds[-1]}")
    return _fused_multiply_add(kinds)


def _fused_multiply_add(kinds):
    _one_of(kinds, "rn")
    function = {"f32": fma32, "f64": fma64}.get(kinds[-1] if kinds else "", fma_to_odd)
    return _float(kinds, function, 3, saturates=True)


def _divide(kinds):
    if kinds[-1] in _INTEGERS:
        return _divide_integers(kinds, remainder=False)
    # .approx and .full may err by 2 units in the last place; here they do not.
    _one_of(kinds, *(("rn",) if kinds[-1] == "f64" else ("rn", "approx", "full")))
    return _float(kinds, np.divide, 2, ("f32", "f64"))


def _sign(function: Callable) -> Callable:
    """neg and abs."""

    def make(kinds):
        if kinds[-1] in _SIGNED:
            return _same(function, _type(kinds, *_SIGNED), 1)
        return _float(kinds, function, 1)

    return make


def _extreme(function: Callable, of_zeros: Callable) -> Callable:
    """min and max; of floats +0 counts as larger than -0, and NaN loses, with .NaN it wins."""

    def of_floats(a, b):
        return np.where((a == 0) & (b == 0), of_zeros(a, b), function(a, b))

    def of_numbers(a, b):
        # Not numpy's fmin: what that makes of a signaling NaN depends on the CPU.
        return np.where(np.isnan(a), b, np.where(np.isnan(b), a, of_floats(a, b)))

    def make(kinds):
        if kinds[-1] in _INTEGERS:
            return _same(function, _type(kinds, *_INTEGERS), 2)
        return _float(kinds, of_floats if _take(kinds, "NaN") else of_numbers, 2)

    return make


def _approximated(function: Callable, *types: str) -> Callable:
    """Functions that exist as .approx only; they are computed in float64 and rounded."""

    def compute(x):
        return function(x.astype(np.float64)).astype(x.dtype)

    def make(kinds):
        _one_of(kinds, "approx")
        return _float(kinds, compute, 1, types)

    return make


def _rounded(function: Callable) -> Callable:
    """rcp and sqrt: numpy rounds them correctly, so .approx does here too."""

    def make(kinds):
        _one_of(kinds, *(("rn",) if kinds[-1] == "f64" else ("rn", "approx")))
        return _float(kinds, function, 1, ("f32", "f64"))

    return make


def _reciprocal_root(x):
    return np.reciprocal(np.sqrt(x))


def _copy_sign(kinds):
    return _same(lambda sign, value: np.copysign(value, sign), _type(kinds, "f32", "f64"), 2)


def _test_property(kinds):
    kind = _type(kinds, "f32", "f64")
    tiny = np.finfo(np.float32 if kind == "f32" else np.float64).tiny
    tests = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & ((np.abs(a) >= tiny) | (a == 0)),  # zeros count
        "subnormal": lambda a: (np.abs(a) < tiny) & (a != 0),
    }
    return Operation(tests[_one_of(kinds, *tests)], "pred", (kind,))


# ---- integers


def _product(kinds):
    """(type of the result, of the factors, function) of the low, high or whole product."""
    kind, part = _type(kinds, *_INTEGERS), _one_of(kinds, "lo", "hi", "wide")
    width = _width(kind)
    if part == "lo":
        return kind, kind, np.multiply
    if width == 64:
        if part == "wide":
            _refuse(f"the wide product of {kind}")
        return kind, kind, _high_product_s64 if kind == "s64" else _high_product_u64
    double = f"{kind[0]}{2 * width}"
    wide, narrow = _dtype(double), _dtype(kind)

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
    """As bits, a negative factor is 2⁶⁴ too large: the other factor is too much in the product."""
    high = _high_product_u64(a.view(np.uint64), b.view(np.uint64)).view(np.int64)
    zero = np.int64(0)
    return high - np.where(a < 0, b, zero) - np.where(b < 0, a, zero)


def _divide_integers(kinds, remainder: bool):
    """Truncating; by zero, which PTX leaves open, all ones."""
    kind = _type(kinds, *_INTEGERS)
    one, ones = _dtype(kind)(1), ~_dtype(kind)(0)

    def compute(a, b):
        divisor = np.where(b == 0, one, b)
        rest = np.fmod(a, divisor)
        return np.where(b == 0, ones, rest if remainder else (a - rest) // divisor)

    return _same(compute, kind, 2)


def _remainder(kinds):
    return _divide_integers(kinds, remainder=True)


def _bitwise(function: Callable, sources: int = 2) -> Callable:
    def make(kinds):
        kind = _type(kinds, *_BITS, "pred")
        return _same(function, _BITS.get(kind, kind), sources)

    return make


def _is_zero(kinds):
    """cnot: the negation of C."""
    kind = _BITS[_type(kinds, *_BITS)]
    return _same(lambda a: (a == 0).astype(_dtype(kind)), kind, 1)


def _shift(function: Callable) -> Callable:
    def make(kinds):
        kind = _type(kinds, *_BITS, *_INTEGERS)
        kind = _BITS.get(kind, kind)
        width, dtype = np.uint32(_width(kind)), _dtype(kind)

        def compute(a, count):
            # Like PTX, numpy shifts all bits out at the width, and fills with the sign if any.
            return function(a, np.minimum(count, width).astype(dtype))

        return Operation(compute, kind, (kind, "u32"))

    return make


def _funnel_shift(kinds):
    """Of the 64 bits of two words, shifted: the upper 32 to the left, the lower to the right."""
    _type(kinds, "b32")
    side, mode = _one_of(kinds, "l", "r"), _one_of(kinds, "wrap", "clamp")
    half = np.uint64(32)

    def compute(low, high, count):
        count = count & np.uint32(31) if mode == "wrap" else np.minimum(count, np.uint32(32))
        count = count.astype(np.uint64)
        both = high.astype(np.uint64) << half | low
        shifted = (both << count) >> half if side == "l" else both >> count
        return shifted.astype(np.uint32)

    return _same(compute, "u32", 3)


def _logic(kinds):
    """lop3: any function of three bits, given as a table of eight."""
    _type(kinds, "b32")

    def compute(a, b, c, table):
        """Bit k of the table is the result where a, b and c are the bits 2, 1 and 0 of k."""
        result = np.uint32(0)
        for k in range(8):
            if table >> np.uint32(k) & np.uint32(1):
                case = (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
                result = result | case
        return result

    return _same(compute, "u32", 4)


def _permute(kinds):
    """prmt: each byte of the result is one of eight, or eight times its sign."""
    _type(kinds, "b32")
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

    return _same(compute, "u32", 3)


def _extract(kinds):
    """bfe: bits from a position on, as many as a length; the highest is repeated if signed."""
    kind = _type(kinds, "u32", "s32", "u64", "s64")
    width, dtype = np.uint32(_width(kind)), _dtype(kind)

    def compute(a, position, length):
        position, length = position & np.uint32(255), length & np.uint32(255)
        # Push out what is above the field, then what is below it.
        above = width - np.minimum(position + length, width)
        field = (a << above.astype(dtype)) >> (above + position).astype(dtype)
        return np.where(length == 0, dtype(0), field)

    return Operation(compute, kind, (kind, "u32", "u32"))


def _insert(kinds):
    """bfi: the low bits of a, as many as a length, put into b at a position."""
    kind = _BITS[_type(kinds, "b32", "b64")]
    dtype, one = _dtype(kind), np.uint64(1)

    def compute(a, b, position, length):
        position, length = ((x & np.uint32(255)).astype(np.uint64) for x in (position, length))
        # For a length of 64 and more all ones: numpy's 1 << 64 is 0.
        field = ((one << length) - one) << position
        placed = a.astype(np.uint64) << position
        return (placed & field | b & ~field).astype(dtype)

    return Operation(compute, kind, (kind, kind, "u32", "u32"))


def _reverse_bits(kinds):
    kind = _BITS[_type(kinds, "b32", "b64")]
    width, dtype = _width(kind), _dtype(kind)
    steps = [1 << k for k in range(width.bit_length() - 1)]
    # Ones in every second group of as many bits as the step.
    masks = [((1 << width) - 1) // ((1 << step) + 1) for step in steps]
    swaps = [(dtype(step), dtype(mask)) for step, mask in zip(steps, masks, strict=True)]

    def compute(a):
        for step, mask in swaps:
            a = (a >> step & mask) | (a & mask) << step
        return a

    return _same(compute, kind, 1)


def _bit_length(a):
    """How many bits an unsigned number has from its highest one on, as u32."""
    for step in (1, 2, 4, 8, 16, 32):  # ones below the highest one
        a = a | a >> a.dtype.type(step)
    return np.bitwise_count(a).astype(np.uint32)


def _leading_zeros(kinds):
    kind = _BITS[_type(kinds, "b32", "b64")]
    width = np.uint32(_width(kind))
    return Operation(lambda a: width - _bit_length(a), "u32", (kind,))


def _count_ones(kinds):
    kind = _BITS[_type(kinds, "b32", "b64")]
    return Operation(lambda a: np.bitwise_count(a).astype(np.uint32), "u32", (kind,))


def _find_highest(kinds):
    """bfind: the place of the highest one, of a negative number the highest zero; else all ones."""
    kind = _type(kinds, "u32", "s32", "u64", "s64")
    one, highest = np.uint32(1), np.uint32(_width(kind) - 1)
    as_shift = _take(kinds, "shiftamt")

    def compute(a):
        if kind[0] == "s":
            a = np.where(a < 0, ~a, a).view(f"u{_width(kind) // 8}")
        length = _bit_length(a)
        place = length - one  # of nothing all ones: it wraps around
        return np.where(length == 0, place, highest - place) if as_shift else place

    return Operation(compute, "u32", (kind,))


# ---- comparing and choosing

_EQUALITY = {"eq": np.equal, "ne": np.not_equal}
_ORDER = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
_UNSIGNED_ORDER = dict(zip(("lo", "ls", "hi", "hs"), _ORDER.values(), strict=True))
_JOIN = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _unordered(a, b):
    return np.isnan(a) | np.isnan(b)


def _or_unordered(function: Callable) -> Callable:
    return lambda a, b: function(a, b) | _unordered(a, b)


# Comparisons with NaN are false; these with a u are true. numpy's != is of the second sort.
_FLOAT_COMPARISONS = {
    **_EQUALITY,
    **_ORDER,
    "ne": lambda a, b: (a != b) & ~_unordered(a, b),
    **{f"{name}u": _or_unordered(function) for name, function in (_EQUALITY | _ORDER).items()},
    "nan": _unordered,
    "num": lambda a, b: ~_unordered(a, b),
}
_COMPARISONS = {
    **dict.fromkeys(_BITS, _EQUALITY),
    **dict.fromkeys(_SIGNED, _EQUALITY | _ORDER),
    **dict.fromkeys(_UNSIGNED, _EQUALITY | _ORDER | _UNSIGNED_ORDER),
    **dict.fromkeys(("f32", "f64", *_HALVES), _FLOAT_COMPARISONS),
}


def _compare(kinds):
    """setp: a comparison, joined with a predicate or not."""
    kind = _type(kinds, *_COMPARISONS)
    compare = _COMPARISONS[kind][_one_of(kinds, *_COMPARISONS[kind])]
    register = _BITS.get(kind, kind)
    if kind in _HALVES:
        widen, _, flush = _HALVES[kind]
        compare, register = _of(compare, widen), "u16"
    else:
        flush = flushed
    if kind in ("f32", "f16") and _take(kinds, "ftz"):
        compare = _of(compare, flush)
    join = _take(kinds, *_JOIN)
    if not join:
        return Operation(compare, "pred", (register, register))
    combine = _JOIN[join]
    return Operation(
        lambda a, b, other: combine(compare(a, b), other), "pred", (register, register, "pred")
    )


def _of(function: Callable, prepare: Callable) -> Callable:
    return lambda a, b: function(prepare(a), prepare(b))


def _compare_to_number(kinds):
    """set: the same into a number: all ones, or 1.0, for true."""
    if len(kinds) < 2:
        _refuse("set without two types")
    true = {"u32": np.uint32(0xFFFFFFFF), "s32": np.int32(-1), "f32": np.float32(1)}
    result = kinds.pop(-2)
    if result not in true:
        _refuse(f"set of type {result}")
    comparison, yes = _compare(kinds), true[result]
    zero = yes.dtype.type(0)
    return Operation(
        lambda *values: np.where(comparison.compute(*values), yes, zero),
        result,
        comparison.sources,
    )


def _select(kinds):
    kind = _type(kinds, *_BITS, *_INTEGERS, "f32", "f64")
    kind = _BITS.get(kind, kind)
    return Operation(lambda a, b, choose: np.where(choose, a, b), kind, (kind, kind, "pred"))


def _select_by_sign(kinds):
    """slct: the first where the third is not negative; the second for NaN."""
    by = _type(kinds, "s32", "f32")
    flush = by == "f32" and _take(kinds, "ftz")
    kind = _type(kinds, *_BITS, *_INTEGERS, "f32", "f64")
    kind = _BITS.get(kind, kind)

    def compute(a, b, c):
        return np.where((flushed(c) if flush else c) >= 0, a, b)

    return Operation(compute, kind, (kind, kind, by))


# ---- others


def _address(kinds):
    """cvta: spaces lie apart in the simulator, and a global address is a generic one."""
    _take(kinds, "to")  # the other way, of no effect either
    _one_of(kinds, "global")
    return _same(np.positive, _type(kinds, "u64"), 1)


def _convert(kinds):
    return Operation(*conversions.find(kinds))


_MAKERS = {
    # integers and floats
    "add": _add_or_subtract(np.add),
    "sub": _add_or_subtract(np.subtract),
    "mul": _multiply,
    "mad": _multiply_add,
    "div": _divide,
    "rem": _remainder,
    "abs": _sign(np.abs),
    "neg": _sign(np.negative),
    "min": _extreme(np.minimum, of_zeros=lambda a, b: -(-a - b)),
    "max": _extreme(np.maximum, of_zeros=np.add),
    # floats
    "fma": _fused_multiply_add,
    "rcp": _rounded(np.reciprocal),
    "sqrt": _rounded(np.sqrt),
    "rsqrt": _approximated(_reciprocal_root, "f32", "f64"),
    "ex2": _approximated(np.exp2, "f32", *_SMALL),
    "lg2": _approximated(np.log2, "f32"),
    "sin": _approximated(np.sin, "f32"),
    "cos": _approximated(np.cos, "f32"),
    "tanh": _approximated(np.tanh, "f32", *_SMALL),
    "copysign": _copy_sign,
    "testp": _test_property,
    # bits
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
    # comparing and choosing
    "setp": _compare,
    "set": _compare_to_number,
    "selp": _select,
    "slct": _select_by_sign,
    # types
    "cvt": _convert,
    "cvta": _address,
}
