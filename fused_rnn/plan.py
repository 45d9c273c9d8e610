"""Which strategy and which blocks run a problem: one table, looked up by a pure function."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, replace

import torch

from .cells import Cell
from .cost import step_time

STRATEGIES = ("resident", "grid", "stream", "step")


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched.

    Args:
        strategy: what a program owns, where its weights are, and how programs wait for each other:

            - "resident": a batch tile with all hidden units; the weights stay on the chip for the
              whole sequence, and nobody waits for anybody;
            - "grid": a batch tile with a slice of the units, whose weights stay on the chip; all
              slices are on the GPU at once and meet at a barrier after each stage of each step;
            - "stream": as "grid", but the weights are read at each step, from the L2 cache where
              they fit there;
            - "step": as "stream", but a launch takes one stage of one step; its end is the barrier.
        block_b: rows of a batch tile.
        block_h: hidden units of a chunk.
        block_k: of the inner dimension of a product that is read block by block.
        num_warps: of a program.
        own: chunks that a program owns.
        tiles: batch tiles that are worked on at once, where programs wait for each other; each has
            its own copy of the weights and its own barrier.
    """

    strategy: str
    block_b: int
    block_h: int
    block_k: int
    num_warps: int
    own: int = 1
    tiles: int = 1

    @property
    def keeps_weights(self) -> bool:
        """On the chip, for the whole sequence."""
        return self.strategy in ("resident", "grid")

    @property
    def waits(self) -> bool:
        """Whether its programs wait for each other, and so have to be on the chip all at once."""
        return self.strategy in ("grid", "stream")


@dataclass(frozen=True)
class Plan:
    """How the forward and the backward of a problem run.

    Args:
        time: microseconds per step of the forward, by the model of ``cost.py``.
        notes: why, a line for each strategy that was considered.
    """

    forward: Launch
    backward: Launch
    time: float = 0.0
    notes: tuple[str, ...] = ()

    def explain(self) -> str:
        """What was chosen, and why, for people."""
        lines = []
        for name in ("forward", "backward"):
            launch = getattr(self, name)
            lines.append(
                f"{name}: {launch.strategy}; a program: {launch.block_b} rows, "
                f"{launch.own} x {launch.block_h} units, {launch.num_warps} warps"
            )
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


@dataclass(frozen=True)
class Blocks:
    """A row of the table: blocks that compile without spills, up to some number of units."""

    units: int  # of a program, padded to whole chunks
    block_h: int
    num_warps: int


# Shared memory that one program may use, in bytes, by compute capability.
SHARED_MEMORY = {
    (8, 0): 163 * 1024,
    (8, 6): 99 * 1024,
    (8, 9): 99 * 1024,
    (9, 0): 227 * 1024,
    (10, 0): 227 * 1024,
    (12, 0): 99 * 1024,
}

_UNLIMITED = float("inf")

# Multiprocessors of one GPU of each capability, to plan for those that are not here: A100, A10,
# L40S, H100 PCIe, B200, RTX 5080. Of one that is here the driver is asked.
MULTIPROCESSORS = {
    (8, 0): 108,
    (8, 6): 72,
    (8, 9): 142,
    (9, 0): 114,
    (10, 0): 148,
    (12, 0): 84,
}

# Beside the weights, for blocks that change their layout: 4 KiB at the most were seen.
_SCRATCH = 6 * 1024

# "resident", by bytes of an element: the chunks, by the hidden units they have room for.
_RESIDENT = {
    2: (
        Blocks(units=32, block_h=32, num_warps=4),
        Blocks(units=64, block_h=64, num_warps=4),
        Blocks(units=128, block_h=128, num_warps=8),
        Blocks(units=256, block_h=64, num_warps=8),
    ),
    4: (Blocks(units=256, block_h=32, num_warps=4),),
    8: (Blocks(units=256, block_h=32, num_warps=8),),
}

# What the registers of a program hold without spilling, by bytes of an element: padded hidden
# units, and these times the values per unit (gates, states, params) that the backward carries.
# float32 products that are exact take no tensor cores, and many more registers.
_MOST_UNITS = {2: 256, 4: 32, 8: 64}
_MOST_VALUES = 1024

# "grid", by bytes of an element. A warp computes tiles of 16 x 16 units: more warps than there are
# tiles would read the same weights and compute the same gates again.
_GRID = {
    2: (
        Launch("grid", 16, 16, 64, 2),
        Launch("grid", 16, 32, 64, 4),
        Launch("grid", 32, 16, 64, 4),
    ),
    4: (Launch("grid", 16, 16, 64, 4),),
    8: (Launch("grid", 16, 16, 32, 4),),
}

# "stream": what the registers hold of the rows and units of a program.
_MOST_STREAMED = 64

# "step" and "stream": for batches of up to 16 rows, and for larger ones, by bytes of an element.
_STEP = {
    2: (Launch("step", 16, 32, 64, 8), Launch("step", 64, 16, 64, 8)),
    4: (Launch("step", 32, 32, 32, 8), Launch("step", 32, 32, 32, 8)),
    8: (Launch("step", 16, 32, 16, 4), Launch("step", 16, 32, 16, 4)),
}

# A plain global: the backward of a CUDA tensor runs in a thread of autograd's.
_forced = None


