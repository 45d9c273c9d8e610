"""torch.nn's kernels as one operation of a compiled graph, where nothing is differentiated.

Traced, they would become operations per step, in a graph that grows with T. Their derivatives need
a workspace of a size that only oneDNN knows, so what is differentiated takes another road.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("fused_rnn::aten", mutates_args=())
def run(
    kind: str,
    input: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    bias: bool,
    num_layers: int,
    bidirectional: bool,
) -> list[Tensor]:
    """``torch._VF.lstm`` and its kin, without dropout.

    Args:
        kind: its name there, which is that of the cell.
        input: (T, B, I).
        states: per state (L·D, B, H).
        weights: of all layers and directions, in torch.nn's order.

    Returns:
        The output (T, B, D·H), and per state (L·D, B, H).
    """
    hx = states[0] if len(states) == 1 else states
    options = (bias, num_layers, 0.0, False, bidirectional, False)
    return list(getattr(torch._VF, kind)(input, hx, weights, *options))


@run.register_fake
def _(kind, input, states, weights, bias, num_layers, bidirectional):
    width = states[0].shape[2] * (2 if bidirectional else 1)
    finals = [torch.empty_like(s, memory_format=torch.contiguous_format) for s in states]
    return [input.new_empty(*input.shape[:2], width), *finals]
