"""A cell as graphs of pointwise operations: its functions and their vector-Jacobian products.

The derivatives are PyTorch's: ``recorder`` records autograd of a cell's own function.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx

from .. import once
from .cell import Cell
from .functions import ARGUMENTS, Circumstances, Sizes, flatten, pull_back, record_function
from .recorder import Recorder, record
from .snapshot import Snapshot, compiled

__all__ = [
    "ARGUMENTS",
    "call",
    "carried",
    "graph",
    "group_sizes",
    "joint_products",
    "late_stages",
    "streams_read",
    "zeros",
]


@once.per_cell
def graph(
    cell: Cell,
    part: str,
    stage: int = 0,
    decompose: bool = False,
    dtype: torch.dtype = torch.float32,
) -> fx.GraphModule:
    """One function of a cell as an FX graph over flat arguments.

    Args:
        part: "step" or "source", which return what ``Cell.run_step`` and ``Cell.run_source`` do;
            "step_vjp" or "source_vjp", which take the cotangents of these besides and return those
            of (pre, state, params, streams). Arguments and results are flattened. Or "jacobian":
            the derivatives of the new states by the old ones, row by row, of those of ``carried``.
        stage: of a source.
        decompose: into core ATen operations, so that the printers need fewer.
        dtype: of the arguments and ``t``: float64 or float32. The constants and casts of a graph
            are only right for this dtype. ``meta["val"]`` of a node is a tensor like it.
    """

    def make():
        taken = _recorded(cell, part, stage, dtype)
        fails = any(node.target in _OF_ONE_SHAPE for node in taken.nodes)
        return _decomposed(taken, cell, part, stage, dtype) if decompose or fails else taken

    return fx.GraphModule(torch.nn.Module(), once.in_fresh_thread(make))


def _recorded(cell, part, stage, dtype):
    kind, vjp = part.removesuffix("_vjp"), part.endswith("_vjp")
    function = cell.functions.get((kind, stage))
    if kind == "jacobian":
        function = _jacobian(cell)
    if isinstance(function, Snapshot):
        return function.graph(vjp, dtype)
    if function is None:  # a source that consists of states

        def function(*groups):
            return cell.run_source(stage, *groups)

    sizes = _sizes(cell, kind, stage)
    circumstances = Circumstances(dtype=dtype, gradients=True)
    return record_function(function, sizes, circumstances, vjp)


def _jacobian(cell):
    places = carried(cell)

    def function(*groups):
        new, states = cell.run_step(*groups), [groups[1][i] for i in places]
        rows = [pull_back([new[i]], states, [torch.ones_like(new[i])]) for i in places]
        return tuple(entry for row in rows for entry in row)

    return function


@once.per_cell
def carried(cell: Cell) -> tuple[int, ...]:
    """The numbers of the states that the step reads; of the others only the last values matter."""
    nodes = list(graph(cell, "step").graph.nodes)[len(cell.gates) :]
    return tuple(i for i in range(len(cell.states)) if nodes[i].users)


def _decomposed(recorded, cell, part, stage, dtype):
    from torch._decomp import core_aten_decompositions, get_decompositions

    table: dict[Any, Any] = {**core_aten_decompositions(), **get_decompositions(_DECOMPOSED)}
    table = {operation: how for operation, how in table.items() if operation not in _PRINTED}
    vjp = part.endswith("_vjp")
    sizes = _sizes(cell, part.removesuffix("_vjp"), stage)
    arguments = Circumstances(dtype=dtype).arguments(sizes, vjp)
    flat, names = flatten(arguments)
    recorder = Recorder(dict(zip(names, flat, strict=True)), table)
    graph = record(compiled(recorded), recorder, flat)
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.detach.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    return graph


def _sizes(cell, kind, stage):
    if kind in ("step", "jacobian"):
        results = len(cell.states) if kind == "step" else len(carried(cell)) ** 2
        gates = len(cell.gates)
    else:
        gates, results = cell.spans[stage][0], cell.source_sizes[stage]
    return Sizes(gates, len(cell.states), len(cell.params), cell.stream_count, results)


def group_sizes(cell: Cell, part: str, stage: int = 0) -> tuple[int, ...]:
    """The number of tensors in each of ARGUMENTS, and of cotangents."""
    *sizes, results = _sizes(cell, part.removesuffix("_vjp"), stage)
    assert results is not None
    return (*sizes, 1, results)


@once.per_cell
def zeros(cell: Cell, part: str, stage: int = 0) -> tuple[bool, ...]:
    """Per flat result of a vjp or jacobian, whether it is zero for all arguments."""
    (output,) = graph(cell, part, stage).graph.find_nodes(op="output")
    return tuple(_is_zero(node) for node in output.args[0])


def _is_zero(node):
    return node.target is torch.ops.aten.full_like.default and node.args[1] == 0


@once.per_cell
def streams_read(cell: Cell, part: str, stage: int = 0) -> tuple[bool, ...]:
    """Per stream, those drawn included, whether a function reads it."""
    sizes = group_sizes(cell, part, stage)
    first = sum(sizes[:3])
    nodes = list(graph(cell, part, stage).graph.nodes)[first : first + sizes[3]]
    return tuple(bool(node.users) for node in nodes)


def joint_products(nodes: Iterable[fx.Node]) -> dict[fx.Node, tuple[fx.Node, fx.Node]]:
    """The products of a sigmoid and a tanh that have no other use: of each, the two in this order.

    They cost less as one function than as two.
    """
    found = {}
    for node in nodes:
        if node.target is not torch.ops.aten.mul.Tensor:
            continue
        factors = [f for f in node.args if isinstance(f, fx.Node) and len(f.users) == 1]
        for both in (factors, factors[::-1]):
            if [f.target for f in both] == _JOINT:
                found[node] = both[0], both[1]
    return found


@once.per_cell
def late_stages(cell: Cell) -> tuple[int, ...]:
    """The stages whose source depends on gates of the same step; others need only the step before.

    In these the source of a program is known only when it has the gates of earlier stages. Stages
    of the identity are left out, since a program needs nothing of another for them.
    """
    mixing = [s for s, stage in enumerate(cell.stages) if stage.fixed != "identity"]
    return tuple(s for s in mixing if _reads_gates(cell, s))


def _reads_gates(cell, stage):
    gates = cell.spans[stage][0]
    if not gates or not callable(cell.stages[stage].source):
        return False
    nodes = list(graph(cell, "source", stage).graph.nodes)
    return any(node.users for node in nodes[:gates])


def call(cell: Cell, part: str, stage: int, *arguments: Any) -> list:
    """Evaluate a traced function for tensors of shapes that broadcast; returns flat results."""
    pre, state, params, streams, t, *cotangents = arguments
    dtype = state[0].dtype
    t = t.to(dtype)
    flat, _ = flatten((pre, state, params, streams, t, *cotangents))
    return graph(cell, part, stage, False, dtype)(*flat)


# Core ATen operations that are decomposed further.
_DECOMPOSED = [
    torch.ops.aten.clamp.Tensor,
    torch.ops.aten.elu.default,
    torch.ops.aten.gelu.default,
    torch.ops.aten.hardtanh.default,
    torch.ops.aten.leaky_relu.default,
]
# Operations that are printed directly: their decompositions round differently than ATen, or have
# another value at NaN.
_PRINTED = {
    torch.ops.aten.hardsigmoid_backward.default,
    torch.ops.aten.hardswish_backward.default,
    torch.ops.aten.hardtanh_backward.default,
}
_JOINT = [torch.ops.aten.sigmoid.default, torch.ops.aten.tanh.default]
# These fail in oneDNN if one of their arguments has to be broadcast.
_OF_ONE_SHAPE = {torch.ops.aten.gelu_backward.default}
