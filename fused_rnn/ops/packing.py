"""Groups of tensors (weights, states, params, streams, ...) as autograd wants them: flat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

from torch import Tensor

from ..cells import Cell


def save(ctx: Any, *groups: Sequence[Tensor]) -> None:
    """Save groups of tensors for the backward, and how many each has, as ``ctx.sizes``."""
    ctx.sizes = [*map(len, groups)]
    ctx.save_for_backward(*chain(*groups))


def saved(ctx: Any) -> list[list[Tensor]]:
    """The groups that ``save`` was given."""
    return split(ctx.saved_tensors, ctx.sizes)


def split(flat: Iterable, sizes: Iterable[int]) -> list[list]:
    """A flat sequence in groups of the given sizes."""
    items = iter(flat)
    return [list(islice(items, size)) for size in sizes]


def replaced(flat: Sequence, places: Sequence[int], values: Iterable) -> list:
    """A flat sequence with other values at some places."""
    copy = list(flat)
    for place, value in zip(places, values, strict=True):
        copy[place] = value
    return copy


def of_backward(cell: Cell, results: Iterable) -> list[list]:
    """The gradients of pre, states, params and streams that a backward op returns, by group.

    That of the key of a cell that draws is None.
    """
    sizes = [1, len(cell.states), len(cell.params), len(cell.streams)]
    *groups, dstreams = split(results, sizes)
    return [*groups, dstreams + [None] * bool(cell.drawn)]


def no_gradients(needs: Sequence) -> tuple:
    """What a backward returns where no result has a gradient."""
    return tuple([None] * len(need) if isinstance(need, list) else None for need in needs)