@contextlib.contextmanager
def use_strategy(name: str | None):
    """Make the fused kernels use ``name``, one of STRATEGIES, inside the ``with``.

    Raises:
        ValueError: another name.
    """
    if name is not None and name not in STRATEGIES:
        raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {name!r}")
    global _forced
    before, _forced = _forced, name
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
) -> Plan:
    """How ``cell`` runs over (T, B) with H hidden units in D directions.

    Args:
        device: or a compute capability such as (9, 0), to plan for a GPU that is not here.

    Raises:
        RuntimeError: ``use_strategy`` is in force with a strategy that the problem does not fit.
    """
    room = _room(device)
    # A single step has nobody to wait for; the interpreter runs one program after the other.
    waits = T > 1 and room[0] != _UNLIMITED
    order = STRATEGIES if waits else ("resident", "step")
    found = _plan(cell, B, H, D, dtype, *room, order if _forced is None else (_forced,))
    if found.forward is None:
        raise RuntimeError(
            f"cell {cell.name!r} with {H} hidden units in {dtype} does not fit on {device}: "
            + "; ".join(found.notes)
        )
    return found


@functools.lru_cache(maxsize=256)
def _plan(cell, B, H, D, dtype, shared_memory, multiprocessors, order) -> Plan:
    notes, found = [], []
    for strategy in order:
        if strategy == "resident":
            fit, lack = _resident(cell, H, dtype, shared_memory)
        elif strategy == "grid":
            fit, lack = _grid(cell, H, D, dtype, shared_memory, multiprocessors)
        elif strategy == "stream":
            fit, lack = _stream(B, H, D, dtype, multiprocessors)
        else:
            fit, lack = [_STEP[dtype.itemsize][B > 16]], ""

        def estimate(launch):
            return step_time(cell, launch, B, H, D, dtype.itemsize, multiprocessors)

        if fit:
            best = min(fit, key=estimate)
            found.append((estimate(best), best))
            notes.append(f"{strategy}: {estimate(best):.1f} us per step, by the model of cost.py")
        else:
            notes.append(f"{strategy}: {lack}")
        if fit and strategy == "resident":  # nobody waits for anybody
            break
    time, launch = min(found, key=lambda pair: pair[0], default=(0.0, None))
    return Plan(launch, launch, time, tuple(notes))


# Each of these: the launches that fit, or none and what it is that does not.


def _resident(cell, hidden, dtype, shared_memory) -> tuple[list[Launch], str]:
    values = len(cell.gates) + len(cell.states) + len(cell.params)
    weights = 0
    for blocks in _RESIDENT[dtype.itemsize]:
        chunks = -(-hidden // blocks.block_h)
        units = chunks * blocks.block_h
        weights = len(cell.recurrent_gates) * units * units * dtype.itemsize
        if units > blocks.units:
            continue
        fits = weights + _SCRATCH <= shared_memory and units <= _MOST_UNITS[dtype.itemsize]
        if shared_memory == _UNLIMITED or (fits and values * units <= _MOST_VALUES):
            block = blocks.block_h
            return [Launch("resident", 16, block, block, blocks.num_warps, own=chunks)], ""
    if weights + _SCRATCH > shared_memory:
        return [], f"{_kib(weights)} of weights, {_kib(shared_memory)} on a multiprocessor"
    return [], f"{values} values of each of {hidden} units: more than its registers hold"


def _grid(cell, hidden, directions, dtype, shared_memory, multiprocessors):
    fit = []
    for launch in _GRID[dtype.itemsize]:
        slices = -(-hidden // launch.block_h)
        inner = -(-hidden // launch.block_k) * launch.block_k
        weights = len(cell.recurrent_gates) * inner * launch.block_h * dtype.itemsize
        at_once = multiprocessors // (slices * directions)
        if at_once >= 1 and weights + _SCRATCH <= shared_memory:
            fit.append(replace(launch, tiles=at_once))
    return fit, (
        f"{_kib(len(cell.recurrent_gates) * hidden**2 * directions * dtype.itemsize)} of weights, "
        f"{multiprocessors} multiprocessors with {_kib(shared_memory)}"
    )


def _stream(batch, hidden, directions, dtype, multiprocessors):
    launch = _STEP[dtype.itemsize][batch > 16]
    chunks = -(-hidden // launch.block_h)
    own = -(-chunks * directions // multiprocessors)
    at_once = multiprocessors // (-(-chunks // own) * directions)
    if own * launch.block_h > _MOST_STREAMED or at_once < 1:
        return [], f"{own * launch.block_h} units of a program: more than its registers hold"
    return [replace(launch, strategy="stream", own=own, tiles=at_once)], ""


def _kib(size: float) -> str:
    return f"{size / 1024:.0f} KiB"


def _room(device) -> tuple[float, int]:
    """Shared memory that one program may use, and how many multiprocessors there are.

    On the CPU, where kernels are interpreted, memory is unlimited, and a few programs are enough.
    """
    if isinstance(device, torch.device):
        if device.type != "cuda":
            return _UNLIMITED, 6
        count = torch.cuda.get_device_properties(device).multi_processor_count
        return _room(torch.cuda.get_device_capability(device))[0], count
    known = [capability for capability in SHARED_MEMORY if capability <= tuple(device)]
    return (SHARED_MEMORY[max(known)], MULTIPROCESSORS[max(known)]) if known else (0, 1)
