"""Cells whose steps are disturbed: zoneout, dropout of the old output or of the candidate, a clip.

The disturbed cell has the algebra of the first, with what is drawn as further streams. So every
backend runs it as it runs any cell, and its backward has the same numbers.

A step, or a source of a stage, says where it computes the candidate and the memory by parameters of
these names, after those that ``Cell`` passes: functions that the two go through, by default
``same``. Each function that computes either has them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import once
from .cell import Cell, DerivedCell, asked, lookup
from .parts import Bernoulli, Stage


def marks(cell: Cell, name: str) -> bool:
    """Whether a cell's step or a source says what its "candidate" or its "memory" is."""
    functions = [cell.step, *(stage.source for stage in cell.stages if callable(stage.source))]
    return any(name in _parameters(function) for function in functions)


@once.per_cell
def regularize(
    cell: Cell,
    zoneout: tuple[float, ...],
    state_dropout: float,
    recurrent_dropout: float,
    cell_clip: float,
    training: bool,
) -> Cell:
    """The cell with these disturbances; drawn streams follow its own.

    Args:
        zoneout: per state, or () for none: the probability that a unit keeps its old value; in
            evaluation the mean of both (Krueger et al. 2016, arXiv 1606.01305).
        state_dropout: in training, the probability that the products see 0 in place of a unit of
            the first state, in all steps of a row (Gal and Ghahramani 2016, arXiv 1512.05287).
        recurrent_dropout: in training, the probability that a unit has no candidate at a step
            (Semeniuta et al. 2016, arXiv 1603.05118). In both dropouts the others are scaled by
            1 / (1 - p).
        cell_clip: the largest size of the memory; 0 for none.
    """
    zoned = [i for i, p in enumerate(zoneout) if p]
    drawn, places = list(cell.drawn), {}
    first = len(cell.streams)
    own = slice(cell.stream_count)

    def draw(what, name, p, per):
        while name in (*cell.streams, *(stream.name for stream in drawn)):
            name = f"_{name}"
        places[what] = first + len(drawn)
        drawn.append(Bernoulli(name, p, per))

    if training:
        for i in zoned:
            draw(i, f"zoneout_{cell.states[i]}", zoneout[i], "step")
        if recurrent_dropout:
            draw("candidate", "candidate", 1 - recurrent_dropout, "step")
        if state_dropout:
            draw("seen", f"seen_{cell.states[0]}", 1 - state_dropout, "sequence")

    def dropped(streams, what, p, value):
        return streams[places[what]] * value * (1 / (1 - p))

    def hooks(streams) -> dict[str, Callable[[Tensor], Tensor]]:
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        if "candidate" in places:
            found["candidate"] = lambda g: dropped(streams, "candidate", recurrent_dropout, g)
        if cell_clip:
            found["memory"] = lambda c: torch.clamp(c, -cell_clip, cell_clip)
        return found

    run_step = _hooked(cell, cell.step, cell.run_step)
    run_sources = {
        s: _hooked(cell, stage.source, lambda *groups, s=s: cell.run_source(s, *groups))
        for s, stage in enumerate(cell.stages)
    }

    def step(pre, state, params, streams, t):
        new = list(run_step(hooks(streams), pre, state, params, streams[own], t))
        for i in zoned:
            if training:
                new[i] = torch.where(streams[places[i]] > 0.5, state[i], new[i])
            else:
                new[i] = zoneout[i] * state[i] + (1 - zoneout[i]) * new[i]
        return tuple(new)

    def source_of(s):
        def source(pre, state, params, streams, t):
            if "seen" in places:
                state = (dropped(streams, "seen", state_dropout, state[0]), *state[1:])
            return run_sources[s](hooks(streams), pre, state, params, streams[own], t)

        return source

    def is_computed(stage):
        return callable(stage.source) or ("seen" in places and cell.states[0] in stage.source)

    stages = [
        Stage(stage.gates, source_of(s) if is_computed(stage) else stage.source, stage.fixed)
        for s, stage in enumerate(cell.stages)
    ]
    return DerivedCell(
        f"{cell.name}_regularized",
        step,
        gates=cell.gates,
        states=cell.states,
        params=cell.params,
        streams=(*cell.streams, *drawn),
        x_gates=cell.x_gates,
        raw_gates=cell.raw_gates,
        stages=stages,
    )


def _hooked(cell, function, run) -> Callable[..., tuple[Tensor, ...]]:
    """``run`` with hooks, where ``function`` takes some: it is called as it was given then."""
    taken = _parameters(function) & {"candidate", "memory"} if callable(function) else set()
    if not taken:
        return lambda hooks, *groups: run(*groups)
    places = asked(function, f"cell {cell.name!r}")

    def call(hooks, *groups):
        own = {name: hook for name, hook in hooks.items() if name in taken}
        if not own:
            return run(*groups)
        out: Any = function(*(groups[place] for place in places), **own)
        return (out,) if isinstance(out, Tensor) else tuple(out)

    return call


def _parameters(function) -> set[str]:
    signed = function.forward if isinstance(function, torch.nn.Module) else function
    try:
        return set(inspect.signature(signed).parameters)
    except ValueError:  # a C function
        return set()


def key_of(key: str, *options: Any) -> str:
    """The key of the cell that ``regularize`` makes of the one with this key."""
    cell = lookup(key)
    made = regularize(cell, *options)
    return cell.derived.setdefault(made.key, made).key


# As ``derived.key_of``.
key_of._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
