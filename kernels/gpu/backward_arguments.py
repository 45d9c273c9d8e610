"""What the backward kernel reads of a step, and what a source of the step after adds to it."""

import triton
import triton.language as tl

from .blocks import (
    add_each,
    among_totals,
    at,
    bands_apart,
    gates_of,
    load_band,
    load_each,
    load_gate,
    part_of,
    split_band,
)
from .draws import load_streams


@triton.jit
def arguments_of(
    pre_ptr, sequence_ptrs, initial_ptrs, stream_ptrs, rows, before, own_rows, mask_b, t,
    first_unit, offs_h, key, time, DRAWN: tl.constexpr, H: tl.constexpr, G: tl.constexpr,
    GATES: tl.constexpr, DTYPE: tl.constexpr, TOTALS: tl.constexpr,
):  # fmt: skip
    """The first gates of step t, the states of t - 1 and the streams of t, of one chunk."""
    pre = ()
    BANDS: tl.constexpr = bands_apart(0, GATES, TOTALS)
    for n in tl.static_range(len(BANDS) - 1):
        gates = part_of(rows, G, at(BANDS, n))
        if among_totals(TOTALS, at(BANDS, n)):
            pre = pre + (load_gate(pre_ptr, gates, mask_b, offs_h, True, H).to(DTYPE),)
        else:
            band = load_band(
                pre_ptr, gates, mask_b, first_unit, gates_of(BANDS, n), offs_h.shape[0], H
            )
            pre = pre + split_band(band.to(DTYPE), gates_of(BANDS, n))
    # The first step has no previous one, and only it needs the initial states.
    old = load_each(sequence_ptrs, before, mask_b & (t > 0), offs_h, H, DTYPE)
    initial = load_each(initial_ptrs, own_rows, mask_b & (t == 0), offs_h, H, DTYPE)
    streams = load_streams(stream_ptrs, rows, mask_b, offs_h, key, time, DRAWN, H, DTYPE)
    return pre, add_each(old, initial), streams


@triton.jit
def through_next_source(
    SOURCE_VJP: tl.constexpr, STAGE: tl.constexpr, GATES: tl.constexpr, dsource, sequence_ptrs,
    stream_ptrs, params, rows, after, mask_b, back, t, offs_h, key, time, DRAWN: tl.constexpr,
    H: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """What a computed source of the next step, number t at ``time``, contributes; or zero.

    Returns:
        The gradients of states, params and streams.
    """
    N: tl.constexpr = len(sequence_ptrs)
    state = load_each(sequence_ptrs, rows, mask_b, offs_h, H, DTYPE)
    next_b = mask_b & (back > 0)
    streams = load_streams(stream_ptrs, after, next_b, offs_h, key, time, DRAWN, H, DTYPE)
    gates = ()  # it reads none
    for _ in tl.static_range(GATES):
        gates = gates + (tl.zeros_like(state[0]),)
    out = SOURCE_VJP(STAGE, gates, state, params, streams, t, dsource)
    there = ()
    for i in tl.static_range(len(out)):
        there = there + (tl.where(back > 0, out[i], 0.0),)
    d = split(there, GATES, N, len(params))
    return d[1:]


@triton.jit
def split(out, GATES: tl.constexpr, N: tl.constexpr, P: tl.constexpr):
    """What a vjp returns, as the gradients of gates, states, params and streams."""
    return out[:GATES], out[GATES : GATES + N], out[GATES + N : GATES + N + P], out[GATES + N + P :]
