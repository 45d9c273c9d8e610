"""A cell as graphs of pointwise operations: its functions and their vector-Jacobian products.

PyTorch does the calculus: ``torch.func.vjp`` of a cell's own function, recorded by ``make_fx``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import fx
from torch.utils import _pytree as pytree

from .cells import Cell

# The arguments of every traced function; a vjp has the cotangents after them.
ARGUMENTS = ("pre", "state", "params", "streams", "t")


@functools.cache
def graph(cell: Cell, part: str, stage: int = 0, decompose: bool = False) -> fx.GraphModule:
    """One function of a cell as an FX graph over flat arguments.

    Args:
        part: "step" or "source", which return what ``Cell.run_step`` and ``Cell.run_source`` do;
            "step_vjp" or "source_vjp", which take the cotangents of these besides and return those
            of (pre, state, params, streams). Arguments and results are flattened.
        stage: of a source.
        decompose: down to core ATen operations, of which there are fewer to print.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    groups, outputs = _example(cell, part, stage)
    function = _function(cell, part, stage)
    table = None
    if decompose:
        from torch._decomp import core_aten_decompositions

        table = core_aten_decompositions()
    if part.endswith("_vjp"):
        groups = (*groups, outputs)
    traced = make_fx(function, decomposition_table=table)(*groups)
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target in _SAME:
            node.replace_all_uses_with(node.args[0])
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def group_sizes(cell: Cell, part: str, stage: int = 0) -> tuple[int, ...]:
    """How many tensors each argument in ARGUMENTS, and the cotangents, consist of."""
    groups, outputs = _example(cell, part, stage)
    return tuple(len(pytree.tree_leaves(group)) for group in (*groups, outputs))


@functools.cache
def split(cell: Cell, part: str, stage: int, begin: int, end: int) -> tuple[Callable, Callable]:
    """A vjp in two: what does not depend on the cotangents, and the rest.

    The first runs over a whole sequence at once; it takes the arguments and returns a tuple of
    whatever the second needs. The second takes that tuple's values and the cotangents, and returns
    the flat results ``begin`` to ``end`` of the vjp, None where one is always zero.
    """
    whole = graph(cell, part, stage)
    placeholders = [node for node in whole.graph.nodes if node.op == "placeholder"]
    cotangents = placeholders[sum(group_sizes(cell, part, stage)[: len(ARGUMENTS)]) :]
    late = set(cotangents)
    for node in whole.graph.nodes:
        if node.op == "call_function" and any(arg in late for arg in node.all_input_nodes):
            late.add(node)
    results = [
        None if node.target is torch.ops.aten.zeros_like.default else node
        for node in whole.graph.find_nodes(op="output")[0].args[0][begin:end]
    ]

    needed = set(results)
    for node in reversed(whole.graph.nodes):
        if node in needed and node in late:
            needed.update(node.all_input_nodes)
    handed = [node for node in whole.graph.nodes if node in needed and node not in late]

    early_graph, copies = fx.Graph(), {}
    for node in whole.graph.nodes:
        if node not in late and node.op != "output":
            copies[node] = early_graph.node_copy(node, copies.__getitem__)
    early_graph.output(tuple(copies[node] for node in handed))
    early_graph.eliminate_dead_code()

    late_graph = fx.Graph()
    copies = {node: late_graph.placeholder(f"early_{i}") for i, node in enumerate(handed)}
    for node in whole.graph.nodes:
        if node in cotangents or (node in late and node in needed):
            copies[node] = late_graph.node_copy(node, copies.__getitem__)
    late_graph.output(tuple(node if node is None else copies[node] for node in results))
    # The bare methods: a call of the module would cost as much as one of its operations.
    return fx.GraphModule({}, early_graph).forward, fx.GraphModule({}, late_graph).forward


# Operations that change nothing here.
_SAME = {
    torch.ops.aten.detach.default,
    torch.ops.aten.alias.default,
    torch.ops.aten.clone.default,
    torch.ops.aten.lift_fresh_copy.default,
}


def _example(cell, part, stage):
    """Arguments and results of a part, of one small shape: the groups of ARGUMENTS, the outputs."""

    def some(count):
        return tuple(torch.ones(2, 3, device="cpu") for _ in range(count))

    if part.startswith("step"):
        gates, outputs = len(cell.gates), len(cell.states)
    else:
        gates, outputs = cell.spans[stage][0], cell.source_sizes[stage]
    t = torch.zeros((), dtype=torch.int64, device="cpu")
    sizes = (gates, len(cell.states), len(cell.params), len(cell.streams))
    return (*map(some, sizes), t), some(outputs)


def _function(cell, part, stage):
    def run(pre, state, params, streams, t):
        if part.startswith("step"):
            return cell.run_step(pre, state, params, streams, t)
        return cell.run_source(stage, pre, state, params, streams, t)

    def vjp(pre, state, params, streams, t, cotangents):
        _, pull_back = torch.func.vjp(
            lambda *differentiable: run(*differentiable, t), pre, state, params, streams
        )
        return pull_back(cotangents)

    return vjp if part.endswith("_vjp") else run
