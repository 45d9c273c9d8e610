"""The text of each pointwise operation: one table, with a column for each language.

A value is a number of the dtype of the arithmetic, or a boolean; the graph says which. Operands are
cast before an operation is written, as PyTorch does, so no pattern has to handle promotion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from .languages import Language

aten = torch.ops.aten


class Operation(NamedTuple):
    """A row of the table.

    Args:
        triton, c: patterns, in which `{i}` is argument i; or functions of the language, the dtype
            of the arithmetic, and the arguments (expressions as strings, constants as numbers).
        operands: what they are cast to. "result": the dtype of the result; "common": the dtype
            that they promote to; "boolean": bool; "choice": the first to bool, the others as
            "result"; "own": none is cast.
        booleans: the pattern for booleans, by the name of an attribute of ``Language``; None: it
            computes with 1 and 0.
    """

    triton: str | Callable
    c: str | Callable
    operands: str = "result"
    booleans: str | None = None


# Functions of the language, the dtype, and arguments.


def word(language: Language, dtype: torch.dtype, value: Any) -> str:
    """A value of a graph in a language: text that is printed already, or a number."""
    return value if isinstance(value, str) else language.number(value, dtype)


def _argument(language, dtype, value):
    return value if isinstance(value, str) else language.argument(value, dtype)


def _clamp(language, dtype, x, low=None, high=None, *, min=None, max=None):
    low, high = min if low is None else low, max if high is None else high
    # Comparisons, since tl.minimum and tl.maximum would drop a NaN.
    for bound, symbol in ((low, "<"), (high, ">")):
        if bound is not None:
            bound = word(language, dtype, bound)
            x = language.choose(f"{x} {symbol} {bound}", bound, x)
    return x


def _clamp_max(language, dtype, x, high):
    return _clamp(language, dtype, x, None, high)


def _relu(language, dtype, x):
    return language.choose(f"{x} < 0", language.number(0, dtype), x)


def _sign(language, dtype, x):
    one, minus, zero = (language.number(n, dtype) for n in (1, -1, 0))
    return language.choose(f"{x} > 0", one, language.choose(f"{x} < 0", minus, zero))


def _sum(symbol):
    def write(language, dtype, a, b, alpha=1):
        a, b = (word(language, dtype, v) for v in (a, b))
        scale = "" if alpha == 1 else f"{language.number(alpha, dtype)} * "
        return f"({a} {symbol} {scale}{b})"

    return write


def _reversed_difference(language, dtype, a, b, alpha=1):
    return _sum("-")(language, dtype, b, a, alpha)


def _quotient(language, dtype, a, b, rounding_mode=None):
    a, b = (_argument(language, dtype, v) for v in (a, b))
    if rounding_mode == "floor":
        return f"floor_quotient({a}, {b})"
    return f"({a} / {b})" if rounding_mode is None else f"truncated({a} / {b})"


def _of_arguments(name):
    def write(language, dtype, *values):
        return f"{name}({', '.join(_argument(language, dtype, v) for v in values)})"

    return write


def _rounded_to_decimals(language, dtype, x, decimals=0):
    if decimals == 0:
        return f"rounded({x})"
    scale = language.number(10.0 ** abs(decimals), dtype)
    up, down = ("*", "/") if decimals > 0 else ("/", "*")
    return f"(rounded({x} {up} {scale}) {down} {scale})"


# For larger exponents the general power costs less.
_MOST_PRODUCTS = 32


def _power(language, dtype, x, exponent):
    if isinstance(exponent, str):
        return f"power({x}, {exponent})"
    number = float(exponent)
    if number == 0:
        return filled(language, dtype, x, 1, dtype)  # for NaN as well
    if number.is_integer() and abs(number) <= _MOST_PRODUCTS:
        product = _products(x, int(abs(number)))
        return product if number > 0 else f"({language.number(1, dtype)} / {product})"
    if abs(number) == 0.5:
        root = f"{language.library}sqrt({x})"
        return root if number > 0 else f"({language.number(1, dtype)} / {root})"
    return f"power({x}, {language.argument(number, dtype)})"


def _products(x, count):
    if count == 1:
        return x
    half = _products(x, count // 2)
    return f"({half} * {half}{f' * {x}' if count % 2 else ''})"


def _exponential(language, dtype, base, x):
    if float(base) == 2:
        return f"{language.library}exp2({x})"
    return f"power({language.argument(base, dtype)}, {x})"


def _with_sign_of(language, dtype, x, number):
    function = "copysign" if language.name == "Triton" else "std::copysign"
    return f"{function}({x}, {language.argument(number, dtype)})"


# Derivatives with corners: the direction of the comparisons decides their value at NaN.


def _shrink_vjp(language, dtype, gradient, x, size):
    size, zero = language.number(size, dtype), language.number(0, dtype)
    outside = language.either.format(f"({x} < -{size})", f"({x} > {size})")
    return language.choose(outside, gradient, zero)


def _hardtanh_vjp(language, dtype, gradient, x, low, high):
    low, high = language.number(low, dtype), language.number(high, dtype)
    inside = language.both.format(f"({x} > {low})", f"({x} < {high})")
    return language.choose(inside, gradient, language.number(0, dtype))


def _hardswish_vjp(language, dtype, gradient, x):
    third, half = language.number(1 / 3, dtype), language.number(0.5, dtype)
    middle = f"{gradient} * ({x} * {third} + {half})"
    below = language.choose(f"{x} <= -3", language.number(0, dtype), middle)
    return language.choose(f"{x} >= 3", gradient, below)


def _hardsigmoid_vjp(language, dtype, gradient, x):
    # PyTorch's own 1/6 has the digits of float32, in float64 too.
    sixth = language.number(torch.tensor(1 / 6, dtype=torch.float32).item(), dtype)
    inside = language.both.format(f"({x} > -3)", f"({x} < 3)")
    return language.choose(inside, f"{gradient} * {sixth}", language.number(0, dtype))


def _full(number=None):
    def write(language, dtype, like, value=None, *, source):
        return filled(language, dtype, like, value if number is None else number, source)

    return write


def filled(
    language: Language, dtype: torch.dtype, like: str, value: Any, source: torch.dtype
) -> str:
    """A number in the shape of ``like``, whose dtype is ``source``."""
    if language.name == "C":
        return language.number(value, dtype)
    zeros = f"zeros_like({like})"
    if dtype == torch.bool:
        return f"({zeros} {'==' if value else '!='} 0)"
    if dtype != source:
        zeros = language.cast(zeros, dtype)
    return zeros if value == 0 else f"({zeros} + {language.number(value, dtype)})"


def _cast(language, dtype, x, *, source):
    return x if dtype == source else language.cast(x, dtype)


def _shared(write, **options):
    """One function for both languages."""
    return Operation(write, write, **options)


def _own(name, arguments=1):
    """A function that pointwise.py and pointwise.h have under the same name, or include."""
    return _shared_pattern(name + _call(arguments))


def _standard(name, arguments=1):
    """A function that pointwise.py and C's library have."""
    return Operation(name + _call(arguments), f"std::{name}{_call(arguments)}")


