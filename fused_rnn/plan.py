"""Which strategy and which blocks run a problem: one table, looked up by a pure function."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

import torch

from .cells import Cell

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
    """How the forward and the backward of a problem run."""

    forward: Launch
    backward: Launch


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

# Multiprocessors of the smallest common GPU of a capability, to plan for one that is not here:
# A100, A10, L40S, H100 PCIe, B200, RTX 5080. Of one that is here the driver is asked.
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

# "resident": the chunks, by the hidden units they have room for.
_RESIDENT = (
    Blocks(units=32, block_h=32, num_warps=4),
    Blocks(units=256, block_h=64, num_warps=8),
)

# What the registers of a program hold without spilling, by bytes of an element: padded hidden
# units, and these times the values per unit (gates, states, params) that the backward carries.
# float32 products that are exact take no tensor cores, and many more registers.
_MOST_UNITS = {2: 256, 4: 64, 8: 64}
_MOST_VALUES = 1024

# "grid", by bytes of an element: the narrowest blocks first, since more multiprocessors share the
# work; the wider ones for what would take several launches otherwise.
_GRID = {
    2: (
        Launch("grid", 16, 16, 128, 4),
        Launch("grid", 16, 32, 128, 4),
        Launch("grid", 32, 16, 64, 8),
        Launch("grid", 32, 32, 64, 8),
    ),
    4: (Launch("grid", 16, 16, 64, 4), Launch("grid", 16, 32, 64, 4)),
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
    shared_memory, multiprocessors = _room(device)
    if _forced is None:
        order = ("resident", "grid", "stream", "step") if T > 1 else ("resident", "step")
    else:
        order = (_forced,)
    for strategy in order:
        if strategy == "resident":
            launch = _resident(cell, H, dtype, shared_memory)
        elif strategy == "grid":
            launch = _grid(cell, B, H, D, dtype, shared_memory, multiprocessors)
        elif strategy == "stream":
            launch = _stream(B, H, D, dtype, multiprocessors)
        else:
            launch = _STEP[dtype.itemsize][B > 16]
        if launch is not None:
            return Plan(forward=launch, backward=launch)
    raise RuntimeError(
        f'strategy "{_forced}": cell {cell.name!r} with {H} hidden units in {dtype} does not fit '
        f"on {device}: {_WHAT_HAS_TO_FIT[_forced]}"
    )


_WHAT_HAS_TO_FIT = {
    "resident": "its recurrent weights on one multiprocessor",
    "grid": "its recurrent weights on all multiprocessors together",
    "stream": "its states in the registers of all multiprocessors together",
}


def _resident(cell, hidden, dtype, shared_memory) -> Launch | None:
    values = len(cell.gates) + len(cell.states) + len(cell.params)
    for blocks in _RESIDENT:
        chunks = -(-hidden // blocks.block_h)
        units = chunks * blocks.block_h
        if units > blocks.units:
            continue
        weights = len(cell.recurrent_gates) * units * units * dtype.itemsize
        fits = weights + _SCRATCH <= shared_memory and units <= _MOST_UNITS[dtype.itemsize]
        if shared_memory == _UNLIMITED or (fits and values * units <= _MOST_VALUES):
            return Launch(
                "resident", 16, blocks.block_h, blocks.block_h, blocks.num_warps, own=chunks
            )
    return None


def _grid(cell, batch, hidden, directions, dtype, shared_memory, multiprocessors) -> Launch | None:
    """Of the blocks that fit those that take the fewest launches, then the first."""
    fit = []
    for launch in _GRID[dtype.itemsize]:
        inner = -(-hidden // launch.block_k) * launch.block_k
        weights = len(cell.recurrent_gates) * inner * launch.block_h * dtype.itemsize
        at_once = multiprocessors // (-(-hidden // launch.block_h) * directions)
        if at_once >= 1 and weights + _SCRATCH <= shared_memory:
            fit.append(replace(launch, tiles=at_once))
    return min(fit, key=lambda launch: _rounds(launch, batch), default=None)


def _stream(batch, hidden, directions, dtype, multiprocessors) -> Launch | None:
    launch = _STEP[dtype.itemsize][batch > 16]
    chunks = -(-hidden // launch.block_h)
    own = -(-chunks * directions // multiprocessors)
    if own * launch.block_h > _MOST_STREAMED:
        return None
    at_once = multiprocessors // (-(-chunks // own) * directions)
    return replace(launch, strategy="stream", own=own, tiles=at_once) if at_once else None


def _rounds(launch: Launch, batch: int) -> int:
    """Launches of a sequence."""
    return -(-batch // (launch.block_b * launch.tiles))


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
