"""How each pointwise operation is written: one table, a column for each language."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from .. import trace
from ..cells import Cell

aten = torch.ops.aten


class Language(NamedTuple):
    """
    Args:
        name: in messages; in lower case that of its column.
        constant: writes a number.
        advice: what to do about an operation that is not in the table.
    """

    name: str
    constant: Callable[[float | int | bool], str]
    advice: str = "write the step with other pointwise operations, or use another backend"

    def write(self, node: torch.fx.Node, words: dict, cell: Cell) -> str:
        """One operation of a graph; ``words``: what its arguments are called.

        Raises:
            NotImplementedError: the table below lacks it; names it.
        """
        operation = OPERATIONS.get(node.target)
        if operation is None:
            raise NotImplementedError(
                f"cell {cell.name!r}: the printer does not know how to write {node.target} in "
                f"{self.name}; {self.advice}"
            )
        pattern = getattr(operation, self.name.lower())
        values = [words.get(v, v) if isinstance(v, torch.fx.Node) else v for v in node.args]
        if any(isinstance(v, torch.fx.Node) for v in values):
            raise NotImplementedError(
                f"cell {cell.name!r}: the printer cannot write a tensor that is no argument of the "
                "step; make it a number, or one of the cell's params"
            )
        if callable(pattern):
            options = {k: v for k, v in node.kwargs.items() if k in ("alpha", "rounding_mode")}
            return pattern(*values, **options)
        return pattern.format(*(v if isinstance(v, str) else self.constant(v) for v in values))


def statements(cell: Cell, part: str, stage: int, places: list[str], language: Language):
    """A traced function in a language, operation by operation.

    Args:
        part, stage: see ``trace.graph``.
        places: what its arguments are called, flattened.

    Returns:
        The pairs of a name and what it is assigned; and the names of the results.
    """
    words, lines = {}, []
    graph = trace.graph(cell, part, stage, decompose=True, dtype=torch.float64).graph
    arguments = iter(places)
    for node in graph.nodes:
        if node.op == "placeholder":
            words[node] = next(arguments)
        elif node.op == "call_function":
            # The prefix keeps a node called sigmoid from hiding the function of that name.
            lines.append((f"v_{node.name}", language.write(node, words, cell)))
            words[node] = f"v_{node.name}"
        elif node.op == "output":
            return lines, [words[value] for value in node.args[0]]


class Operation(NamedTuple):
    """Patterns, `{i}` being argument i; or functions of words and numbers."""

    triton: str | Callable
    c: str | Callable


def _triton_clamp(x, low=None, high=None):
    # Comparisons, since tl.minimum and tl.maximum would drop a NaN.
    x = x if low is None else f"tl.where({x} < {low}, {low}, {x})"
    return x if high is None else f"tl.where({x} > {high}, {high}, {x})"


def _c_clamp(x, low=None, high=None):
    x = x if low is None else f"({x} < {c_constant(low)} ? {c_constant(low)} : {x})"
    return x if high is None else f"({x} > {c_constant(high)} ? {c_constant(high)} : {x})"


def _triton_full(like, value):
    zeros = f"tl.zeros_like({like})"
    return zeros if float(value) == 0 else f"({zeros} + {triton_constant(float(value))})"


def _c_full(like, value):
    return c_constant(value)


def _power(square_root, other):
    def write(x, exponent):
        if float(exponent) in (2.0, 3.0, 4.0):
            return "(" + " * ".join([x] * int(exponent)) + ")"
        return (square_root if float(exponent) == 0.5 else other).format(x, exponent)

    return write


def _sum(symbol):
    def write_in(constant):
        def write(a, b, alpha=1):
            a, b = (v if isinstance(v, str) else constant(v) for v in (a, b))
            scale = "" if alpha == 1 else f"{constant(alpha)} * "
            return f"({a} {symbol} {scale}{b})"

        return write

    return Operation(write_in(triton_constant), write_in(c_constant))


def _rounded_quotient(floor, trunc):
    def write(a, b, rounding_mode):
        patterns = {"floor": floor, "trunc": trunc, None: "{0}"}
        return patterns[rounding_mode].format(f"({a} / {b})")

    return write


def _triton_shrink_vjp(gradient, x, size):
    return f"tl.where(({x} >= -{size}) & ({x} <= {size}), 0.0, {gradient})"


def _c_shrink_vjp(gradient, x, size):
    size = c_constant(size)
    return f"({x} >= -{size} && {x} <= {size} ? real(0) : {gradient})"


def _exponential(pattern):
    def write(base, x):
        if base <= 0:
            raise NotImplementedError(f"a power of {base}: the printer takes bases above zero")
        return pattern.format(math.log(base), x)

    return write


def triton_constant(value) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    return repr(value)


def c_constant(value) -> str:
    if isinstance(value, bool):
        return repr(value).lower()
    if math.isnan(value):
        return "real(NAN)"
    if math.isinf(value):
        return "real(INFINITY)" if value > 0 else "real(-INFINITY)"
    return f"real({value!r})"


TRITON = Language("Triton", triton_constant)
C = Language("C", c_constant)

_TRITON_TRUNC = "tl.where({0} < 0, tl.ceil({0}), tl.floor({0}))"

# By what make_fx records.
OPERATIONS = {
    aten.sigmoid.default: Operation("sigmoid({0})", "sigmoid({0})"),
    aten.tanh.default: Operation("tanh({0})", "tanh({0})"),
    aten.relu.default: Operation("tl.where({0} < 0, 0.0, {0})", "({0} < 0 ? real(0) : {0})"),
    aten.exp.default: Operation("tl.exp({0})", "exp({0})"),
    aten.log.default: Operation("tl.log({0})", "std::log({0})"),
    aten.exp2.default: Operation("tl.exp2({0})", "std::exp2({0})"),
    aten.expm1.default: Operation("expm1({0})", "std::expm1({0})"),
    aten.log2.default: Operation("tl.log2({0})", "std::log2({0})"),
    aten.log10.default: Operation("(0.4342944819032518 * tl.log({0}))", "std::log10({0})"),
    aten.log1p.default: Operation("tl.log(1.0 + {0})", "std::log1p({0})"),
    aten.sqrt.default: Operation("tl.sqrt({0})", "std::sqrt({0})"),
    aten.rsqrt.default: Operation("(1.0 / tl.sqrt({0}))", "(1 / std::sqrt({0}))"),
    aten.sin.default: Operation("tl.sin({0})", "std::sin({0})"),
    aten.cos.default: Operation("tl.cos({0})", "std::cos({0})"),
    aten.tan.default: Operation("(tl.sin({0}) / tl.cos({0}))", "std::tan({0})"),
    aten.sinh.default: Operation("sinh({0})", "std::sinh({0})"),
    aten.cosh.default: Operation("(0.5 * (tl.exp({0}) + tl.exp(-{0})))", "std::cosh({0})"),
    aten.erf.default: Operation("tl.erf({0})", "std::erf({0})"),
    aten.abs.default: Operation("tl.abs({0})", "std::fabs({0})"),
    aten.neg.default: Operation("(-{0})", "(-{0})"),
    aten.floor.default: Operation("tl.floor({0})", "std::floor({0})"),
    aten.ceil.default: Operation("tl.ceil({0})", "std::ceil({0})"),
    aten.trunc.default: Operation(_TRITON_TRUNC, "std::trunc({0})"),
    aten.reciprocal.default: Operation("(1.0 / {0})", "(1 / {0})"),
    aten.sign.default: Operation(
        "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, {0}))",
        "({0} > 0 ? real(1) : {0} < 0 ? real(-1) : {0})",
    ),
    aten.pow.Tensor_Scalar: Operation(
        _power("tl.sqrt({0})", "tl.exp({1} * tl.log({0}))"),
        _power("std::sqrt({0})", "std::pow({0}, real({1}))"),
    ),
    aten.pow.Scalar: Operation(
        _exponential("tl.exp({0!r} * {1})"), _exponential("exp(real({0!r}) * {1})")
    ),
    aten.div.Tensor_mode: Operation(
        _rounded_quotient("tl.floor({0})", _TRITON_TRUNC),
        _rounded_quotient("std::floor({0})", "std::trunc({0})"),
    ),
    aten.softshrink_backward.default: Operation(_triton_shrink_vjp, _c_shrink_vjp),
    aten.hardshrink_backward.default: Operation(_triton_shrink_vjp, _c_shrink_vjp),
    aten.clamp.default: Operation(_triton_clamp, _c_clamp),
    aten.clamp_min.default: Operation(_triton_clamp, _c_clamp),
    aten.remainder.Tensor: Operation("remainder({0}, {1})", "remainder({0}, {1})"),
    aten.remainder.Scalar: Operation("remainder({0}, {1})", "remainder({0}, {1})"),
    aten.rsub.Scalar: Operation("({1} - {0})", "({1} - {0})"),
    aten.maximum.default: Operation(
        "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)", "maximum({0}, {1})"
    ),
    aten.minimum.default: Operation(
        "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)", "minimum({0}, {1})"
    ),
    aten.where.self: Operation("tl.where({0}, {1}, {2})", "({0} ? {1} : {2})"),
    aten.isnan.default: Operation("({0} != {0})", "({0} != {0})"),
    aten.logical_and.default: Operation("({0} & {1})", "({0} && {1})"),
    aten.bitwise_and.Tensor: Operation("({0} & {1})", "({0} && {1})"),
    aten.logical_or.default: Operation("({0} | {1})", "({0} || {1})"),
    aten.bitwise_or.Tensor: Operation("({0} | {1})", "({0} || {1})"),
    aten.logical_not.default: Operation("({0} == 0)", "({0} == 0)"),
    aten.zeros_like.default: Operation("tl.zeros_like({0})", "real(0)"),
    aten.ones_like.default: Operation("(tl.zeros_like({0}) + 1.0)", "real(1)"),
    aten.full_like.default: Operation(_triton_full, _c_full),
    aten._to_copy.default: Operation("{0}", "{0}"),
}
_INFIX = {
    "mul": "*", "div": "/",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
}  # fmt: skip
OPERATIONS |= {
    getattr(getattr(aten, name), overload): Operation(*[f"({{0}} {symbol} {{1}})"] * 2)
    for name, symbol in _INFIX.items()
    for overload in ("Tensor", "Scalar")
}
OPERATIONS |= {
    getattr(getattr(aten, name), overload): _sum(symbol)
    for name, symbol in (("add", "+"), ("sub", "-"))
    for overload in ("Tensor", "Scalar")
}
