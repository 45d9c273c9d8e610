"""Which strategy and which blocks run a problem: one table, looked up by a pure function."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch

from .cells import Cell

STRATEGIES = ("resident", "step")


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched.

    Args:
        strategy: "resident", where a program owns a batch tile with all hidden units and keeps the
            weights on the chip for the whole sequence, in one launch; or "step", where it owns a
            slice of the hidden units, reads its weights from memory, and a launch takes one stage
            of one step.
        block_b: rows of a batch tile.
        block_h: hidden units of a chunk: a program owns all chunks, or one.
        block_k: of the inner dimension of a product that is read block by block.
        num_warps: of a program.
    """

    strategy: str
    block_b: int
    block_h: int
    block_k: int
    num_warps: int


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

# "step": for batches of up to 16 rows, and for larger ones, by bytes of an element.
_STEP = {
    2: (Launch("step", 16, 32, 64, 8), Launch("step", 64, 16, 64, 8)),
    4: (Launch("step", 32, 32, 32, 8), Launch("step", 32, 32, 32, 8)),
    8: (Launch("step", 16, 32, 16, 4), Launch("step", 16, 32, 16, 4)),
}

# A plain global: the backward of a CUDA tensor runs in a thread of autograd's.
_forced = None


@contextlib.contextmanager
def use_strategy(name: str | None):
    """Make the fused kernels use ``name``, "resident" or "step", inside the ``with``.

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
) -> Plan:
    """How ``cell`` runs over (T, B) with H hidden units.

    Args:
        device: or a compute capability such as (9, 0), to plan for a GPU that is not here.

    Raises:
        RuntimeError: ``use_strategy("resident")`` is in force and the weights do not fit.
    """
    resident = _resident(cell, H, dtype, _shared_memory(device))
    step = _STEP[dtype.itemsize][B > 16]
    if _forced == "resident" and resident is None:
        raise RuntimeError(
            f'strategy "resident": the recurrent weights of cell {cell.name!r} with {H} hidden '
            f"units in {dtype} do not fit on one multiprocessor of {device}"
        )
    launch = step if _forced == "step" or resident is None else resident
    return Plan(forward=launch, backward=launch)


def _resident(cell, hidden, dtype, shared_memory) -> Launch | None:
    values = len(cell.gates) + len(cell.states) + len(cell.params)
    for blocks in _RESIDENT:
        units = -(-hidden // blocks.block_h) * blocks.block_h
        if units > blocks.units:
            continue
        weights = len(cell.recurrent_gates) * units * units * dtype.itemsize
        fits = weights + _SCRATCH <= shared_memory and units <= _MOST_UNITS[dtype.itemsize]
        if shared_memory == float("inf") or (fits and values * units <= _MOST_VALUES):
            return Launch("resident", 16, blocks.block_h, blocks.block_h, blocks.num_warps)
    return None


def _shared_memory(device) -> float:
    """Of one program; unlimited on the CPU, where kernels are interpreted."""
    if isinstance(device, torch.device):
        if device.type != "cuda":
            return float("inf")
        device = torch.cuda.get_device_capability(device)
    known = [capability for capability in SHARED_MEMORY if capability <= tuple(device)]
    return SHARED_MEMORY[max(known)] if known else 0
