"""What "auto" runs, and why."""

from __future__ import annotations

import itertools
import numbers
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .. import cells
from ..cells import Cell
from ..plan.timeline import Timeline, timeline
from . import choose, choose_step, cpu_race


@dataclass(frozen=True)
class _Asked:
    """The layer that was explained."""

    cell: Cell
    T: int
    B: int
    I: int  # noqa: E741 - the name of this dim in the whole project
    H: int
    directions: int
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True)
class Explanation:
    """
    Attributes:
        backend: what runs, one of those that ``use_backend`` has.
        reason: why, in words.
    """

    backend: str
    reason: str
    _asked: _Asked = field(compare=False, repr=False)

    def __str__(self):
        return f'"{self.backend}": {self.reason}'

    def timeline(
        self, gpu: tuple[int, int] | None = None, dtype: torch.dtype | None = None
    ) -> Timeline:
        """The layer's forward in time on a GPU, as it is planned, by the model of the costs.

        Its text is a chart, and ``svg()`` a picture. Nothing is run or compiled, and no GPU is
        needed. Of a stack it is the first layer.

        Args:
            gpu: a compute capability, (9, 0) for an H100; default: the layer's device.
            dtype: default: the layer's.

        Raises:
            ValueError: no ``gpu``, and the layer is on no GPU.
            RuntimeError: the layer has no plan.
        """
        asked = self._asked
        if gpu is None and asked.device.type != "cuda":
            raise ValueError(
                f"gpu: expected a compute capability such as (9, 0), got None, and the layer is on "
                f"{asked.device.type!r}: only kernels of a GPU are planned"
            )
        given = (asked.cell, asked.T, asked.B, asked.I, asked.H, dtype or asked.dtype)
        return timeline(*given, gpu or asked.device, asked.directions)


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
    chosen = _chosen(what if one_step else module, cell, T, B, H, dtype, device, training, one_step)
    features, directions = H, 1
    if isinstance(what, nn.Module) and module is not None:
        features, directions = module.input_size, 1 + module.bidirectional
    return Explanation(*chosen, _Asked(cell, T, B, features, H, directions, dtype, device))


def _chosen(module, cell, T, B, H, dtype, device, training, one_step) -> tuple[str, str]:
    """The backend and the reason in words."""
    if one_step and device.type != "cuda":
        found = choose_step.plain_step(module, dtype, B, training)
        return "reference" if found.engine == "step" else found.engine, str(found.reason)
    layers = None if one_step else module
    whole = choose.plain(layers or (cell, H), dtype, device, T, B, training, may_time=True)
    if whole.engine == "aten":
        return "aten", _with_sizes(whole.reason, T, B, H)
    found = choose.layer("auto", cell, device, dtype)
    if found.engine == "auto":
        like = torch.empty(1, 1, 1, 1, dtype=dtype, device=device).expand(T, B, 1, H)
        found = choose.at_run_time("auto", cell, like, "forward", training)
    if found.engine == "cpp":
        measured = isinstance(whole.reason, cpu_race.Finding)
        reason = whole.reason if measured else f"{found.reason}, and {whole.reason}"
        return "cpp", _with_sizes(reason, T, B, H)
    return found.engine, str(found.reason)


def _with_sizes(reason, T, B, H) -> str:
    """A reason in words, with what was asked where it is of other sizes."""
    measured = isinstance(reason, cpu_race.Finding) and reason.ratio is not None
    return f"{reason}; asked: T={T} B={B} H={H}" if measured else str(reason)
