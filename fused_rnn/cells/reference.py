"""The recurrence as a plain loop over time in eager PyTorch: the oracle of every test.

Slow, differentiable to any order, in any dtype, on any device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import draws, stages
from .cell import Cell


def forward(
    cell: Cell,
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor] = (),
    streams: Sequence[Tensor] = (),
    reverse: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Run ``cell`` over a sequence in D directions.

    Args:
        x: (T, B, D, X, H), the input parts.
        weights: per stage (D, R_s·H, V_s·H), the recurrent matrices; by heads, see ``heads``; none
            for stages with a fixed matrix.
        bias: (D, M, H), of the gates without an input part, or None.
        states: per state (D, B, H), the initial ones.
        params: each (D, H).
        streams: each (T, B, D, H); then, if the cell draws, a key by ``draws.draw_key``.
        reverse: whether the first direction walks from T-1 to 0; a second walks the other way.

    Returns:
        Per state the values after every step (T, B, D, H), and after the last (D, B, H).
    """
    streams = draws.with_values(cell, streams, len(x), x.shape[2], x)
    runs = [
        _direction(
            cell,
            x[:, :, d],
            [weight[d] for weight in weights],
            None if bias is None else bias[d],
            tuple(state[d] for state in states),
            tuple(param[d] for param in params),
            [stream[:, :, d] for stream in streams],
            reverse ^ (d == 1),
        )
        for d in range(x.shape[2])
    ]
    sequences = [torch.stack(run, 2) for run in zip(*(run[0] for run in runs), strict=True)]
    finals = [torch.stack(run) for run in zip(*(run[1] for run in runs), strict=True)]
    return sequences, finals


def step(
    cell: Cell,
    x: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Sequence[Tensor] | Tensor | None,
    state: Sequence[Tensor],
    params: Sequence[Tensor],
    streams: Sequence[Tensor],
    t: int | Tensor,
) -> tuple[Tensor, ...]:
    """Compute the new states after one step in one direction.

    ``x``, ``state`` and ``streams`` have one tensor (B, H) per gate with an input part, per state
    and per stream, given or drawn; the others are as in ``forward``, without D.
    """
    pre: tuple[Any, ...] = ()
    for s, (begin, end) in enumerate(cell.spans):
        pre += tuple(own_part(cell, g, x, bias) for g in range(len(pre), begin))
        source = torch.cat(cell.run_source(s, pre, state, params, streams, t), -1)
        product = stages.product(cell, s, source, weights).chunk(end - begin, -1)
        pre += tuple(product[g - begin] + own_part(cell, g, x, bias) for g in range(begin, end))
    pre += tuple(own_part(cell, g, x, bias) for g in range(len(pre), len(cell.gates)))
    return cell.run_step(pre, state, params, streams, t)


def _direction(cell, x, weights, bias, state, params, streams, reverse):
    steps = x.shape[0]
    rows = [None] * steps
    # Unbound once: the gradient of an index in the loop would be as large as the sequence.
    parts = [row.unbind(1) for row in x.unbind()]
    flows = [stream.unbind() for stream in streams]
    for t in range(steps):
        time = steps - 1 - t if reverse else t
        now = tuple(stream[time] for stream in flows)
        state = step(cell, parts[time], weights, bias, state, params, now, t)
        rows[time] = state
    return [torch.stack(row) for row in zip(*rows, strict=True)], list(state)


def own_part(
    cell: Cell, g: int, x: Sequence[Tensor] | Tensor, bias: Sequence[Tensor] | Tensor | None
) -> Tensor | int:
    """What gate number ``g`` adds to its recurrent product: its input part, its only bias, or 0.

    Args:
        x: per gate in ``cell.x_gates`` its input part.
        bias: per gate in ``cell.bias_gates`` its bias, or None, which counts as 0.
    """
    if cell.x_index[g] >= 0:
        return x[cell.x_index[g]]
    return 0 if bias is None or cell.bias_index[g] < 0 else bias[cell.bias_index[g]]
