"""A cell as graphs of pointwise operations: its functions and their vector-Jacobian products.

PyTorch does the calculus: ``torch.func.vjp`` of a cell's own function, recorded by ``make_fx``.
"""

from __future__ import annotations

import torch
from torch import fx
from torch.utils import _pytree as pytree

from . import once
from .cells import Cell

# The arguments of every traced function; a vjp has the cotangents after them.
ARGUMENTS = ("pre", "state", "params", "streams", "t")


@once.per_cell
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

    function = _function(cell, part, stage)
    table = None
    if decompose:
        from torch._decomp import core_aten_decompositions, get_decompositions

        table = {**core_aten_decompositions(), **get_decompositions(_DECOMPOSED)}

    def record():
        groups, outputs = _example(cell, part, stage)
        if part.endswith("_vjp"):
            groups = (*groups, outputs)
        return make_fx(function, decomposition_table=table)(*groups)

    traced = once.in_fresh_thread(record)
    for node in list(traced.graph.nodes):
        if node.op == "call_function" and node.target in _SAME:
            node.replace_all_uses_with(node.args[0])
    if decompose:
        _out_of_place(traced.graph)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def group_sizes(cell: Cell, part: str, stage: int = 0) -> tuple[int, ...]:
    """How many tensors each argument in ARGUMENTS, and the cotangents, consist of."""
    groups, outputs = _example(cell, part, stage)
    return tuple(len(pytree.tree_leaves(group)) for group in (*groups, outputs))


@once.per_cell
def zeros(cell: Cell, part: str, stage: int = 0) -> tuple[bool, ...]:
    """Per flat result of a vjp, whether it is zero whatever the arguments."""
    results = graph(cell, part, stage).graph.find_nodes(op="output")[0].args[0]
    return tuple(node.target is torch.ops.aten.zeros_like.default for node in results)


def call(cell: Cell, part: str, stage: int, *arguments) -> list:
    """Evaluate a traced function, of tensors of any shapes that broadcast; flat results."""
    groups = [tuple(a) if isinstance(a, list) else a for a in arguments]
    return pytree.tree_leaves(graph(cell, part, stage)(*groups))


# Operations that change nothing here.
_SAME = {
    torch.ops.aten.detach.default,
    torch.ops.aten.alias.default,
    torch.ops.aten.clone.default,
    torch.ops.aten.lift_fresh_copy.default,
}


# Core ATen operations that are made of others.
_DECOMPOSED = [
    torch.ops.aten.clamp.Tensor,
    torch.ops.aten.elu.default,
    torch.ops.aten.gelu.default,
    torch.ops.aten.hardtanh.default,
    torch.ops.aten.leaky_relu.default,
]
_EMPTY = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_permuted.default)


def _out_of_place(graph: fx.Graph) -> None:
    """Make every node a new value: some decompositions write into tensors of their own."""
    aten, like = torch.ops.aten, next(iter(graph.nodes))
    for node in list(graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target in (aten.full.default, aten.scalar_tensor.default):
            # With the dtype of the values, and so all digits of the number: a variable that is
            # given a number would be float32 in Triton.
            with graph.inserting_before(node):
                full = graph.call_function(aten.full_like.default, (like, node.args[-1]))
            node.replace_all_uses_with(full)
        elif node.target is aten.full_like.default and node.args[0].target in _EMPTY:
            node.update_arg(0, like)
        elif node.target._schema.is_mutable and node.args[0].op != "placeholder":
            if node.target is aten.copy_.default:
                value = node.args[1]
            else:
                packet = getattr(aten, node.target._schema.name.removeprefix("aten::")[:-1])
                target = getattr(packet, node.target._overloadname)
                with graph.inserting_after(node):
                    value = graph.call_function(target, node.args, node.kwargs)
            node.replace_all_uses_with(value)  # which is what stands for the tensor from here on
            graph.erase_node(node)


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
