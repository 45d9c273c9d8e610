"""The product of a stage with its matrix: one of the weights, or a fixed one, see ``Stage``.

A fixed matrix is not made. Its product is a sum over the units of each vector of the source, or the
vector itself; it becomes a gate of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import heads
from .cell import Cell


def product(cell: Cell, stage: int, source: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """What a stage adds to its gates, (B, R·H), of its source (B, V·H) and the cell's matrices."""
    vectors, fixed = cell.source_sizes[stage], cell.stages[stage].fixed
    if not fixed:
        return heads.product(source, weights[cell.weight_index[stage]], vectors)
    return _each(_SUMS[fixed][0], source, vectors)


def pull_back(
    cell: Cell, stage: int, rows: Tensor, weights: Sequence[Tensor], hidden: int
) -> Tensor:
    """The gradient (B, V·H) of the source of ``product``, of that of the gates (B, R·H)."""
    vectors, fixed = cell.source_sizes[stage], cell.stages[stage].fixed
    if not fixed:
        return heads.pull_back(rows, weights[cell.weight_index[stage]], vectors, hidden)
    return _each(_SUMS[fixed][1], rows, vectors)


def _each(sums, values, vectors):
    if vectors == 1:
        return sums(values)
    return torch.cat([sums(vector) for vector in values.chunk(vectors, -1)], -1)


def _mean(vector):
    return vector.mean(-1, keepdim=True).expand_as(vector)


def _sum(vector):
    return vector.sum(-1, keepdim=True).expand_as(vector)


def _itself(vector):
    return vector


def _sum_before(vector):
    return vector.cumsum(-1)


def _sum_after(vector):
    return vector.flip(-1).cumsum(-1).flip(-1)


# Per fixed matrix: the product with it, and with the transposed one.
_SUMS = {
    "mean": (_mean, _mean),
    "sum": (_sum, _sum),
    "cumsum": (_sum_before, _sum_after),
    "identity": (_itself, _itself),
}
