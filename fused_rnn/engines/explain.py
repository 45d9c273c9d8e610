"""What "auto" runs, and why."""

from __future__ import annotations

import numbers
from dataclasses import dataclass

import torch
from torch import nn

from .. import cells, context, plan
from ..cells import Cell
from ..plan import cpu, plans, tuned
from ..self_check import admission
from . import aten, choose, cpu_race


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
    is_module = isinstance(what, nn.Module) and hasattr(what, "cell")
    one_step, module = is_module and not hasattr(what, "num_layers"), None
    if one_step and T != 1:
        raise ValueError(f"T: expected 1 for a module of one step, got {T}")
    if is_module:
        like = next(what.parameters())
        module = None if one_step or H not in (None, what.hidden_size) else what
        H, dtype, device = H or what.hidden_size, dtype or like.dtype, device or like.device
        what = what.cell
    cell = cells.as_cell(what)
    for name, size in (("T", T), ("B", B), ("H", H)):
        if size is not None and (isinstance(size, bool) or not isinstance(size, numbers.Integral)):
            raise TypeError(f"{name}: expected int, got {type(size).__name__}")
        if size is not None and size < 1:
            raise ValueError(f"{name}: expected a number greater than zero, got {size}")
    if H is None:
        raise ValueError(f"H: expected the hidden units of cell {cell.name!r}, got None")
    dtype, device = dtype or torch.float32, torch.device(device or "cpu")
    if one_step and device.type != "cuda":
        return _of_one_step(cell, dtype)
    if device.type != "cpu" or context.interpreted():
        return _by_kernels(cell, T, B, H, dtype, device, training)
    why_not = choose.why_not_cpp(cell, device, dtype)
    because = f'backend "cpp" cannot serve: {why_not}'
    if not aten.has(cell):
        if why_not:
            return Explanation("sequence", because)
        return Explanation("cpp", "the C++ loop serves, and torch.nn has no such cell")
    if why_not:
        return Explanation("aten", because)
    if module is None:
        kind = cpu_race.kind_of(cell.name, dtype, training, T, B, H)
        found = cpu_race.choose(kind, T, B, H, may_time=True)
    else:
        found = aten.on_cpu(module, dtype, training, T, B, packed=False, may_time=True)
    return Explanation("aten" if found.aten else "cpp", _words(found, (T, B, H), dtype))


def _of_one_step(cell, dtype):
    if aten.has_step(cell, dtype):
        return Explanation("aten", "torch.nn's own function takes a single step")
    return Explanation("reference", "a single step runs PyTorch's operations as they are")


def _words(found, asked, dtype):
    """What was timed or which row was taken, and how far that is from what was asked."""
    if found.source == "nothing":
        return f"nothing was timed, and {cpu.FILE.name} has nothing for {dtype}"
    took = f"torch.nn took {found.ratio:.2f} times as long as the C++ loop"
    if found.source == "timed":
        kind = found.kind
        threads = f"{kind.threads} thread{'s' * (kind.threads > 1)}"
        return (
            f"timed on this processor: {_kind(kind)} I={kind.I}, {threads}: {took}; "
            f"asked: {_sizes(*asked)}"
        )
    row, where = found.row, cpu.table()[0].get("cpu", "another machine")
    words = f"nearest measured: {_kind(row)} on {where}: {took}; asked: {_sizes(*asked)}"
    if found.distance:
        words += f", {found.distance:.1f} factors of two away"
    if not found.here:
        words += (
            "; measured on another processor or number of threads, so that the loop runs only "
            f"above {cpu_race.MARGIN_ELSEWHERE:g}"
        )
    return words


def _kind(of) -> str:
    return f"{of.cell} {of.dtype} {of.mode} {_sizes(of.T, of.B, of.H)}"


def _sizes(T, B, H) -> str:
    return f"T={T} B={B} H={H}"


def _by_kernels(cell, T, B, H, dtype, device, training):
    known = tuned.find(cell, T, B, H, dtype, device, 1, training) if aten.has(cell) else None
    if known is not None and known.aten_is_fastest:
        return Explanation("aten", f"{known.aten:.1f} us per step, measured on this machine")
    reason = plans.why_not_triton(cell, device, dtype)
    if reason:
        return Explanation("sequence", f'backend "triton" cannot serve: {reason}')
    like = torch.empty(1, 1, 1, 1, dtype=dtype, device=device).expand(T, B, 1, H)
    if not admission.admits("auto", cell, "forward", like, training):
        return Explanation("sequence", "the kernels did not pass their self-check")
    launch = plan.plan(cell, T, B, H, dtype, device, 1, training).forward
    return Explanation("triton", f'the fused kernels, with strategy "{launch.strategy}"')
