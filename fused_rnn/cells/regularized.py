"""Cells whose steps are disturbed at random in training: zoneout, and dropout of the old output.

The disturbed cell has the algebra of the first, with what is drawn as further streams. So every
backend runs it as it runs any cell, and its backward has the same numbers. ``nn.regularizers``
draws them.
"""

from __future__ import annotations

from .. import once
from .cell import Cell, DerivedCell, lookup
from .parts import Stage


@once.per_cell
def regularize(cell: Cell, zoned_out: tuple[int, ...], dropped: bool) -> Cell:
    """The cell with further streams after its own.

    Args:
        zoned_out: numbers of states. For each a stream m: the state becomes m * old + (1 - m) * new
            (Krueger et al. 2016, arXiv 1606.01305).
        dropped: a last stream, which the products see the first state multiplied with (Gal and
            Ghahramani 2016, arXiv 1512.05287).
    """
    own = len(cell.streams)
    names = [*cell.streams, *(f"zoneout_{cell.states[i]}" for i in zoned_out)]
    names += [f"kept_{cell.states[0]}"] * dropped

    def step(pre, state, params, streams, t):
        new = list(cell.run_step(pre, state, params, streams[:own], t))
        for i, mask in zip(zoned_out, streams[own:], strict=False):
            new[i] = mask * state[i] + (1 - mask) * new[i]
        return tuple(new)

    def source_of(s):
        def source(pre, state, params, streams, t):
            if dropped:
                state = (state[0] * streams[-1], *state[1:])
            return cell.run_source(s, pre, state, params, streams[:own], t)

        return source

    def is_computed(stage):
        return callable(stage.source) or (dropped and cell.states[0] in stage.source)

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
        streams=names,
        x_gates=cell.x_gates,
        raw_gates=cell.raw_gates,
        stages=stages,
    )


def key_of(key: str, zoned_out: tuple[int, ...], dropped: bool) -> str:
    """The key of the cell that ``regularize`` makes of the one with this key."""
    cell = lookup(key)
    made = regularize(cell, zoned_out, dropped)
    return cell.derived.setdefault(made.key, made).key


# As ``derived.key_of``.
key_of._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
