"""Pointwise instructions that compare, or select by a predicate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .formats import flushed
from .operations import (
    BITS,
    HALVES,
    INTEGERS,
    SIGNED,
    UNSIGNED,
    Operation,
    one_of,
    refuse,
    take,
    type_of,
)

_EQUALITY = {"eq": np.equal, "ne": np.not_equal}
_ORDER = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
_UNSIGNED_ORDER = dict(zip(("lo", "ls", "hi", "hs"), _ORDER.values(), strict=True))
_JOIN = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def _unordered(a, b):
    return np.isnan(a) | np.isnan(b)


def _or_unordered(function: Callable) -> Callable:
    return lambda a, b: function(a, b) | _unordered(a, b)


# Comparisons with NaN are false, but true with the suffix u. numpy's != is true for NaN.
_FLOAT_COMPARISONS = {
    **_EQUALITY,
    **_ORDER,
    "ne": lambda a, b: (a != b) & ~_unordered(a, b),
    **{f"{name}u": _or_unordered(function) for name, function in (_EQUALITY | _ORDER).items()},
    "nan": _unordered,
    "num": lambda a, b: ~_unordered(a, b),
}
_COMPARISONS = {
    **dict.fromkeys(BITS, _EQUALITY),
    **dict.fromkeys(SIGNED, _EQUALITY | _ORDER),
    **dict.fromkeys(UNSIGNED, _EQUALITY | _ORDER | _UNSIGNED_ORDER),
    **dict.fromkeys(("f32", "f64", *HALVES), _FLOAT_COMPARISONS),
}


def _compare(kinds):
    """setp: a comparison, optionally combined with a predicate; two for a pair of halves."""
    is_pair = bool(kinds) and kinds[-1] in ("f16x2", "bf16x2")
    if is_pair:
        kinds[-1] = kinds[-1].removesuffix("x2")
    kind = type_of(kinds, *_COMPARISONS)
    compare = _COMPARISONS[kind][one_of(kinds, *_COMPARISONS[kind])]
    register = BITS.get(kind, kind)
    if kind in HALVES:
        widen, _, flush = HALVES[kind]
        compare, register = _of(compare, widen), "u16"
    else:
        flush = flushed
    if kind in ("f32", "f16") and take(kinds, "ftz"):
        compare = _of(compare, flush)
    sources = (register, register)
    join = take(kinds, *_JOIN)
    if join:
        compare, sources = _joined(compare, _JOIN[join]), (*sources, "pred")
    if is_pair:
        return Operation(_of_both_halves(compare), "pred", ("u32", "u32", *sources[2:]), results=2)
    return Operation(compare, "pred", sources)


def _joined(compare: Callable, combine: Callable) -> Callable:
    return lambda a, b, other: combine(compare(a, b), other)


def _of_both_halves(compare: Callable) -> Callable:
    """Compare the low halves and the high halves."""

    def compute(a, b, *other):
        return tuple(
            compare(*((x >> np.uint32(at)).astype(np.uint16) for x in (a, b)), *other)
            for at in (0, 16)
        )

    return compute


def _of(function: Callable, prepare: Callable) -> Callable:
    return lambda a, b: function(prepare(a), prepare(b))


def _compare_to_number(kinds):
    """set: the same with a number as the result: for true, all ones or 1.0."""
    if len(kinds) < 2:
        refuse("set without two types")
    true = {"u32": np.uint32(0xFFFFFFFF), "s32": np.int32(-1), "f32": np.float32(1)}
    result = kinds.pop(-2)
    if result not in true:
        refuse(f"set of type {result}")
    comparison, yes = _compare(kinds), true[result]
    zero = yes.dtype.type(0)
    return Operation(
        lambda *values: np.where(comparison.compute(*values), yes, zero),
        result,
        comparison.sources,
    )


def _select(kinds):
    kind = type_of(kinds, *BITS, *INTEGERS, "f32", "f64")
    kind = BITS.get(kind, kind)
    return Operation(lambda a, b, choose: np.where(choose, a, b), kind, (kind, kind, "pred"))


def _select_by_sign(kinds):
    """slct: the first where the third is >= 0, otherwise, and for NaN, the second."""
    by = type_of(kinds, "s32", "f32")
    flush = by == "f32" and take(kinds, "ftz")
    kind = type_of(kinds, *BITS, *INTEGERS, "f32", "f64")
    kind = BITS.get(kind, kind)

    def compute(a, b, c):
        return np.where((flushed(c) if flush else c) >= 0, a, b)

    return Operation(compute, kind, (kind, kind, by))


MAKERS = {
    "setp": _compare,
    "set": _compare_to_number,
    "selp": _select,
    "slct": _select_by_sign,
}
