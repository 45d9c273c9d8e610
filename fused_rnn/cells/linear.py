"""Which cells are linear in their states, so that their steps can be taken in parallel.

Without recurrent products a step maps the states of a unit, as a vector s, to new ones. If that is
A s + b, with A and b from gates, params, streams and time alone, then several steps in a row are
such a map too, and maps are composed in any order of the brackets.

The graph of the step shows it, not its derivative: that of ``round`` or ``detach`` is zero. What
the table below does not know is taken for not linear.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .. import once
from . import graphs
from .cell import Cell

aten = torch.ops.aten

# The states that a map may have: it takes the square of their number.
MOST = 3

# By operation, whether its result is linear if some of its tensors are; the others are free of
# states. Given the indices of those that are linear.
_LINEAR = {
    aten.add.Tensor: lambda places: True,
    aten.sub.Tensor: lambda places: True,
    aten.rsub.Scalar: lambda places: True,
    aten.rsub.Tensor: lambda places: True,
    aten.neg.default: lambda places: True,
    aten._to_copy.default: lambda places: True,
    aten.mul.Tensor: lambda places: len(places) == 1,
    aten.mul.Scalar: lambda places: True,
    aten.div.Tensor: lambda places: places == [0],
    aten.div.Scalar: lambda places: True,
    aten.where.self: lambda places: 0 not in places,
    aten.masked_fill.Scalar: lambda places: places == [0],
    aten.lerp.Tensor: lambda places: 2 not in places,
    aten.lerp.Scalar: lambda places: True,
    aten.addcmul.default: lambda places: not {1, 2} <= set(places),
    aten.addcdiv.default: lambda places: 2 not in places,
}


@once.per_cell
def why_not(cell: Cell) -> str | None:
    """The reason why the steps of a cell are no composition of linear maps, or None."""
    if cell.stages:
        return "it has recurrent products"
    places = graphs.carried(cell)
    if not places:
        return "its step reads no state"
    if len(places) > MOST:
        return f"{len(places)} states are read by its step; at most {MOST} can be"
    nodes = list(graphs.graph(cell, "step").graph.nodes)
    linear = set(nodes[len(cell.gates) :][: len(cell.states)])
    results: Any = nodes[-1].args[0]
    needed = _behind([results[i] for i in places])
    for node in nodes:
        found = [i for i, value in enumerate(node.args) if value in linear]
        if node.op != "call_function" or node not in needed or not found:
            continue
        if not _is_linear(node, found):
            return f"its step is not linear in the states: {node.target}"
        linear.add(node)
    return None


def _behind(nodes) -> set[fx.Node]:
    """The nodes, and all that they are computed from."""
    found, left = set(), list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes
    return found


def _is_linear(node, places):
    # The options are those of the memory, and the factor of a sum.
    known = _LINEAR.get(node.target)
    value = node.meta.get("val")
    return known is not None and value is not None and value.is_floating_point() and known(places)
