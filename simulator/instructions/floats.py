"""Pointwise instructions on floats: float32 and float64 by numpy, halves through float32.

Functions that hardware approximates (``.approx``, ``.full``) are computed as exactly as the type
allows; the results of a GPU differ from these within the bounds of the PTX ISA.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .formats import directed_fma32, flushed, fma32, fma64, fma_to_odd
from .operations import HALVES, Operation, one_of, refuse, same, take, type_of

_SMALL = ("f16", "f16x2", "bf16", "bf16x2")
_FLOATS = ("f32", "f64", *_SMALL)


def _float(
    kinds: list[str],
    function: Callable,
    sources: int,
    types: tuple[str, ...] = _FLOATS,
    saturates: bool = False,
) -> Operation:
    """Make an operation on a type of floats from a function of float32 and float64 values."""
    kind = type_of(kinds, *types)
    if saturates and kind in ("f32", "f16", "f16x2") and take(kinds, "sat"):
        function = _saturating(function)
    flush = kind != "f64" and take(kinds, "ftz")
    if kind in ("f32", "f64"):
        return same(_flushing(function, flushed) if flush else function, kind, sources)
    widen, narrow, flush_bits = HALVES[kind.removesuffix("x2")]

    # Rounding in float32 first does no harm: it has more than twice as many bits.
    def on_bits(*halves):
        return narrow(function(*map(widen, halves)))

    if flush:
        on_bits = _flushing(on_bits, flush_bits)
    if kind.endswith("x2"):
        return same(_on_pairs(on_bits), "u32", sources)
    return same(on_bits, "u16", sources)


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


_DIRECTED = ("rz", "rm", "rp")


def _rounding(function: Callable, as_fma: Callable) -> Callable:
    """add, sub and mul; ``as_fma`` makes an fma of them, for the directed roundings."""

    def make(kinds):
        rounding = take(kinds, *_DIRECTED)
        if rounding:
            return _float(
                kinds, lambda a, b: directed_fma32(*as_fma(a, b), rounding), 2, ("f32",), True
            )
        take(kinds, "rn")  # the default, and what numpy does
        return _float(kinds, function, 2, saturates=True)

    return make


def _fused_multiply_add(kinds):
    rounding = one_of(kinds, "rn", *_DIRECTED)
    if rounding != "rn":
        return _float(kinds, lambda a, b, c: directed_fma32(a, b, c, rounding), 3, ("f32",), True)
    function = {"f32": fma32, "f64": fma64}.get(kinds[-1] if kinds else "", fma_to_odd)
    return _float(kinds, function, 3, saturates=True)


def _multiply_add(kinds):
    """mad, which does not exist for halves."""
    if kinds[-1] in _SMALL:
        refuse(f"mad of {kinds[-1]}")
    return _fused_multiply_add(kinds)


def _divide(kinds):
    # .approx and .full may err by 2 units in the last place; here they do not.
    one_of(kinds, *(("rn",) if kinds[-1] == "f64" else ("rn", "approx", "full")))
    return _float(kinds, np.divide, 2, ("f32", "f64"))


def _sign(function: Callable) -> Callable:
    """neg and abs."""
    return lambda kinds: _float(kinds, function, 1)


def _extreme(function: Callable, of_zeros: Callable) -> Callable:
    """min and max: +0 is larger than -0; NaN is returned only with .NaN, or if both are NaN."""

    def with_nan(a, b):
        return np.where((a == 0) & (b == 0), of_zeros(a, b), function(a, b))

    def of_numbers(a, b):
        # Not numpy's fmin: its result for a signaling NaN depends on the CPU.
        return np.where(np.isnan(a), b, np.where(np.isnan(b), a, with_nan(a, b)))

    return lambda kinds: _float(kinds, with_nan if take(kinds, "NaN") else of_numbers, 2)


def _approximated(function: Callable, *types: str) -> Callable:
    """Functions that exist as .approx only; they are computed in float64 and rounded."""

    def compute(x):
        return function(x.astype(np.float64)).astype(x.dtype)

    def make(kinds):
        one_of(kinds, "approx")
        return _float(kinds, compute, 1, types)

    return make


def _rounded(function: Callable) -> Callable:
    """rcp and sqrt: numpy rounds them correctly, so .approx does here too."""

    def make(kinds):
        one_of(kinds, *(("rn",) if kinds[-1] == "f64" else ("rn", "approx")))
        return _float(kinds, function, 1, ("f32", "f64"))

    return make


def _or_upper_half(make: Callable, function: Callable) -> Callable:
    """rcp and rsqrt, whose .approx.ftz.f64 reads and returns only the upper 32 bits."""
    upper = np.uint64(0xFFFFFFFF00000000)

    def compute(x):
        x = (x.view(np.uint64) & upper).view(np.float64)
        result = function(np.where(np.abs(x) < np.finfo(np.float64).tiny, 0 * x, x))
        result = np.where(
            np.abs(result) < np.finfo(np.float64).tiny, np.copysign(0.0, result), result
        )
        return (result.view(np.uint64) & upper).view(np.float64)

    def make_either(kinds):
        if kinds == ["approx", "ftz", "f64"]:
            kinds.clear()
            return same(compute, "f64", 1)
        return make(kinds)

    return make_either


def _reciprocal_root(x):
    return np.reciprocal(np.sqrt(x))


def _copy_sign(kinds):
    return same(lambda sign, value: np.copysign(value, sign), type_of(kinds, "f32", "f64"), 2)


def _test_property(kinds):
    kind = type_of(kinds, "f32", "f64")
    tiny = np.finfo(np.float32 if kind == "f32" else np.float64).tiny
    tests = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & ((np.abs(a) >= tiny) | (a == 0)),  # zeros too
        "subnormal": lambda a: (np.abs(a) < tiny) & (a != 0),
    }
    return Operation(tests[one_of(kinds, *tests)], "pred", (kind,))


MAKERS = {
    "add": _rounding(np.add, lambda a, b: (a, np.float32(1), b)),
    "sub": _rounding(np.subtract, lambda a, b: (a, np.float32(1), -b)),
    "mul": _rounding(
        # A zero of the product's sign changes nothing.
        np.multiply,
        lambda a, b: (a, b, np.copysign(np.float32(0), a) * np.copysign(1, b)),
    ),
    "mad": _multiply_add,
    "fma": _fused_multiply_add,
    "div": _divide,
    "abs": _sign(np.abs),
    "neg": _sign(np.negative),
    "min": _extreme(np.minimum, of_zeros=lambda a, b: -(-a - b)),
    "max": _extreme(np.maximum, of_zeros=np.add),
    "rcp": _or_upper_half(_rounded(np.reciprocal), np.reciprocal),
    "sqrt": _rounded(np.sqrt),
    "rsqrt": _or_upper_half(_approximated(_reciprocal_root, "f32", "f64"), _reciprocal_root),
    "ex2": _approximated(np.exp2, "f32", *_SMALL),
    "lg2": _approximated(np.log2, "f32"),
    "sin": _approximated(np.sin, "f32"),
    "cos": _approximated(np.cos, "f32"),
    "tanh": _approximated(np.tanh, "f32", *_SMALL),
    "copysign": _copy_sign,
    "testp": _test_property,
}
