"""One step of any cell in PyTorch's own operations, as few as will do: for modules of one step.

A loop of one step has nothing to fuse over time, and what calls it costs more than its arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..cells import Cell, draws, heads, stages
from ..numerics import accumulator


def run(
    cell: Cell,
    input: Tensor,
    weights: dict[str, Tensor],
    states: list[Tensor],
    streams: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """The new states, per state (B, H); differentiable to any order and in every mode.

    16-bit gates and states are computed in float32, as in the loops.

    Args:
        input: (B, I).
        weights: the parameters of ``nn.recurrent_cell.RecurrentCell`` by their names, of the
            input's dtype.
        states: per state (B, H).
        streams: of the cell, those that it draws included, each (B, H).
    """
    dtype = input.dtype
    wide = accumulator(dtype)

    def widened(tensors):
        return tuple(tensors) if wide == dtype else tuple(t.to(wide) for t in tensors)

    old, params = widened(states), widened(weights[name] for name in cell.params)
    flow = widened(streams)
    biases = _by_stage(cell, weights.get("bias_hh"))
    if "weight_hh" in weights:
        matrices = _by_stage(cell, weights["weight_hh"])
    else:
        matrices = [weights[f"weight_hh{i}"] for i in range(len(cell.matrices))]
    # Gates that are in one order everywhere need no cutting before they are added up.
    whole = len(cell.spans) == 1 and cell.x_gates == cell.gates and not cell.raw_gates
    whole = whole and cell.recurrent_gates == cell.gates
    parts, pre = _input_parts(cell, input, weights, widened, whole), ()
    for s, (begin, end) in enumerate(cell.spans):
        pre += tuple(parts[gate] for gate in cell.gates[len(pre) : begin])
        source = cell.run_source(s, pre, old, params, flow)
        v = source[0] if len(source) == 1 else torch.cat(source, -1)
        v, place = v if wide == dtype else v.to(dtype), cell.weight_index[s]
        if place < 0 or heads.several(cell, matrices, v.shape[-1] // cell.source_sizes[s]):
            product = stages.product(cell, s, v, matrices)
            bias = None if place < 0 else biases[place]
            product = product if bias is None else product + bias
        else:
            product = functional.linear(v, matrices[place], biases[place])
        (product,) = widened([product])
        if whole:
            pre = (parts + product).chunk(end, -1)
        else:
            own = zip(cell.gates[begin:end], product.chunk(end - begin, -1), strict=True)
            pre += tuple(p + parts[gate] if gate in parts else p for gate, p in own)
    pre += tuple(parts[gate] for gate in cell.gates[len(pre) :])
    new = cell.run_step(pre, old, params, flow)
    return new if wide == dtype else tuple(state.to(dtype) for state in new)


def drawn(cell: Cell, key: Tensor | None, state: Tensor) -> list[Tensor]:
    """The streams (B, H) that a cell draws from a key; ``state`` is (B, H), of the dtype."""
    if key is None:
        return []
    times = torch.zeros(1, dtype=torch.int64, device=key.device)
    values = draws.values(cell, key, times, 1, state.shape[-1], state.dtype)
    return [value[0, :, 0] for value in values]


def _input_parts(cell, input, weights, widened, whole) -> Any:
    """The input part (B, H) of each gate that has one, by name; or of all in one (B, G·H)."""
    bias, parts = weights.get("bias_ih"), {}
    linear = [gate for gate in cell.x_gates if gate not in cell.raw_gates]
    if linear:
        own = None if cell.raw_gates else bias
        (x,) = widened([functional.linear(input, weights["weight_ih"], own)])
        if whole:
            return x
        parts = dict(zip(linear, x.chunk(len(linear), -1), strict=True))
    if cell.raw_gates:
        parts.update(zip(cell.raw_gates, widened([input] * len(cell.raw_gates)), strict=True))
        if bias is not None:
            biases = widened(bias.chunk(len(cell.x_gates)))
            for gate, part in zip(cell.x_gates, biases, strict=True):
                parts[gate] = parts[gate] + part
    return parts


def _by_stage(cell, rows):
    """Of a matrix or a bias of all recurrent gates, or of None, the rows of each matrix."""
    if rows is None or len(cell.matrices) == 1:
        return [rows] * len(cell.matrices)
    hidden = rows.shape[0] // len(cell.recurrent_gates)
    return rows.split([gates * hidden for gates, _ in cell.matrices])
