"""Decides whether the fused kernels are trusted on this GPU: checked once, remembered on disk."""

from __future__ import annotations

import hashlib
import os
import threading
import warnings

import torch
from torch import Tensor

from .. import cells, machine, numerics, plan
from ..cells import Cell
from ..plan import plans
from . import trial
from .trial import Outcome

_AGREED = Outcome(True)

# Checks take turns, since each forces a strategy on the whole process: see ``plan.use_strategy``.
turn = threading.Lock()
# Outcomes by (key of the cell, strategy, dtype, whether TF32, form of the activations, device), and
# by the digest of the key on disk.
_memory: dict[tuple, Outcome] = {}
_by_digest: dict[str, Outcome] = {}
_warned: set[tuple] = set()


def check(
    cell: Cell | str,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cuda",
    strategies: tuple[str, ...] | None = None,
) -> dict[str, Outcome]:
    """Check the kernels of a cell now, so that their first use, or a graph's capture, need not.

    Each strategy runs a small random problem, forward and backward, and is compared with the
    reference in float64. A strategy that agreed before on this GPU with these versions is not run
    again.

    Args:
        cell: a ``Cell`` or the name of a built-in one.
        strategies: of ``plan.strategies(cell)``. Default: all that the device can run.

    Returns:
        The outcome of each strategy that fits the device.

    Raises:
        RuntimeError: the kernels cannot run this cell, device or dtype at all; says why.
        TypeError, ValueError: not a cell, or an unknown one.
    """
    cell = cells.as_cell(cell)
    device = torch.device(device)
    reason = plans.why_not_triton(cell, device, dtype)
    if device.type == "cuda" and not torch.cuda.is_available():
        reason = "there is no CUDA device"
    if reason:
        raise RuntimeError(f"the kernels cannot run cell {cell.name!r} here: {reason}")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if strategies is None:
        strategies = trial.runnable(cell, device)
    with turn:
        fitting = [s for s in strategies if trial.fitting(cell, s, dtype, device)[1]]
    return {strategy: _outcome(cell, strategy, dtype, device) for strategy in fitting}


def admits(backend: str, cell: Cell, kind: str, like: Tensor, training: bool = True) -> bool:
    """Whether an op runs the kernels. Checks them if that was not done before.

    Args:
        backend: of the op: "auto" asks for the kernels where they agree, "triton" for the kernels
            and a warning where they do not.
        kind: "forward" or "backward".
        like: a tensor (T, B, D, ..., H) of the problem.
        training: see ``plan``.
    """
    device = like.device
    if os.environ.get("FUSED_RNN_SELF_CHECK") == "0" or machine.device_facts(device) is None:
        return True
    if turn.locked():
        with turn:  # another thread's check has forced its strategy on the plan
            pass
    steps, batch, directions, hidden = *like.shape[:3], like.shape[-1]
    planned = plan.plan(cell, steps, batch, hidden, like.dtype, device, directions, training)
    strategy = getattr(planned, kind).strategy
    return _outcome(cell, strategy, like.dtype, device, hidden).agrees or backend == "triton"


def _outcome(cell, strategy, dtype, device, hidden=None) -> Outcome:
    """The outcome from memory, from disk, or from a new check. Warns if the kernels disagree."""
    tf32, form = numerics.uses_tf32(dtype, device), numerics.form(dtype)
    spot = (cell.key, strategy, dtype, tf32, form, device)
    outcome = _memory.get(spot)
    if outcome is None:
        with turn:
            outcome = _memory.get(spot) or _find_out(cell, spot, hidden)
            if outcome is not None:
                _memory[spot] = outcome
    if outcome is None:
        outcome = Outcome(False, "not checked before the capture of a CUDA graph")
        advice = (
            f'backend="auto" runs "sequence" in this graph. Before the capture, call '
            f"fused_rnn.check_kernels({cell.name!r}, dtype={dtype}, device={str(device)!r})"
        )
    else:
        advice = (
            'backend="auto" runs "sequence" in their place in this process (backend="triton" '
            "still runs them). Please report this, with what `python -m fused_rnn.doctor` says; "
            "FUSED_RNN_SELF_CHECK=0 switches these checks off"
        )
    said = (*spot[:-1], outcome.reason)
    if not outcome.agrees and said not in _warned:
        _warned.add(said)
        what = f'cell {cell.name!r}, strategy "{strategy}", {dtype}, on {device}'
        warnings.warn(
            f"fused_rnn: the kernels are not trusted for {what}: {outcome.reason}. {advice}.",
            RuntimeWarning,
            stacklevel=3,
        )
    return outcome


def _find_out(cell, spot, hidden) -> Outcome | None:
    """The outcome from disk or a new check. None during a graph capture, which a check breaks."""
    _, strategy, dtype, tf32, form, device = spot
    facts, key, digest = machine.device_facts(device), None, ""
    if facts is not None:
        try:
            key = _key(facts, cell, strategy, dtype, tf32, form)
        except Exception as error:
            # For example, the cell has an operation that ``emit`` cannot print.
            return Outcome(False, f"{type(error).__name__}: {error}")
        digest = machine.digest(key)
        if digest in _by_digest:
            return _by_digest[digest]
        if _remembered(key):
            return _AGREED
    if _capturing(device):
        return None
    sizes = (*trial.SIZES, *([trial.SIZES[0]._replace(H=hidden)] if hidden else []))
    outcome = trial.attempt(cell, strategy, dtype, device, sizes)
    if key is not None:
        _by_digest[digest] = outcome
        if outcome.agrees:
            machine.remember(key, {"agrees": True, "error": outcome.error})
    return outcome


def _capturing(device) -> bool:
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def _key(facts, cell, strategy, dtype, tf32, form) -> dict:
    """Everything that the outcome depends on."""
    streams = (*cell.streams, *cell.drawn)
    wiring = (cell.gates, cell.states, cell.params, streams, cell.x_gates, cell.spans)
    sources = [(None if callable(s.source) else s.source, s.fixed) for s in cell.stages]
    text = cell.triton_source(torch.promote_types(dtype, torch.float32))
    source = hashlib.sha256(f"{text}{wiring}{sources}".encode()).hexdigest()
    return facts | {
        "cell": cell.key,
        "source": source,
        "kernels": machine.kernels_digest(),
        "strategy": strategy,
        "dtype": f"{dtype} as tf32" if tf32 else str(dtype),
        "activations": form,
    }


def _remembered(key) -> bool:
    """Whether the disk has agreement for this key. Unreadable files count as absent."""
    known = machine.recall(key)
    return known is not None and known.get("agrees") is True
