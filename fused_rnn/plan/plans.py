"""Choose the strategy and the blocks for a problem, from tables, by a pure function."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .. import context, numerics, once
from ..cells import Cell, linear
from . import chips, explicit, tuned
from .chips import ALL, PARALLEL, SCAN, STRATEGIES, Chip, Launch
from .cost import squares, step_time


@dataclass(frozen=True)
class Plan:
    """How the forward and the backward of a problem run.

    Args:
        time: microseconds per step: estimated by ``cost.py`` for the forward, or measured on this
            machine for the layer, in training with its backward.
        notes: the reasons, a line for each strategy or launch that was considered.
    """

    forward: Launch
    backward: Launch
    time: float = 0.0
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, launch: Launch, time: float = 0.0, notes: tuple[str, ...] = ()) -> Plan:
        """The plan by a launch of the tables, which says how the backward runs too."""
        return cls(launch, launch.backward(), time, notes)

    def explain(self) -> str:
        """Report which launches were chosen, and why, as text."""
        lines = [f"forward: {describe(self.forward)}", f"backward: {describe(self.backward)}"]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def describe(launch: Launch) -> str:
    """Describe the program of a launch as text."""
    layouts = ", explicit layouts" if launch.explicit else ""
    return (
        f"{launch.strategy}{layouts}; a program: {launch.block_b} rows, "
        f"{launch.own} x {launch.block_h} units, {launch.num_warps} warps"
    )


# Bytes of shared memory besides the weights, for changes of layout; at most 4 KiB were seen.
_SCRATCH = 6 * 1024

# Values of a unit that rows without a limit of their own were compiled for.
MOST_VALUES = 15

# Registers of a thread for the values of a cell with more, where a program keeps its weights, and
# where it does not; the other registers hold addresses and sums.
_MOST_REGISTERS, _MOST_REGISTERS_OF_OTHERS = 128, 170

# A global, not thread-local: the backward of a CUDA tensor runs in one of autograd's threads.
_forced = None


@contextlib.contextmanager
def use_strategy(name: str | None) -> Iterator[None]:
    """Make the fused kernels use ``name`` inside the ``with``: one of ``strategies(cell)``.

    Raises:
        ValueError: another name.
    """
    if name is not None and name not in ALL:
        raise ValueError(f"strategy: expected one of {', '.join(ALL)}, got {name!r}")
    with _force(name):
        yield


def use_launch(launch: Launch) -> contextlib.AbstractContextManager[None]:
    """Make the fused kernels use this launch, one of ``candidates``, inside the ``with``."""
    return _force(launch)


@contextlib.contextmanager
def _force(what: str | Launch | None):
    global _forced
    before, _forced = _forced, what
    try:
        yield
    finally:
        _forced = before


def plan(
    cell: Cell,
    T: int,
    B: int,
    H: int,
    dtype: torch.dtype,
    device: torch.device | tuple[int, int],
    D: int = 1,
    training: bool = True,
) -> Plan:
    """Plan how ``cell`` runs over (T, B) with H hidden units in D directions.

    Uses what ``bench/tune`` measured on this machine, see ``tuned.py``, or else the tables.

    Args:
        device: a device; or a compute capability such as (9, 0), to plan for another GPU, without
            regard to what was measured.
        training: whether a backward follows. It matters only to what was measured.

    Raises:
        RuntimeError: the problem does not fit the strategy that ``use_strategy`` demands.
    """
    chip = _chip(device)
    if isinstance(_forced, Launch):
        return Plan.of(_forced, notes=("by use_launch",))
    if _forced is None and isinstance(device, torch.device):
        timing = tuned.find(cell, T, B, H, dtype, device, D, training)
        found = timing and _by_measurement(cell, H, D, dtype, chip, timing)
        if found:
            return found
    order = _strategies(cell, T, chip) if _forced is None else (_forced,)
    # The power of two below T, so that lengths that vary share a plan.
    steps = 1 << (T.bit_length() - 1) if PARALLEL in order else 0
    found = _plan(cell, B, H, D, dtype, chip, order, steps, numerics.rnn_precision())
    if isinstance(found, tuple):
        raise RuntimeError(
            f"cell {cell.name!r} with {H} hidden units in {dtype} does not fit on {device}: "
            + "; ".join(found)
        )
    return found


@once.per_cell_of_few(256)
def _plan(cell, B, H, D, dtype, chip, order, steps, precision) -> Plan | tuple[str, ...]:
    """The plan by the model of cost.py, or why no strategy fits; ``precision`` is that of now."""
    notes, found = [], []
    for strategy in order:
        best, lack = quickest(cell, strategy, B, H, D, dtype, chip, steps)
        if best is None:
            notes.append(f"{strategy}: {lack}")
            continue
        size = (B, H, D, dtype.itemsize, chip.multiprocessors)
        time = step_time(cell, best, *size, steps=steps)
        found.append((time, best))
        notes.append(f"{strategy}: {time:.3g} us per step, by the model of cost.py")
    if not found:
        return tuple(notes)
    time, launch = min(found, key=lambda pair: pair[0])
    return Plan.of(launch, time, tuple(notes))


@once.per_cell_of_few(256)
def _by_measurement(cell, H, D, dtype, chip, timing) -> Plan | None:
    """The plan by measured times; None if no measured launch is in the tables of this chip."""
    known = {
        launch for s in strategies(cell) for launch in candidates(cell, s, H, D, dtype, chip)[0]
    }
    found = [(time, launch) for launch, time in timing.launches if launch in known]
    if not found:
        return None
    time, launch = min(found, key=lambda pair: pair[0])
    rows = f"T {timing.steps} and B {timing.batch}"
    notes = [
        f"{describe(other)}: {t:.1f} us per step of {rows}, measured on this machine"
        for t, other in sorted(found, key=lambda pair: pair[0])
    ]
    if timing.aten is not None:
        notes.append(f"torch.nn: {timing.aten:.1f} us per step, measured on this machine")
    return Plan.of(launch, time, (*notes, *timing.notes))


def strategies(cell: Cell) -> tuple[str, ...]:
    """The strategies of a cell; which of them fit depends on the problem."""
    if cell.stages:
        return STRATEGIES
    return (SCAN,) if linear.why_not(cell) else (SCAN, PARALLEL)


def _strategies(cell: Cell, T: int, chip: Chip) -> tuple[str, ...]:
    # A single step needs no barrier; the interpreter runs programs one after the other.
    if cell.stages and (T == 1 or chip.interpreted):
        return ("resident", "step")
    return (SCAN,) if T == 1 and not cell.stages else strategies(cell)


def launches(
    cell: Cell, T: int, H: int, dtype: torch.dtype, device: torch.device, D: int = 1
) -> dict[str, tuple[list[Launch], str]]:
    """The ``candidates`` of every strategy: all launches that could run a problem."""
    chip = _chip(device)
    return {s: candidates(cell, s, H, D, dtype, chip) for s in _strategies(cell, T, chip)}


def quickest(
    cell: Cell,
    strategy: str,
    B: int,
    H: int,
    D: int,
    dtype: torch.dtype,
    chip: Chip,
    steps: int = 0,
) -> tuple[Launch | None, str]:
    """Find the launch of a strategy with the least time by the model of ``cost.py``.

    Args:
        steps: of the sequence, for "parallel_scan".

    Returns:
        The launch; or None and the reason why none fits.
    """
    fit, lack = candidates(cell, strategy, H, D, dtype, chip)

    def estimate(launch, **options):
        size = (B, H, D, dtype.itemsize, chip.multiprocessors)
        return step_time(cell, launch, *size, steps=steps, **options)

    # Among launches that Python's launch rate limits, prefer the one that is faster in a graph.
    best = min(fit, key=lambda launch: (estimate(launch), estimate(launch, python=0)), default=None)
    return best, lack


def candidates(
    cell: Cell, strategy: str, H: int, D: int, dtype: torch.dtype, chip: Chip
) -> tuple[list[Launch], str]:
    """The launches of a strategy that fit on a chip, by its table.

    Returns:
        The launches; and if there are none, the reason.
    """
    if strategy == PARALLEL and linear.why_not(cell):
        return [], linear.why_not(cell) or ""
    if strategy not in strategies(cell):
        return [], f"the strategies of cell {cell.name!r} are {', '.join(strategies(cell))}"
    fit, lack = [], f"no blocks in the table of {chip.name} for {dtype}"
    for row in chip.of(strategy, dtype.itemsize):
        launch, why_not = fitting(cell, row, H, D, chip)
        lack = why_not or lack
        if launch is not None:
            fit.append(launch)
    if (
        strategy == "step" and values(cell) > MOST_VALUES
    ):  # something must run, if need be with spills
        fit = [f for f in fit if not _spills(cell, dtype.itemsize, f)] or fit
    return fit, "" if fit else lack


def fitting(cell: Cell, row: chips.Row, H: int, D: int, chip: Chip) -> tuple[Launch | None, str]:
    """The launch of a row of the table for a problem, or the reason why it does not fit."""
    blocks = row.blocks
    if blocks.explicit:
        lack = explicit.why_not(cell, row, H, chip.shared_memory)
        if lack:
            return None, lack
    chunks = -(-H // blocks.block_h)
    own = chunks if blocks.strategy == "resident" else 1
    if blocks.strategy == "stream":
        own = -(-chunks * D // chip.multiprocessors)
    units = own * blocks.block_h
    most = chip.multiprocessors * (blocks.per_multiprocessor or 1)
    launch = row.launch(own, max(1, most // (-(-chunks // own) * D)))
    if launch.keeps_weights and not launch.explicit:
        weights = _inner(cell, launch, H) * units * row.itemsize
        if weights + _SCRATCH > chip.shared_memory:
            room = _kib(chip.shared_memory)
            return None, f"{_kib(weights)} of weights of a program, {room} on a multiprocessor"
    if launch.waits and -(-chunks // own) * D > most:
        need = -(-chunks // own) * D
        return None, f"{need} programs at once, {chip.multiprocessors} multiprocessors"
    if row.units is not None and units > row.units:
        return None, f"{units} units of a program: more than its registers hold"
    if row.values is not None and values(cell) * units > row.values:
        return None, f"{values(cell)} values of each of {units} units: more than its registers hold"
    many = values(cell) > MOST_VALUES and not chip.interpreted and not launch.explicit
    if many and row.values is None and launch.keeps_weights:
        return None, f"{values(cell)} values of a unit: more than blocks were compiled for"
    if many and launch.strategy != "step" and _spills(cell, row.itemsize, launch):
        return None, f"{values(cell)} values of a unit: more than its registers hold"
    if row.hidden is not None and row.hidden < H:
        return None, f"{H} units: more than its registers hold"
    return launch, ""


def _inner(cell: Cell, launch: Launch, H: int) -> int:
    """The sum of the inner dimensions of all products of a step, padded to whole blocks.

    For the larger of the forward and the backward.
    """
    blocks = squares(cell)
    if launch.strategy == "resident":
        return blocks * launch.own * launch.block_h
    k = launch.backward_k or launch.block_k
    backward = sum(_padded(gates * H, k) * vectors for gates, vectors in cell.matrices)
    return max(blocks * _padded(H, launch.block_k), backward)


def _padded(size: int, block: int) -> int:
    return -(-size // block) * block


def values(cell: Cell) -> int:
    """The number of values per hidden unit that registers hold."""
    gates = len(cell.gates)
    for stage in cell.stages:
        if stage.fixed in ("mean", "sum"):
            gates -= len(stage.gates) / 2  # one number per row, and its gradient's sum over units
        elif stage.fixed == "cumsum":
            gates += len(stage.gates)  # what is summed, and the sums
    # A further vector of a source costs an accumulator, and tiles of its weights in flight.
    further = max(cell.source_sizes, default=1) - 1
    return math.ceil(gates) + len(cell.states) + len(cell.params) + 3 * further


def _spills(cell: Cell, itemsize: int, launch: Launch) -> bool:
    """Whether the values of a unit are too many for 16-bit kernels of a launch."""
    most = _MOST_REGISTERS if launch.keeps_weights else _MOST_REGISTERS_OF_OTHERS
    return itemsize == 2 and values(cell) * _per_thread(launch) > most


def _per_thread(launch: Launch) -> int:
    """The registers of a thread for one value of all units and rows of a program.

    The warps split what a product returns: its rows if it has no more units than these.
    """
    rows, units = launch.block_b, launch.block_h
    if rows >= units:
        rows = max(16, rows // launch.num_warps)
    else:
        units = max(8, units // launch.num_warps)
    return rows * units * launch.own // 32


def _kib(size: float) -> str:
    return f"{size / 1024:.0f} KiB"


def held_choices(
    cell: Cell,
    launch: Launch,
    H: int,
    itemsize: int,
    backward: bool,
    device: torch.device | tuple[int, int],
) -> tuple[tuple[int, ...], ...]:
    """How many matrices of each stage a kernel with explicit layouts may have in registers, the
    first choice first: see ``explicit.held_choices``."""
    memory = _chip(device).shared_memory
    return explicit.held_choices(cell, launch, H, itemsize, backward, memory)


def _chip(device) -> Chip:
    """The chip of a device or capability; the driver tells a GPU's number of multiprocessors."""
    if not isinstance(device, torch.device):
        return chips.chip(tuple(device))
    if device.type != "cuda":
        return chips.chips()[chips.INTERPRETER]
    return _chip_here(device)


@functools.cache
def _chip_here(device) -> Chip:
    count = torch.cuda.get_device_properties(device).multi_processor_count
    return chips.chip(torch.cuda.get_device_capability(device), count)


def why_not_triton(cell: Cell, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why the fused kernels cannot run a cell, or None if they can."""
    if not context.triton_installed():
        return "Triton is not installed"
    if device.type != "cuda" and not (device.type == "cpu" and context.interpreted()):
        return f"the tensors are on {device}; it needs a CUDA device, or TRITON_INTERPRET=1"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        return f"its kernels have no dtype {dtype}"
    return None
