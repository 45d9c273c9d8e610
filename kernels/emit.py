"""Print a cell as Triton functions: its step, its sources, and their vector-Jacobian products.

PyTorch does the calculus (``fused_rnn.trace``); this file knows how each pointwise operation is
written in Triton, and says which one it does not know.
"""

from __future__ import annotations

import functools
import linecache
import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .. import trace
from ..cells import Cell
from . import pointwise

aten = torch.ops.aten


@dataclass(frozen=True)
class Emitted:
    """The printed functions of a cell.

    Every argument is a tuple of blocks of one shape, except ``t``, a scalar; each returns a flat
    tuple, ``source`` one block. A vjp returns the gradients of gates, states, params, streams.
    """

    source_text: str
    step: triton.JITFunction  # (pre, state, params, streams, t)
    step_vjp: triton.JITFunction  # (pre, state, params, streams, t, dstate)
    source: triton.JITFunction  # (STAGE, pre, state, params, streams, t)
    source_vjp: triton.JITFunction  # (STAGE, pre, state, params, streams, t, dsource)


# The functions that printed cells call, by the form of the activations.
_CALLED = {
    "exact": {"sigmoid": pointwise.sigmoid, "tanh": pointwise.tanh},
    "half": {"sigmoid": pointwise.sigmoid, "tanh": pointwise.tanh_half},
    "fast": {"sigmoid": pointwise.sigmoid_fast, "tanh": pointwise.tanh_fast},
}


@functools.cache
def emit(cell: Cell, form: str = "exact") -> Emitted:
    """Print ``cell``.

    Args:
        form: of the activations, one of ``activations.FORMS``. The text is the same; it calls other
            functions.

    Raises:
        NotImplementedError: an operation that the table below lacks; names it.
    """
    stages = range(len(cell.stages))
    texts = [_print(cell, "step", 0, "step"), _print(cell, "step_vjp", 0, "step_vjp")]
    for part in ("source", "source_vjp"):
        texts += [_print(cell, part, s, f"{part}_{s}") for s in stages]
        texts.append(_dispatch(part, stages))
    text = f"# Cell {cell.name!r}, printed by fused_rnn.\n\n\n" + "\n\n".join(texts)
    # Triton reads a function's source through inspect, which asks linecache.
    file = f"<fused_rnn {cell.key} {form}>"
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    space = {"__name__": __name__, "triton": triton, "tl": tl, "remainder": pointwise.remainder}
    space |= _CALLED[form]
    exec(compile(text, file, "exec"), space)
    return Emitted(text, *(space[name] for name in ("step", "step_vjp", "source", "source_vjp")))


def _print(cell: Cell, part: str, stage: int, name: str) -> str:
    """One traced function as a Triton function."""
    graph = trace.graph(cell, part, stage, decompose=True).graph
    sizes = trace.group_sizes(cell, part, stage)
    groups = [*trace.ARGUMENTS, "cotangents"][: len(sizes) if part.endswith("_vjp") else -1]
    places = [
        group if group == "t" else f"{group}[{i}]"
        for group, size in zip(groups, sizes, strict=False)
        for i in range(size)
    ]
    lines = [f"@triton.jit\ndef {name}({', '.join(groups)}):"]
    written = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            written[node] = places.pop(0)
        elif node.op == "call_function":
            # The prefix keeps a node called sigmoid from hiding the function of that name.
            written[node] = f"v_{node.name}"
            lines.append(f"    v_{node.name} = {_write(node, written, cell)}")
        elif node.op == "output":
            values = [written[value] for value in node.args[0]]
            single = part == "source" and len(values) == 1
            lines.append("    return " + (values[0] if single else f"({', '.join(values)},)"))
    return "\n".join(lines) + "\n"


