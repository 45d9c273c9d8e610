"""What "auto" runs, and why."""

from __future__ import annotations

import itertools
import numbers
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import cells
from ..cells import Cell
from . import choose, cpu_race


@dataclass(frozen=True)
class Explanation:
    """
    Attributes:
        backend: what runs, one of those that ``use_backend`` has.
        reason: why, in words.
    """

    backend: str
    reason: str

    def __str__(self):
        return f'"{self.backend}": {self.reason}'


def explain(
    what: Cell | str | nn.Module,
    T: int,
    B: int,
    H: int | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    training: bool = True,
) -> Explanation:
    """What backend "auto" runs a layer with, in a plain call: no transform and no lengths.

    It may build what the answer depends on, or check or time it, as the first call would.
    ``scan`` does without the kernels of torch.nn.

    Args:
        what: a ``Cell`` or the name of a built-in one; or a module, for its cell, dtype and device.
        T, B: steps and rows of the batch; a module of one step takes T = 1.
        H: hidden units; default: the module's.
        dtype, device: default: the module's, of a cell float32 and "cpu".
        training: whether something is kept for a backward.

    Raises:
        ValueError: an unknown cell, no ``H`` for a cell, or a module of one step with other T.
    """
    module: Any = what if isinstance(what, nn.Module) and hasattr(what, "cell") else None
    given: Any = what if module is None else module.cell
    one_step = module is not None and not hasattr(module, "num_layers")
    if one_step and T != 1:
        raise ValueError(f"T: expected 1 for a module of one step, got {T}")
    if module is not None:
        like = next(itertools.chain(module.parameters(), module.buffers()), torch.empty(0))
        size, dtype, device = module.hidden_size, dtype or like.dtype, device or like.device
        if one_step or H not in (None, size):
            module = None  # its cell is explained, at that size
        H = H or size
    cell = cells.as_cell(given)
    for name, size in (("T", T), ("B", B), ("H", H)):
        if size is not None and (isinstance(size, bool) or not isinstance(size, numbers.Integral)):
            raise TypeError(f"{name}: expected int, got {type(size).__name__}")
        if size is not None and size < 1:
            raise ValueError(f"{name}: expected a number greater than zero, got {size}")
    if H is None:
        raise ValueError(f"H: expected the hidden units of cell {cell.name!r}, got None")
    dtype, device = dtype or torch.float32, torch.device(device or "cpu")
    if one_step and device.type != "cuda":
        found = choose.plain_step(cell, dtype)
        return Explanation("aten" if found.engine == "aten" else "reference", str(found.reason))
    whole = choose.plain(module or (cell, H), dtype, device, T, B, training, may_time=True)
    if whole.engine == "aten":
        return Explanation("aten", _with_sizes(whole.reason, T, B, H))
    found = choose.layer("auto", cell, device, dtype)
    if found.engine == "auto":
        like = torch.empty(1, 1, 1, 1, dtype=dtype, device=device).expand(T, B, 1, H)
        found = choose.at_run_time("auto", cell, like, "forward", training)
    if found.engine == "cpp":
        measured = isinstance(whole.reason, cpu_race.Finding)
        reason = whole.reason if measured else f"{found.reason}, and {whole.reason}"
        return Explanation("cpp", _with_sizes(reason, T, B, H))
    return Explanation(found.engine, str(found.reason))


def _with_sizes(reason, T, B, H) -> str:
    """A reason in words, with what was asked where it is of other sizes."""
    measured = isinstance(reason, cpu_race.Finding) and reason.ratio is not None
    return f"{reason}; asked: T={T} B={B} H={H}" if measured else str(reason)
