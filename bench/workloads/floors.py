"""What a GPU would need at least, and what the model of the costs predicts, beside what it took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from fused_rnn import cells, plan
from fused_rnn.plan import cost

from .rows import Row
from .workload import FUSED, Layer

# Operations per second of an H100's tensor cores, without sparsity: 16 bits, and TF32 for float32.
TENSOR_FLOPS = {2: 989e12, 4: 494e12}


def least_bytes(layer: Layer, itemsize: int, training: bool) -> int:
    """Bytes that must pass through the GPU's memory, each once.

    x and the weights are read and the output is written. Training also writes and reads the gates
    and the states, reads the output's gradient, and writes the gradients of x and the weights.
    """
    cell = cells.get(layer.cell)
    T, B, D = layer.T, layer.B, layer.directions
    x, output = T * B * layer.I, T * B * D * layer.H
    weights = D * layer.H * (len(cell.x_gates) * layer.I + _columns(cell, layer))
    total = x + weights + output
    if training:
        kept = T * B * D * layer.H * (len(cell.gates) + len(cell.states))
        total += 2 * kept + output + x + weights
    return total * itemsize


def flops(layer: Layer, training: bool) -> int:
    """Operations of the products: twice as many again in a backward."""
    cell = cells.get(layer.cell)
    wide = len(cell.x_gates) * layer.I + _columns(cell, layer)
    once = 2 * layer.T * layer.B * layer.directions * layer.H * wide
    return once * (3 if training else 1)


def floor_ms(layers: Sequence[Layer], itemsize: int, training: bool) -> float:
    """Milliseconds, the longer of the bytes' time and the products' in each layer.

    The constants are those of an H100 in ``fused_rnn.plan.cost`` and above. The chain of the steps,
    one after the other, is not in it: a kernel with small batches cannot come near.
    """
    total = 0.0
    for layer in layers:
        moved = least_bytes(layer, itemsize, training) / (cost.MEMORY * 1e6)
        total += max(moved, flops(layer, training) / TENSOR_FLOPS[itemsize])
    return total * 1e3


def predicted_ms(
    layers: Sequence[Layer],
    dtype: torch.dtype,
    device: torch.device | tuple[int, int],
    multiprocessors: int,
) -> float | None:
    """Milliseconds of the forward walks by ``plan.cost``; None where a layer has no such estimate.

    The products over all steps, before the walks, are not in it. Layers with heads have none: the
    model takes a step's products for whole matrices.

    Args:
        device: or a compute capability, such as (9, 0).
    """
    total = 0.0
    for layer in layers:
        cell = cells.get(layer.cell)
        size = (layer.B, layer.H, layer.directions)
        try:
            found = plan.plan(cell, layer.T, *size[:2], dtype, device, layer.directions)
        except RuntimeError:
            return None
        if layer.heads > 1:
            return None
        given = (*size, dtype.itemsize, multiprocessors)
        total += cost.step_time(cell, found.forward, *given, steps=layer.T) * layer.T
    return total / 1e3


def beside(row: Row, peak: float | None, layers: Sequence[Layer], device: str, dtype) -> Row:
    """The row with its memory, and on a GPU with the floor, the prediction and the bytes."""
    row = replace(row, peak_mb=peak)
    if device == "cpu" or row.median_ms is None:
        return row
    training = row.mode == "training"
    moved = sum(least_bytes(layer, dtype.itemsize, training) for layer in layers)
    predicted = None
    if row.provider == FUSED and not training:
        here = torch.device(device)
        count = torch.cuda.get_device_properties(here).multi_processor_count
        predicted = predicted_ms(layers, dtype, here, count)
    return replace(
        row,
        floor_ms=floor_ms(layers, dtype.itemsize, training),
        predicted_ms=predicted,
        gbytes=moved / row.median_ms / 1e6,
    )


def _columns(cell, layer):
    """Columns of the recurrent matrices, over all gates, of one unit."""
    return cost.squares(cell) * layer.H // layer.heads
