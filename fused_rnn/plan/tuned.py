"""Times measured on this machine: written by ``bench/tune``, read by ``plan`` and by "auto".

The folder "tuned" of the cache has a file for each layer that was timed. It is valid only for this
GPU, driver, torch, Triton, cuDNN and these kernels. A layer is looked up by its cell, dtype, H, D,
and B rounded up to a power of two: times for 48 rows, say, are used for 33 to 64. T makes no
difference, except that a single step is a layer of its own.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, dataclass

import torch

from .. import cells, machine, numerics
from ..cells import Cell
from .chips import ALL, Launch

FOLDER = "tuned"

# By device and layer; None if the disk has none, which is read once.
_memory: dict[tuple, Timing | None] = {}
_warned: set[str] = set()


@dataclass(frozen=True, eq=False)  # compared by identity: fast to look up in a cache
class Timing:
    """Microseconds per time step of a layer, with all its products; correct candidates only.

    Args:
        steps, batch: the T and B that were timed.
        aten: time of torch.nn's kernels, cuDNN on a GPU; None if they were excluded.
        launches: times of the fused kernels, by launch.
        notes: why others were excluded.
    """

    steps: int
    batch: int
    aten: float | None
    launches: tuple[tuple[Launch, float], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        whole = [("steps", self.steps), ("batch", self.batch)]
        for launch, _ in self.launches:
            numbers = asdict(launch)
            strategy = numbers.pop("strategy")
            if strategy not in ALL:
                raise ValueError(f"strategy: expected one of {ALL}, got {strategy!r}")
            if type(numbers.pop("explicit")) is not bool:
                raise ValueError(f"explicit: expected a bool, got {launch.explicit!r}")
            whole += [(name, n) for name, n in numbers.items() if n is not None]
        for name, value in whole:
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}: expected a number greater than zero, got {value!r}")
        times = [time for _, time in self.launches] + [0.1 if self.aten is None else self.aten]
        for time in times:
            if type(time) is not float or not 0 < time < float("inf"):
                raise ValueError(f"time: expected microseconds greater than zero, got {time!r}")

    def __str__(self):
        return f"{self.aten:.1f} us per step, measured on this machine"

    @property
    def aten_is_fastest(self) -> bool:
        return self.aten is not None and all(self.aten < time for _, time in self.launches)


def find(
    cell: Cell,
    T: int,
    B: int,
    H: int,
    dtype: torch.dtype,
    device: torch.device,
    D: int = 1,
    training: bool = True,
) -> Timing | None:
    """The timing of a layer on a device; None if there is none, or with FUSED_RNN_TUNED=0.

    Args:
        training: whether forward and backward were timed, not a forward that keeps nothing.
    """
    if os.environ.get("FUSED_RNN_TUNED") == "0" or B < 1 or T < 1:
        return None
    tf32 = numerics.uses_tf32(dtype, device)
    spot = (cell.key, T == 1, (B - 1).bit_length(), H, dtype, tf32, device, D, training)
    if spot not in _memory:
        key = _key(cell, T, B, H, dtype, device, D, training)
        _memory[spot] = None if key is None else _read(key)
    return _memory[spot]


def record(
    timing: Timing,
    cell: Cell,
    H: int,
    dtype: torch.dtype,
    device: torch.device,
    D: int = 1,
    training: bool = True,
) -> None:
    """Store a timing, replacing what is known of this layer.

    Raises:
        ValueError: a cell that is not built in, or a device without stored timings.
        OSError: the cache cannot be written.
    """
    key = _key(cell, timing.steps, timing.batch, H, dtype, device, D, training)
    if key is None:
        raise ValueError(f"nothing is remembered of cell {cell.name!r} on {device}")
    content = {
        "steps": timing.steps,
        "batch": timing.batch,
        "aten": timing.aten,
        "launches": [asdict(launch) | {"time": time} for launch, time in timing.launches],
        "notes": timing.notes,
    }
    if not machine.remember(key, content, FOLDER):
        raise OSError(f"{machine.cache_directory()} cannot be written")
    _memory.clear()


def aten_is_faster(
    cell: Cell, input: torch.Tensor, H: int, directions: int, training: bool
) -> bool:
    """Whether torch.nn's kernels were the fastest for such a layer.

    Args:
        input: (T, B, I).
    """
    steps, batch = input.shape[:2]
    known = find(cell, steps, batch, H, input.dtype, input.device, directions, training)
    return known is not None and known.aten_is_fastest


def _key(cell, T, B, H, dtype, device, D, training) -> dict | None:
    """The key of a layer; None off a GPU, or for a cell that is not built in."""
    facts = machine.device_facts(device)
    if facts is None or cell.name not in cells.names() or cells.get(cell.name) is not cell:
        return None
    name = str(dtype).removeprefix("torch.")
    return facts | {
        "cudnn": str(torch.backends.cudnn.version()),
        "kernels": machine.kernels_digest(),
        "cell": cell.name,
        "dtype": "tf32" if numerics.uses_tf32(dtype, device) else name,
        "hidden": H,
        "directions": D,
        "batch up to": 1 << (B - 1).bit_length(),
        "single step": T == 1,
        "mode": "training" if training else "inference",
    }


def _read(key) -> Timing | None:
    """Read a timing; an unusable file is warned of once, and counts as none."""
    known, file = machine.recall(key, FOLDER), machine.file_of(key, FOLDER)
    if known is None:
        if file is None or not file.exists():
            return None
        text = f"{file} is of another key than its name says, or not of this user alone"
    else:
        try:
            return _timing(known)
        except ValueError as error:
            text = str(error)
    if text not in _warned:
        _warned.add(text)
        warnings.warn(
            f"fused_rnn: what was tuned on this machine is not used: {text}. Delete it, or tune "
            "again with `python -m bench.tune`; FUSED_RNN_TUNED=0 switches this off.",
            RuntimeWarning,
            stacklevel=4,
        )
    return None


def _timing(known: dict) -> Timing:
    """Parse a stored timing; raises ValueError if ``record`` would not write it so."""
    try:
        launches = []
        for entry in known["launches"]:
            numbers = dict(entry)
            time = numbers.pop("time")
            launches.append((Launch(**numbers), time))
        notes = tuple(map(str, known["notes"]))
        return Timing(known["steps"], known["batch"], known["aten"], tuple(launches), notes)
    except (KeyError, TypeError, ValueError) as error:
        file = machine.file_of(known["key"], FOLDER)
        raise ValueError(f"{file} has no timing: {type(error).__name__}: {error}") from None
