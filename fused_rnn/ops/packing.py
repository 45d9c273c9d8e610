"""Groups of tensors (weights, states, params, streams, ...) as autograd wants them: flat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

from torch import Tensor


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


def no_gradients(needs: Sequence) -> tuple:
    """What a backward returns where no result has a gradient."""
    return tuple([None] * len(need) if isinstance(need, list) else None for need in needs)