def _dispatch(part: str, stages: range) -> str:
    """The function that picks the source of a stage at compile time."""
    arguments = ", ".join(trace.ARGUMENTS) + (", cotangents" if part.endswith("_vjp") else "")
    lines = [f"@triton.jit\ndef {part}(STAGE: tl.constexpr, {arguments}):"]
    for s in stages:
        lines.append(f"    {'if' if s == 0 else 'elif'} STAGE == {s}:")
        lines.append(f"        return {part}_{s}({arguments})")
    return "\n".join(lines) + "\n"


def _write(node, written, cell: Cell) -> str:
    pattern = _OPERATIONS.get(node.target)
    if pattern is None:
        raise NotImplementedError(
            f"cell {cell.name!r}: the printer does not know how to write {node.target} in Triton; "
            "write the step with other pointwise operations, or use another backend"
        )
    if node.kwargs.get("alpha", 1) != 1:
        raise NotImplementedError(f"cell {cell.name!r}: {node.target} with alpha")

    def word(value):
        if isinstance(value, torch.fx.Node):
            return written[value]
        if isinstance(value, float) and not math.isfinite(value):
            return f'float("{value}")'
        return repr(value)

    if callable(pattern):
        return pattern(*(word(value) for value in node.args))
    return pattern.format(*(word(value) for value in node.args))


def _clamp(x, low="None", high="None"):
    # Comparisons, since tl.minimum and tl.maximum would drop a NaN.
    x = x if low == "None" else f"tl.where({x} < {low}, {low}, {x})"
    return x if high == "None" else f"tl.where({x} > {high}, {high}, {x})"


def _full(like, value):
    zeros = f"tl.zeros_like({like})"
    return zeros if float(value) == 0 else f"({zeros} + {value})"


def _power(x, exponent):
    if float(exponent) in (2.0, 3.0, 4.0):
        return "(" + " * ".join([x] * int(float(exponent))) + ")"
    if float(exponent) == 0.5:
        return f"tl.sqrt({x})"
    return f"tl.exp({exponent} * tl.log({x}))"


# How each pointwise operation is written in Triton, by what make_fx records. `{i}` is argument i.
_OPERATIONS = {
    aten.sigmoid.default: "sigmoid({0})",
    aten.tanh.default: "tanh({0})",
    aten.relu.default: "tl.where({0} < 0, 0.0, {0})",
    aten.exp.default: "tl.exp({0})",
    aten.log.default: "tl.log({0})",
    aten.log1p.default: "tl.log(1.0 + {0})",
    aten.sqrt.default: "tl.sqrt({0})",
    aten.rsqrt.default: "(1.0 / tl.sqrt({0}))",
    aten.sin.default: "tl.sin({0})",
    aten.cos.default: "tl.cos({0})",
    aten.erf.default: "tl.erf({0})",
    aten.abs.default: "tl.abs({0})",
    aten.neg.default: "(-{0})",
    aten.floor.default: "tl.floor({0})",
    aten.reciprocal.default: "(1.0 / {0})",
    aten.sign.default: "tl.where({0} > 0, 1.0, tl.where({0} < 0, -1.0, {0}))",
    aten.pow.Tensor_Scalar: _power,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.remainder.Tensor: "remainder({0}, {1})",
    aten.remainder.Scalar: "remainder({0}, {1})",
    aten.rsub.Scalar: "({1} - {0})",
    aten.maximum.default: "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    aten.minimum.default: "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    aten.where.self: "tl.where({0}, {1}, {2})",
    aten.logical_and.default: "({0} & {1})",
    aten.logical_or.default: "({0} | {1})",
    aten.logical_not.default: "({0} == 0)",
    aten.zeros_like.default: "tl.zeros_like({0})",
    aten.ones_like.default: "(tl.zeros_like({0}) + 1.0)",
    aten.full_like.default: _full,
    aten.scalar_tensor.default: "{0}",
    aten._to_copy.default: "{0}",
}
_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/",
    "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
}  # fmt: skip
_OPERATIONS |= {
    getattr(getattr(aten, name), overload): f"({{0}} {symbol} {{1}})"
    for name, symbol in _INFIX.items()
    for overload in ("Tensor", "Scalar")
}
