"""Whether the fused kernels are trusted on this GPU: checked once, remembered on disk."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import re
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import torch
from torch import Tensor

from . import activations, backends, cells, plan, tables, trial
from .cells import Cell
from .trial import Outcome

_AGREED = Outcome(True)

# One check at a time: it forces a strategy on the whole process, see ``plan.use_strategy``.
_lock = threading.Lock()
# By cell, strategy, dtype, whether TF32, form of the activations, and device; and by the digest of
# what the disk knows.
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

    Each strategy runs a small random problem, forward and backward, against the float64 reference.
    What agreed before on this GPU with these versions is not run again.

    Args:
        cell: a ``Cell`` or the name of a built-in one.
        strategies: of ``plan.STRATEGIES``. Default: all that the device can run.

    Returns:
        By strategy what came of it, without those that do not fit the device.

    Raises:
        RuntimeError: the kernels cannot serve this cell, device or dtype at all; says why.
        ValueError: an unknown cell.
    """
    cell = cells.get(cell) if isinstance(cell, str) else cell
    device = torch.device(device)
    reason = backends.why_not_triton(cell, device, dtype)
    if device.type == "cuda" and not torch.cuda.is_available():
        reason = "there is no CUDA device"
    if reason:
        raise RuntimeError(f"the kernels cannot run cell {cell.name!r} here: {reason}")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if strategies is None:
        # Programs that wait for each other never end in an interpreter that runs them in turn.
        strategies = plan.STRATEGIES if device.type == "cuda" else ("resident", "step")
    with _lock:
        strategies = [s for s in strategies if trial.fitting(cell, s, dtype, device)[1]]
    return {strategy: _outcome(cell, strategy, dtype, device) for strategy in strategies}


def admits(backend: str, cell: Cell, kind: str, like: Tensor) -> bool:
    """Whether an op runs the kernels; the first time this checks them.

    Args:
        backend: of the op: "auto" asks for the kernels where they agree, "triton" for the kernels
            and a warning where they do not, "unchecked" for the kernels.
        kind: "forward" or "backward".
        like: a tensor (T, B, D, ..., H) of the problem.
    """
    if backend not in ("auto", "triton"):
        return backend == "unchecked"
    device = like.device
    if os.environ.get("FUSED_RNN_SELF_CHECK") == "0" or device_facts(device) is None:
        return True
    if _lock.locked():
        with _lock:  # another thread's check has forced its strategy on the plan
            pass
    steps, batch, directions, hidden = *like.shape[:3], like.shape[-1]
    planned = plan.plan(cell, steps, batch, hidden, like.dtype, device, directions)
    strategy = getattr(planned, kind).strategy
    return _outcome(cell, strategy, like.dtype, device, hidden).agrees or backend == "triton"


def _outcome(cell, strategy, dtype, device, hidden=None) -> Outcome:
    """From memory, from disk, or from a check; warns where it is not agreement."""
    tf32, form = trial.uses_tf32(dtype, device), activations.form(dtype)
    spot = (cell, strategy, dtype, tf32, form, device)
    outcome = _memory.get(spot)
    if outcome is None:
        with _lock:
            outcome = _memory.get(spot) or _find_out(spot, hidden)
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


def _find_out(spot, hidden) -> Outcome | None:
    """None while a graph is captured, which a check would break."""
    cell, strategy, dtype, tf32, form, device = spot
    facts, key, digest = device_facts(device), None, None
    if facts is not None:
        try:
            key = _key(facts, cell, strategy, dtype, tf32, form)
        except Exception as error:
            # An operation that the printer of kernels does not know, for one.
            return Outcome(False, f"{type(error).__name__}: {error}")
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        if digest in _by_digest:
            return _by_digest[digest]
        if _read(digest, key):
            return _AGREED
    if _capturing(device):
        return None
    outcome = trial.attempt(cell, strategy, dtype, device, hidden)
    if facts is not None:
        _by_digest[digest] = outcome
        if outcome.agrees:
            _write(digest, key, outcome)
    return outcome


def _capturing(device) -> bool:
    if device.type != "cuda":
        return False
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


@functools.cache
def device_facts(device: torch.device) -> dict[str, str] | None:
    """What the machine code and its behaviour depend on; None where nothing is checked."""
    if device.type != "cuda":
        return None
    return {
        "gpu": torch.cuda.get_device_name(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "driver": driver_version(),
        **versions(),
    }


def versions() -> dict[str, str]:
    """Of this package, torch and Triton, which may be absent."""
    return {
        "fused_rnn": sys.modules[__package__].__version__,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda or torch.version.hip),
        "triton": importlib.import_module("triton").__version__
        if backends.triton_installed()
        else "absent",
    }


def driver_version() -> str:
    """Of the kernel module; where it does not say, the newest CUDA that the driver knows."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
        return re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text).group(1)
    except (OSError, AttributeError):
        get = getattr(torch._C, "_cuda_getDriverVersion", None)
        return f"CUDA {get()}" if get else "unknown"


def _key(facts, cell, strategy, dtype, tf32, form) -> dict:
    """What the verdict holds for."""
    wiring = (cell.gates, cell.states, cell.params, cell.streams, cell.x_gates, cell.spans)
    sources = [s.source.__name__ if callable(s.source) else s.source for s in cell.stages]
    source = hashlib.sha256(f"{cell.triton_source()}{wiring}{sources}".encode()).hexdigest()
    return facts | {
        "cell": cell.key,
        "source": source,
        "kernels": _kernels_digest(),
        "strategy": strategy,
        "dtype": f"{dtype} as tf32" if tf32 else str(dtype),
        "activations": form,
    }


@functools.cache
def _kernels_digest() -> str:
    """Of the files that the kernels come from: a checkout changes without a new version."""
    kernels = Path(importlib.import_module(f"{__package__}.kernels").__file__).parent
    files = [*sorted(kernels.glob("*.py")), Path(plan.__file__), tables.FILE]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def cache_directory() -> Path | None:
    """Where agreement is remembered; None where there is no home."""
    if os.environ.get("FUSED_RNN_CACHE"):
        return Path(os.environ["FUSED_RNN_CACHE"])
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return base / "fused_rnn" if base.is_absolute() else None


def _read(digest, key) -> bool:
    """Whether the disk says that this key agreed; what cannot be read says nothing."""
    try:
        known = json.loads((cache_directory() / f"{digest}.json").read_text())
        return known["key"] == key and known["agrees"] is True
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _write(digest, key, outcome) -> None:
    """Whole or not at all; a directory that cannot be written leaves it to memory."""
    try:
        directory = cache_directory()
        directory.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=directory, suffix=".part")
        with os.fdopen(handle, "w") as file:
            json.dump({"key": key, "agrees": True, "error": outcome.error}, file, indent=1)
        os.replace(name, directory / f"{digest}.json")
    except (OSError, AttributeError):
        return
