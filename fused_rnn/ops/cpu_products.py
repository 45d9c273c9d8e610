"""Products over all rows of a sequence, by the C++ engine where it runs and there is much to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import context
from ..cells import Cell, heads
from ..engines import choose, contract

# Products of two numbers. With fewer, a call takes as long as what it saves.
_MANY = 1 << 22


def product(a: Tensor, b: Tensor) -> Tensor:
    """a (..., K) · b (K, N)."""
    if a.numel() * b.shape[1] < _MANY or not context.runs_directly([a, b]):
        return a @ b
    return contract.load("cpp").product(a.flatten(0, -2), b).view(*a.shape[:-1], b.shape[1])


def gradient(pairs: Sequence[tuple[Tensor, Tensor]], vectors: int, count: int) -> Tensor:
    """``heads.gradient``."""
    rows, source = pairs[-1]
    few = rows.numel() * source.shape[1] < _MANY * count
    engine_takes = rows.dtype in (torch.float32, torch.float64)
    if few or not engine_takes or not context.runs_directly([t for pair in pairs for t in pair]):
        return heads.gradient(pairs, vectors, count)
    return contract.load("cpp").gradient(pairs, vectors, count)


def gradient_of(backend: str, cell: Cell, pre: Tensor) -> Callable[..., Tensor]:
    """``gradient`` in a backward that the C++ loop runs, otherwise ``heads.gradient``.

    Args:
        backend: as the op was given it, see ``choose.at_run_time``.
        pre: the gates.
    """
    if backend not in ("auto", "cpp") or not context.runs_directly([pre]):
        return heads.gradient
    runs = choose.at_run_time(backend, cell, pre, "backward").engine == "cpp"
    return gradient if runs else heads.gradient