def _everywhere(name, **options):
    """A function that the libraries of both languages have."""
    return Operation(f"tl.{name}({{0}})", f"std::{name}({{0}})", **options)


def _call(arguments):
    return f"({', '.join(f'{{{i}}}' for i in range(arguments))})"


def _shared_pattern(pattern, **options):
    return Operation(pattern, pattern, **options)


def _infix(symbol, **options):
    return _shared_pattern(f"({{0}} {symbol} {{1}})", **options)


def _extreme(name, **options):
    return Operation(
        f"tl.{name}({{0}}, {{1}}, propagate_nan=tl.PropagateNan.ALL)",
        f"{name}({{0}}, {{1}})",
        **options,
    )


_ASKED = {"operands": "common"}  # a boolean, of operands cast to their common dtype
_OWN = {"operands": "own"}

# The table, by the recorded operation.
OPERATIONS = {
    aten.sigmoid.default: _own("sigmoid"),
    aten.tanh.default: _own("tanh"),
    aten.relu.default: _shared(_relu),
    aten.exp.default: Operation("tl.exp({0})", "exp({0})"),
    aten.exp2.default: _everywhere("exp2"),
    aten.expm1.default: _own("expm1"),
    aten.log.default: Operation("tl.log({0})", "log({0})"),
    aten.log2.default: _everywhere("log2"),
    aten.log10.default: _standard("log10"),
    aten.log1p.default: _own("log1p"),
    aten.sqrt.default: _everywhere("sqrt"),
    aten.rsqrt.default: Operation("(1.0 / tl.sqrt({0}))", "(1 / std::sqrt({0}))"),
    aten.sin.default: _everywhere("sin"),
    aten.cos.default: _everywhere("cos"),
    aten.tan.default: _standard("tan"),
    aten.asin.default: _standard("asin"),
    aten.acos.default: _standard("acos"),
    aten.atan.default: _standard("atan"),
    aten.atan2.default: _standard("atan2", 2),
    aten.sinh.default: _standard("sinh"),
    aten.cosh.default: _standard("cosh"),
    aten.asinh.default: _standard("asinh"),
    aten.acosh.default: _standard("acosh"),
    aten.atanh.default: _standard("atanh"),
    aten.erf.default: _everywhere("erf"),
    aten.erfc.default: _standard("erfc"),
    aten.hypot.default: _standard("hypot", 2),
    aten.copysign.Tensor: _standard("copysign", 2),
    aten.copysign.Scalar: _shared(_with_sign_of),
    aten.abs.default: _everywhere("abs"),
    aten.neg.default: _shared_pattern("(-{0})"),
    aten.floor.default: _everywhere("floor"),
    aten.ceil.default: _everywhere("ceil"),
    aten.trunc.default: _own("truncated"),
    aten.round.default: _own("rounded"),
    aten.round.decimals: _shared(_rounded_to_decimals),
    aten.reciprocal.default: Operation("(1.0 / {0})", "(1 / {0})"),
    aten.sign.default: _shared(_sign),
    aten.sgn.default: _shared(_sign),
    aten.pow.Tensor_Scalar: _shared(_power),
    aten.pow.Tensor_Tensor: _shared(_power),
    aten.pow.Scalar: _shared(_exponential),
    aten.mul.Tensor: _infix("*", booleans="both"),
    aten.mul.Scalar: _infix("*", booleans="both"),
    aten.div.Tensor: _infix("/"),
    aten.div.Scalar: _infix("/"),
    aten.div.Tensor_mode: _shared(_quotient),
    aten.div.Scalar_mode: _shared(_quotient),
    aten.add.Tensor: _shared(_sum("+"), booleans="either"),
    aten.add.Scalar: _shared(_sum("+"), booleans="either"),
    aten.sub.Tensor: _shared(_sum("-")),
    aten.sub.Scalar: _shared(_sum("-")),
    aten.rsub.Tensor: _shared(_reversed_difference),
    aten.rsub.Scalar: _shared(_reversed_difference),
    aten.remainder.Tensor: _shared(_of_arguments("remainder")),
    aten.remainder.Scalar: _shared(_of_arguments("remainder")),
    aten.remainder.Scalar_Tensor: _shared(_of_arguments("remainder")),
    aten.fmod.Tensor: _shared(_of_arguments("fmod")),
    aten.fmod.Scalar: _shared(_of_arguments("fmod")),
    aten.softshrink_backward.default: _shared(_shrink_vjp),
    aten.hardshrink_backward.default: _shared(_shrink_vjp),
    aten.hardtanh_backward.default: _shared(_hardtanh_vjp),
    aten.hardsigmoid_backward.default: _shared(_hardsigmoid_vjp),
    aten.hardswish_backward.default: _shared(_hardswish_vjp),
    aten.clamp.default: _shared(_clamp),
    aten.clamp_min.default: _shared(_clamp),
    aten.clamp_max.default: _shared(_clamp_max),
    aten.maximum.default: _extreme("maximum", booleans="either"),
    aten.minimum.default: _extreme("minimum", booleans="both"),
    aten.fmax.default: Operation(
        "tl.where(({0} > {1}) | ({1} != {1}), {0}, {1})", "std::fmax({0}, {1})"
    ),
    aten.fmin.default: Operation(
        "tl.where(({0} < {1}) | ({1} != {1}), {0}, {1})", "std::fmin({0}, {1})"
    ),
    aten.where.self: Operation("tl.where({0}, {1}, {2})", "({0} ? {1} : {2})", operands="choice"),
    aten.isnan.default: _shared_pattern("({0} != {0})", **_ASKED),
    aten.isinf.default: Operation(
        '(tl.abs({0}) == float("inf"))', "(std::fabs({0}) == INFINITY)", operands="common"
    ),
    aten.isfinite.default: Operation(
        '(tl.abs({0}) < float("inf"))', "(std::fabs({0}) < INFINITY)", operands="common"
    ),
    aten.signbit.default: Operation(
        "(copysign(zeros_like({0}) + 1, {0}) < 0)",
        "(std::copysign(1, {0}) < 0)",
        operands="common",
    ),
    aten.zeros_like.default: _shared(_full(0), **_OWN),
    aten.ones_like.default: _shared(_full(1), **_OWN),
    aten.full_like.default: _shared(_full(), **_OWN),
    aten._to_copy.default: _shared(_cast, **_OWN),
    aten.logical_not.default: _shared_pattern("", operands="boolean", booleans="invert"),
    aten.bitwise_not.default: _shared_pattern("", operands="boolean", booleans="invert"),
}
for _name, _symbol in (
    ("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="),
):  # fmt: skip
    for _overload in ("Tensor", "Scalar"):
        OPERATIONS[getattr(getattr(aten, _name), _overload)] = _infix(_symbol, **_ASKED)
for _name, _booleans in (("and", "both"), ("or", "either"), ("xor", "differ")):
    _of_booleans = _shared_pattern("", operands="boolean", booleans=_booleans)
    OPERATIONS[getattr(aten, f"logical_{_name}").default] = _of_booleans
    for _overload in ("Tensor", "Scalar"):
        OPERATIONS[getattr(getattr(aten, f"bitwise_{_name}"), _overload)] = _of_booleans
