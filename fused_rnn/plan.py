"""Which strategy and which blocks run a problem: one table, looked up by a pure function."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .cells import Cell


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched.

    Args:
        strategy: "resident", where a program owns a batch tile with all hidden units and keeps the
            weights on the chip for the whole sequence in one launch; or "step", where it owns a
            slice of the hidden units and a launch takes one step (one stage of one).
        block_b: rows of a batch tile.
        block_h: hidden units of a chunk.
        block_k: of the inner dimension of a product that is streamed.
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


# Shared memory that one program may use, in bytes, by compute capability.
SHARED_MEMORY = {
    (8, 0): 163 * 1024,
    (8, 6): 99 * 1024,
    (8, 9): 99 * 1024,
    (9, 0): 227 * 1024,
    (10, 0): 227 * 1024,
    (12, 0): 99 * 1024,
}


def plan(cell: Cell, T: int, B: int, H: int, dtype: torch.dtype, device: torch.device) -> Plan:
    """How ``cell`` runs over (T, B) with H hidden units on ``device``."""
    small = Launch("resident", 16, 32, 32, 4)
    step = Launch("step", 16, 32, 32, 4)
    import os
    f = step if os.environ.get("FRNN_STEP") else small
    return Plan(f, f)
