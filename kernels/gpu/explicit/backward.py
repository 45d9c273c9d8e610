"""The backward kernel with explicit layouts; see forward.py for the loop and the arguments."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..backward_arguments import split
from ..blocks import add_each, at, first_gate, gate_count, replace
from ..sync import wait
from .exchange import meet, offsets_in_place, pass_on, places_of
from .forward import draws_of, streams_of
from .layouts import of_program
from .memory import (
    batch_tile,
    load,
    load_each,
    load_gates,
    load_units,
    offsets,
    store,
    unit_tile,
    widen_each,
)
from .products import kept_weights, source_gradients


@gluon.jit(do_not_specialize=["T", "B", "first_row", "hidden", "begin", "end"])
def backward_kernel(
    weight_ptrs,  # per matrix, of stage s (D, R_s, H, V_s, H)
    param_ptrs,  # each (D, H)
    stream_ptrs,  # each (T, B, D, H)
    key_ptr,  # (2 + B,) of what the cell draws; else None
    initial_ptrs,  # per state (D, B, H), in the dtype of its sequence
    sequence_ptrs,  # per state (T, B, D, H)
    pre_ptr,  # (T, B, D, G, H)
    dsequence_ptrs,  # per state (T, B, D, H) or None
    dcarry_ptrs,  # per state (D, B, H): of the final states, replaced by the initial ones'
    dparam_ptrs,  # each (D, B, H), summed over time
    dstream_ptrs,  # each (T, B, D, H)
    dpre_ptr,  # (T, B, D, G, H)
    passed_ptr,  # (G, 2, D, rows, units) in fragments; None where a program owns all units
    counter_ptr,  # (batch tiles, D, COUNTER) of programs that wait for each other; else None
    T,
    B,
    first_row,  # of the batch, in this launch
    hidden,
    begin,  # the steps to take, counted from the last: begin <= T - 1 - t < end
    end,
    D: gl.constexpr,  # directions of the layer times heads of each
    HEADS: gl.constexpr,
    H: gl.constexpr,
    G: gl.constexpr,
    SPANS: gl.constexpr,  # stage s has the gates SPANS[s][0] to SPANS[s][1]
    VECTORS: gl.constexpr,  # per stage, of its source
    MATRICES: gl.constexpr,  # per stage, see wiring.py
    PARTS: gl.constexpr,
    DRAWN: gl.constexpr,
    EARLY: gl.constexpr,
    STATES: gl.constexpr,  # per early stage the states that are its source; () if it is computed
    STEP_VJP: gl.constexpr,  # the cell, see emit.Emitted
    SOURCE_VJP: gl.constexpr,
    FIRST: gl.constexpr,
    LAST: gl.constexpr,
    REVERSE: gl.constexpr,
    PIECES: gl.constexpr,
    ALONE: gl.constexpr,
    HELD: gl.constexpr,  # per stage the matrices in registers
    KEEP: gl.constexpr,
    OWN: gl.constexpr,
    BLOCK_B: gl.constexpr,
    BLOCK_H: gl.constexpr,
    BLOCK_K: gl.constexpr,
    COUNTER: gl.constexpr,
    PRECISION: gl.constexpr,
    DTYPE: gl.constexpr,  # of the arithmetic
):
    WARPS: gl.constexpr = gl.num_warps()
    LAYOUT: gl.constexpr = of_program(ALONE, BLOCK_B, BLOCK_H, WARPS)
    direction = gl.program_id(2)
    walks_back = (direction // HEADS == 1) != REVERSE
    first_b, tile, left = batch_tile(first_row, B, BLOCK_B, LAYOUT)
    offs_b, mask_b = gl.minimum(tile, left - 1), tile < left
    units = unit_tile(BLOCK_H, LAYOUT)
    PASSED: gl.constexpr = pre_ptr.dtype.element_ty
    offs = (
        offsets(offs_b, units, D * G * H),
        offsets(offs_b, units, D * H),
        offsets(offs_b, units, H),
        offsets_in_place(tile, units, H, PASSED, ALONE),
    )
    stride = B.to(gl.int64) * D  # from a row of (T, B, D) to that of the next step
    row = first_b * D + direction + gl.where(walks_back, begin, T - 1 - begin) * stride
    walk = (gl.where(walks_back, -stride, stride), T, end, walks_back)
    draws = draws_of(key_ptr, first_b + offs_b, direction % HEADS * H + units, direction // HEADS)
    own = (direction.to(gl.int64) * B + first_b) * H  # of (D, B, H)

    params = ()
    weights = ()
    for i in gl.static_range(len(param_ptrs)):
        params = params + (load_units(param_ptrs[i] + direction * H, units, H, DTYPE),)
    for s in gl.static_range(len(SPANS)):
        weights = weights + (kept_weights(
            weight_ptrs[at(MATRICES, s)], direction, H, gate_count(SPANS, s), at(VECTORS, s),
            BLOCK_H, True, ALONE, at(HELD, s),
        ),)  # fmt: skip
    fixed = (params, weights, draws)

    pointers = (stream_ptrs, initial_ptrs, sequence_ptrs, pre_ptr, dsequence_ptrs)
    ahead = _ahead(pointers, row, T - 1 - begin, walk, own, offs, units, D, G, H)
    dstate = load_each(dcarry_ptrs, own, offs[2], units, H)
    dparams = load_each(dparam_ptrs, own, offs[2], units, H)
    later = ()  # of the step after: what its computed sources read, and the gradients of streams
    if has_computed(STATES):
        dstreams = ()
        for _ in gl.static_range(len(stream_ptrs)):
            dstreams = dstreams + (gl.zeros_like(dstate[0]),)
        later = (ahead[1], ahead[2], dstreams)
    carried = (dstate, dparams, later)

    places = places_of(passed_ptr, B, direction, first_b, G, D, H, PASSED, BLOCK_B, BLOCK_H, ALONE)
    if ALONE:
        for g in gl.static_range(G):  # of the step after the last
            places[0][g].store(gl.full([BLOCK_B, BLOCK_H], 0.0, PASSED, LAYOUT))
        meet(counter_ptr, True, ALONE)
    else:
        counter_ptr += ((first_row // BLOCK_B + gl.program_id(0)) * D + direction) * COUNTER
    programs = gl.num_programs(1).to(gl.int64)
    targets = (dstream_ptrs, dpre_ptr, counter_ptr)

    clock = (row, programs * 0 if len(EARLY) > 0 else programs)  # and the arrivals to wait for
    for pair in range(0, (end - begin) // 2):
        for half in gl.static_range(2):
            carried, ahead, clock = _step(
                begin + 2 * pair + half, clock, places[half], places[1 - half], carried, ahead,
                fixed, pointers, targets, walk, programs, own, offs, mask_b, units, D, H, G, SPANS,
                VECTORS, PARTS, DRAWN, EARLY, STATES, STEP_VJP, SOURCE_VJP, ALONE, HELD, PRECISION,
                DTYPE, False,
            )  # fmt: skip
    if (end - begin) % 2 == 1:
        carried, ahead, clock = _step(
            end - 1, clock, places[0], places[1], carried, ahead, fixed, pointers, targets, walk,
            programs, own, offs, mask_b, units, D, H, G, SPANS, VECTORS, PARTS, DRAWN, EARLY,
            STATES, STEP_VJP, SOURCE_VJP, ALONE, HELD, PRECISION, DTYPE, True,
        )  # fmt: skip

    for i in gl.static_range(len(dcarry_ptrs)):
        store(dcarry_ptrs[i] + own, offs[2], carried[0][i], mask_b, units, H)
    for i in gl.static_range(len(dparam_ptrs)):
        store(dparam_ptrs[i] + own, offs[2], carried[1][i], mask_b, units, H)
    if has_computed(STATES):
        for i in gl.static_range(len(dstream_ptrs)):
            last = clock[0] + walk[0]
            store(dstream_ptrs[i] + last * H, offs[1], carried[2][2][i], mask_b, units, H)


@gluon.jit
def _step(
    back, clock, reads, writes, carried, ahead, fixed, pointers, targets, walk, programs, own, offs,
    mask_b, units, D: gl.constexpr, H: gl.constexpr, G: gl.constexpr, SPANS: gl.constexpr,
    VECTORS: gl.constexpr, PARTS: gl.constexpr, DRAWN: gl.constexpr, EARLY: gl.constexpr,
    STATES: gl.constexpr, STEP_VJP: gl.constexpr, SOURCE_VJP: gl.constexpr, ALONE: gl.constexpr,
    HELD: gl.constexpr, PRECISION: gl.constexpr, DTYPE: gl.constexpr, IS_LAST: gl.constexpr,
):  # fmt: skip
    P: gl.constexpr = len(PARTS) - 1
    N: gl.constexpr = len(pointers[2])
    PARAMS: gl.constexpr = len(fixed[0])
    row, due = clock
    t = walk[1] - 1 - back
    params, weights, draws = fixed
    dstate, dparams, later = carried
    pre = widen_each(ahead[0], DTYPE)
    state = widen_each(ahead[1], DTYPE)
    streams = streams_of(ahead[2], draws, walk, t, DRAWN, DTYPE)

    if not ALONE and len(EARLY) > 0:
        wait(targets[2], due)
        due += programs
    for e in gl.static_range(len(EARLY)):  # the products of step t + 1
        dsource = source_gradients(
            reads, weights[at(EARLY, e)], first_gate(SPANS, at(EARLY, e)),
            at(at(SPANS, at(EARLY, e)), 1), at(VECTORS, at(EARLY, e)), dstate[0], H, ALONE,
            at(HELD, at(EARLY, e)), PRECISION,
        )  # fmt: skip
        if len(at(STATES, e)) > 0:
            for v in gl.static_range(len(dsource)):
                dstate = replace(
                    dstate, at(at(STATES, e), v), dstate[at(at(STATES, e), v)] + dsource[v]
                )
        else:
            d = _through_next_source(
                SOURCE_VJP, at(EARLY, e), first_gate(SPANS, at(EARLY, e)), dsource, later, params,
                draws, walk, back, t + 1, DRAWN, DTYPE,
            )  # fmt: skip
            dstate = add_each(dstate, d[0])
            dparams = add_each(dparams, d[1])
            later = (later[0], later[1], add_each(later[2], d[2]))
    if has_computed(STATES):
        after = row + walk[0]
        for i in gl.static_range(len(targets[0])):
            store(targets[0][i] + after * H, offs[1], later[2][i], mask_b & (back > 0), units, H)

    total = ()
    for i in gl.static_range(N):
        d = dstate[i]
        if pointers[4][i] is not None:
            d += ahead[3][i].to(DTYPE)
        total = total + (d,)
    out = STEP_VJP(pre, state, params, streams, t, total)
    dgates, dstate, of_params, dstreams = split(out, G, N, PARAMS)
    dparams = add_each(dparams, of_params)

    for p in gl.static_range(P):
        # The gates that no later stage of this walk back changes.
        for g in gl.static_range(first_final(SPANS, PARTS, p), last_final(SPANS, PARTS, p, G)):
            if is_multiplied(SPANS, g) and (p < P - 1 or not IS_LAST):
                pass_on(writes[g], dgates[g], offs[3], units, mask_b, H, ALONE)
        if p < P - 1:
            meet(targets[2], True, ALONE)
            if not ALONE:
                wait(targets[2], due)
                due += programs
            dsource = source_gradients(
                writes, weights[at(PARTS, P - 1 - p)], first_gate(SPANS, at(PARTS, P - 1 - p)),
                at(at(SPANS, at(PARTS, P - 1 - p)), 1), at(VECTORS, at(PARTS, P - 1 - p)),
                dstate[0], H, ALONE, at(HELD, at(PARTS, P - 1 - p)), PRECISION,
            )  # fmt: skip
            out = SOURCE_VJP(
                at(PARTS, P - 1 - p), pre[: first_gate(SPANS, at(PARTS, P - 1 - p))], state,
                params, streams, t, dsource,
            )  # fmt: skip
            d = split(out, first_gate(SPANS, at(PARTS, P - 1 - p)), N, PARAMS)
            dgates = add_each(dgates, d[0])
            dstate = add_each(dstate, d[1])
            dparams = add_each(dparams, d[2])
            dstreams = add_each(dstreams, d[3])

    if has_computed(STATES):
        later = (ahead[1], ahead[2], dstreams[: len(targets[0])])
    else:
        for i in gl.static_range(len(targets[0])):
            store(targets[0][i] + row * H, offs[1], dstreams[i], mask_b, units, H)
    if not IS_LAST:
        # Loaded while this step ends and the products of the next one run.
        next_row = gl.where(back + 1 < walk[2], row - walk[0], row)
        next_t = gl.where(back + 1 < walk[2], t - 1, t)
        ahead = _ahead(pointers, next_row, next_t, walk, own, offs, units, D, G, H)
        meet(targets[2], len(EARLY) > 0, ALONE)
    for g in gl.static_range(G):
        store(targets[1] + (row * G + g) * H, offs[0], dgates[g], mask_b, units, H)
    return (dstate, dparams, later), ahead, (row - walk[0], due)


@gluon.jit
def _ahead(
    pointers, row, t, walk, own, offs, units, D: gl.constexpr, G: gl.constexpr, H: gl.constexpr
):  # fmt: skip
    """Load what step t reads.

    Returns:
        The gates, the states before the step, the streams; the gradients of the outputs, None as 0.
    """
    stream_ptrs, initial_ptrs, sequence_ptrs, pre_ptr, dsequence_ptrs = pointers
    offs_before = offs[1] if D == 1 else gl.where(t > 0, offs[1], offs[2])
    states = ()
    doutputs = ()
    for i in gl.static_range(len(sequence_ptrs)):
        # The first step has no previous one, and only it needs the initial states.
        before = sequence_ptrs[i] + (row - walk[0]) * H
        base = gl.where(t > 0, before, initial_ptrs[i] + own)
        states = states + (load(base, offs_before, units, H),)
        doutput = 0
        if dsequence_ptrs[i] is not None:
            doutput = load(dsequence_ptrs[i] + row * H, offs[1], units, H)
        doutputs = doutputs + (doutput,)
    gates = load_gates(pre_ptr, row, offs[0], units, G, H)
    return gates, states, load_each(stream_ptrs, row * H, offs[1], units, H), doutputs


@gluon.jit
def _through_next_source(
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
def first_final(spans, parts, p):
    """The first gate whose gradient is complete after ``p`` of the late stages."""
    last = len(parts) - 2
    return 0 if p == last else spans[parts[last - p]][0]


@gluon.constexpr_function
def last_final(spans, parts, p, count):
    """One past the last of them."""
    return count if p == 0 else spans[parts[len(parts) - 1 - p]][0]


@gluon.constexpr_function
def is_multiplied(spans, g):
    """Whether a gate is one of a stage."""
    return any(first <= g < last for first, last in spans)
