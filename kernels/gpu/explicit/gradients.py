"""The gradients of a step in the backward kernel, and what sources add to them.

Of a gate that is a sum of all units, each thread has its part of the gradient's sum over the units
until the stage is taken; then each unit has an equal share.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..backward_arguments import split
from ..blocks import at, first_gate
from .forward import streams_of
from .memory import widen_each
from .params import params_of, with_dparams
from .sums import of_gates, shares


@gluon.jit
def added(sums, parts, ZEROS: gl.constexpr, FIRST: gl.constexpr):
    """``sums`` with ``parts`` added: results of a vjp from number FIRST, but for those of zero."""
    total = ()
    for i in gl.static_range(len(sums)):
        if i < len(parts) and not at(ZEROS, FIRST + i):
            total = total + (sums[i] + parts[i],)
        else:
            total = total + (sums[i],)
    return total


@gluon.jit
def through_source(
    SOURCE_VJP: gl.constexpr, STAGE: gl.constexpr, arguments, dsource, d, SPANS: gl.constexpr,
    TOTALS: gl.constexpr, ZEROS: gl.constexpr, units, H: gl.constexpr, ALONE: gl.constexpr,
):  # fmt: skip
    """The gradients ``d`` of gates, states, params and streams, and what a source adds to them.

    arguments: of the cell's functions.
    """
    pre, state, params, streams, t = arguments
    FROM: gl.constexpr = first_gate(SPANS, STAGE)
    own = params_of(params, state[0], ALONE)
    out = SOURCE_VJP(STAGE, pre[:FROM], state, own, streams, t, dsource)
    more = split(out, FROM, len(state), len(params))
    of_units = of_gates(more[0], TOTALS, units, H, state[0].shape[0])
    return (
        added(d[0], of_units, at(ZEROS, STAGE), 0),
        added(d[1], more[1], at(ZEROS, STAGE), FROM),
        with_dparams(d[2], more[2], at(ZEROS, STAGE), FROM + len(state), state[0], ALONE),
        added(d[3], more[3], at(ZEROS, STAGE), FROM + len(state) + len(params)),
    )


@gluon.jit
def through_next_source(
    SOURCE_VJP: gl.constexpr, STAGE: gl.constexpr, GATES: gl.constexpr, dsource, later, params,
    draws, walk, back, t, DRAWN: gl.constexpr, DTYPE: gl.constexpr,
):  # fmt: skip
    """What a computed source of the next step, number t, contributes; zero if there is none.

    Returns:
        The gradients of states, params and streams.
    """
    state = widen_each(later[0], DTYPE)
    streams = streams_of(later[1], draws, walk, t, DRAWN, DTYPE)
    gates = ()  # it reads none
    for _ in gl.static_range(GATES):
        gates = gates + (gl.zeros_like(state[0]),)
    out = SOURCE_VJP(STAGE, gates, state, params, streams, t, dsource)
    there = ()
    for i in gl.static_range(len(out)):
        there = there + (gl.where(back > 0, out[i], 0.0),)
    d = split(there, GATES, len(state), len(params))
    return d[1:]


@gluon.constexpr_function
def has_computed(states):
    """Whether a source that is known when a step begins is computed."""
    return () in states


@gluon.constexpr_function
def order_of(early, parts):
    """The stages in the order in which a step takes their products: the late ones come reversed."""
    return (*early, *parts[1:-1][::-1])


@gluon.constexpr_function
def first_final(spans, parts, p):
    """The first gate whose gradient is complete after ``p`` of the late stages."""
    last = len(parts) - 2
    return 0 if p == last else spans[parts[last - p]][0]


@gluon.constexpr_function
def last_final(spans, parts, p, count):
    """One past the last of them."""
    return count if p == 0 else spans[parts[len(parts) - 1 - p]][0]


@gluon.constexpr_function
def is_before_sums(spans, matrices, parts, early, g, count):
    """Whether a gate's gradient is complete when a late stage with a fixed matrix is taken.

    Sums of early stages are taken at the end of a step.
    """
    if any(spans[s][0] <= g < spans[s][1] for s in early if isinstance(matrices[s], str)):
        return False
    for p in range(len(parts) - 2):
        if first_final(spans, parts, p) <= g < last_final(spans, parts, p, count):
            return isinstance(matrices[parts[len(parts) - 2 - p]], str)
    return False


@gluon.constexpr_function
def is_early(spans, matrices, early, g):
    """Whether the product of a gate's gradient is taken a step later."""
    return is_multiplied(tuple(spans[s] for s in early), tuple(matrices[s] for s in early), g)


@gluon.constexpr_function
def is_multiplied(spans, matrices, g):
    """Whether a gate is one of a stage whose matrix is not fixed."""
    pairs = zip(spans, matrices, strict=True)
    return any(first <= g < last and not isinstance(m, str) for (first, last), m in pairs)


@gluon.jit
def with_shares(gates, totals, SPANS: gl.constexpr, STAGE: gl.constexpr, H: gl.constexpr):
    """The gradients of all gates with those of a stage, which are totals, as they are stored."""
    LAST: gl.constexpr = at(at(SPANS, STAGE), 1)
    return gates[: first_gate(SPANS, STAGE)] + shares(totals, H) + gates[LAST:]


@gluon.jit
def of_stage(gates, SPANS: gl.constexpr, STAGE: gl.constexpr):
    """The gates of a stage."""
    return gates[first_gate(SPANS, STAGE) : at(at(SPANS, STAGE), 1)]
