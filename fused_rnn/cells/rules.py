"""What the functions of a cell may be made of, checked while they are recorded.

A step and a source are pure pointwise functions of their arguments alone. ``Checking`` refuses an
operation that is not; ``first_difference`` finds what depends on circumstances.
"""

from __future__ import annotations

import ctypes
import itertools
import linecache
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, fx
from torch._ops import OpOverload as Operation
from torch.fx.node import map_aggregate

from .recorder import NEW, Recorder, is_of_user, is_tensor, line_of_user

aten = torch.ops.aten

# Operations that are pointwise though PyTorch does not tag them so.
_UNTAGGED = {
    aten._prelu_kernel.default,
    aten._to_copy.default,
    aten.alias.default,
    aten.clone.default,
    aten.copy_.default,
    aten.detach.default,
    aten.empty_like.default,
    aten.fill_.Scalar,
    aten.fill_.Tensor,
    aten.floor_divide.default,
    aten.full_like.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.lift_fresh_copy.default,
    aten.log_sigmoid_forward.default,
    aten.masked_fill.Tensor,
    aten.ones_like.default,
    aten.rsub.Scalar,
    aten.rsub.Tensor,
    aten.zero_.default,
    aten.zeros_like.default,
}


class Refused(ValueError):
    """Raised while a function is recorded that a cell may not have."""


class Checking(Recorder):
    """Records a function, and refuses operations that a cell may not have."""

    def __init__(self, where: str, arguments: Mapping[str, Tensor], vjp: bool):
        super().__init__(arguments)
        self._where, self._vjp = where, vjp

    def refuse(self, problem: str) -> NoReturn:
        raise Refused(f"{self._where}{describe(line_of_user())}: {problem}")

    def check_call(self, func: Operation, args: Sequence, kwargs: Mapping[str, Any]) -> None:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.refuse(
                f"{func} draws random numbers, and the backward would draw others; let a stream of "
                "the cell be a Bernoulli, or draw them outside and pass them as a stream"
            )
        if torch.Tag.data_dependent_output in func.tags and self._find(args[0]) is not None:
            self.refuse(
                f"{func} takes a number out of a tensor, as if, int(), float() and .item() do; it "
                "would be the same at every step from then on; use torch.where"
            )
        if func is aten.floor_divide.default and any(
            is_tensor(v) and v.requires_grad for v in args
        ):
            self.refuse(f"{func} has no derivative in PyTorch; write torch.floor(a / b)")
        if self._vjp and line_of_user() is None:
            return  # one of autograd's formulas
        if func in NEW:
            return
        tensors = [v for v in (*args, *kwargs.values()) if is_tensor(v)]
        lists = [v for v in args if isinstance(v, list | tuple) and any(map(is_tensor, v))]
        if not lists and all(self._find(v) is None for v in tensors):
            return
        if func._schema.is_mutable and "out" in kwargs:
            self.refuse(f"{func} writes to out; write y = ... instead")
        if func is aten._to_copy.default and args[0].is_floating_point():
            to = kwargs.get("dtype", self.dtype)
            if to.is_floating_point and to != self.dtype:
                self.refuse(
                    f"a cast to {to}, where the gates are {self.dtype}: a cell has one floating "
                    "dtype, that of its arguments; leave the cast out"
                )
        if torch.Tag.pointwise not in func.tags and func not in _UNTAGGED:
            self.refuse(
                f"{func} is not pointwise: each unit of each row is computed on its own, from the "
                "same unit of the arguments; a product goes into a stage of the cell, anything "
                "else that moves or mixes values outside of it"
            )

    def check_value(self, func: Operation, value: Tensor) -> None:
        if value.is_complex():
            self.refuse(f"{func} gives {value.dtype}; a cell has real numbers")

    def check_constant(self, tensor: Tensor) -> None:
        if self._vjp and line_of_user() is None:
            return
        shape = tuple(tensor.shape)
        if tensor.requires_grad:
            self.refuse(
                f"a tensor of shape {shape} that is no argument requires a gradient, which it "
                "would not get; make it one of the cell's params, or .detach() it"
            )
        if tensor.numel() != 1:
            self.refuse(
                f"a tensor of shape {shape} is no argument of the function; make it one of the "
                "cell's params or streams, or, where it holds one number, torch.full_like(pre[0], "
                "number)"
            )


def describe(line: tuple[str, int] | None) -> str:
    """The text for a line of code in a message."""
    if line is None:
        return ""
    file, number = line
    text = textwrap.shorten(linecache.getline(file, number), 80)
    return f", {file}:{number}" + (f" `{text}`" if text else "")


def line_of(error: BaseException) -> tuple[str, int] | None:
    """The innermost line of a user's code in a traceback."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if is_of_user(trace.tb_frame.f_code.co_filename):
            line = (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return line


def first_difference(one: fx.Graph, other: fx.Graph) -> list | None:
    """Compare two graphs, apart from ``detach``, since all values under no_grad are detached.

    Returns:
        None for equal graphs; else a list with the line of the first difference, or with None.
    """
    for a, b in itertools.zip_longest(words(one, True), words(other, True)):
        if a is None or b is None or a[0] != b[0]:
            nodes = [pair[1] for pair in (a, b) if pair is not None]
            return [next(filter(None, (node.meta.get("line") for node in nodes)), None)]
    return None


def words(graph: fx.Graph, rounded: bool = False) -> Iterator[tuple[str, fx.Node]]:
    """Describe a graph, node by node, apart from ``detach``.

    Args:
        rounded: leave out what depends on the dtype: casts between floating dtypes, and digits of
            numbers beyond float32, which a function may have computed them in.
    """
    numbers, count = {}, 0
    for node in graph.nodes:
        cast = rounded and node.target is aten._to_copy.default
        if node.target is aten.detach.default or (cast and _is_float(node)):
            numbers[node] = numbers[node.args[0]]
            continue
        numbers[node], count = count, count + 1

        def word(value):
            if isinstance(value, fx.Node):
                return f"%{numbers[value]}"
            if rounded and isinstance(value, torch.dtype):
                return ""
            return ctypes.c_float(value).value if rounded and isinstance(value, float) else value

        parts = map_aggregate((node.args, node.kwargs), word)
        yield f"{node.op} {node.target} {parts}", node


def _is_float(cast):
    values = (cast.meta["val"], cast.args[0].meta["val"])
    return all(value.is_floating_point() for value in values)
