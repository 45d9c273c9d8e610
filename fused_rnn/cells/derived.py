"""Cells derived from another cell: its states are carried over steps that are not valid.

The derived cell has the algebra of the first, with masks as further streams. So every backend runs
it as it runs any cell. ``nn.segments`` computes the masks from lengths and resets.
"""

from __future__ import annotations

import torch

from .. import once
from .cell import Cell, DerivedCell, lookup
from .parts import Stage

# The time of a row goes into two streams, of multiples of 128 and the rest: bfloat16 represents
# integers exactly only up to 256.
CLOCK = 128


@once.per_cell
def derive(cell: Cell, masked: bool, restarts: int, shown: int) -> Cell:
    """The cell that carries its states over steps that are not valid, and restarts them.

    Args:
        masked: a stream tells which steps are valid.
        restarts: 0 for none; 1: a stream marks the steps after which the states become zero; 2:
            they become the initial states, which are streams too.
        shown: the number of states whose values before a restart become states of their own, the
            first ones of the derived cell.
    """
    own = len(cell.streams)
    timed = cell.reads_time
    row = "row_"
    taken = (*cell.states, *cell.streams, *(stream.name for stream in cell.drawn))
    while any(name.startswith(row) for name in taken):
        row = f"_{row}"
    names = [*cell.streams]
    names += [f"{row}valid"] * masked + [f"{row}ends"] * bool(restarts)
    names += [f"{row}{name}0" for name in cell.states if restarts == 2]
    names += [f"{row}time", f"{row}time_high"] * timed

    def parted(streams, t):
        """The cell's own streams, the masks, and its time."""
        given, drawn = streams[: len(names)], streams[len(names) :]
        if timed:
            t = given[-2].detach() + CLOCK * given[-1].detach()
        return (*given[:own], *drawn), list(given[own:]), t

    def step(pre, state, params, streams, t):
        old = state[shown:]
        flow, masks, t = parted(streams, t)
        new = cell.run_step(pre, old, params, flow, t)
        computed = new[:shown]
        valid = masks.pop(0) > 0.5 if masked else None
        if restarts:
            ends = masks.pop(0) > 0.5
            begin = masks[: len(new)] if restarts == 2 else [torch.zeros_like(n) for n in new]
            new = [torch.where(ends, b, n) for b, n in zip(begin, new, strict=True)]
        if valid is not None:
            new = [torch.where(valid, n, o) for n, o in zip(new, old, strict=True)]
        return (*computed, *new)

    def source_of(s):
        def source(pre, state, params, streams, t):
            flow, _, t = parted(streams, t)
            return cell.run_source(s, pre, state[shown:], params, flow, t)

        return source

    # What a function makes of a matrix the modules have made before.
    stages = [
        Stage(stage.gates, source_of(s) if callable(stage.source) else stage.source, stage.fixed)
        for s, stage in enumerate(cell.stages)
    ]
    return DerivedCell(
        f"{cell.name}_of_segments",
        step,
        gates=cell.gates,
        states=(*(f"{row}{name}" for name in cell.states[:shown]), *cell.states),
        params=cell.params,
        streams=(*names, *cell.drawn),
        x_gates=cell.x_gates,
        raw_gates=cell.raw_gates,
        stages=stages,
    )


def key_of(key: str, masked: bool, restarts: int, shown: int) -> str:
    """The key of the cell that ``derive`` makes of the one with this key."""
    cell = lookup(key)
    made = derive(cell, masked, restarts, shown)
    return cell.derived.setdefault(made.key, made).key


# torch.compile calls this function while it traces, and takes the result as a constant. It cannot
# trace the making of a cell; arguments and result are types that a graph may hold.
key_of._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
