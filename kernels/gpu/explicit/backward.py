"""The backward kernel with explicit layouts; see forward.py for the loop and the arguments."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..backward_arguments import split
from ..blocks import add_each, as_blocks, at, first_gate, gate_count, replace
from ..gradients import local_stages
from ..sums import is_fixed
from .exchange import meet, offsets_in_place, pass_on, places_after, places_at, places_of
from .forward import draws_of, streams_of
from .gradients import (
    first_final,
    has_computed,
    is_before_sums,
    is_early,
    is_multiplied,
    last_final,
    of_stage,
    order_of,
    through_next_source,
    through_source,
    with_shares,
)
from .layouts import of_program
from .memory import (
    batch_tile,
    carried_block,
    load,
    load_each,
    load_others,
    offsets,
    store,
    unit_tile,
    widen_each,
)
from .params import (
    first_dparams,
    kept_params,
    pairs_rows,
    params_of,
    whole_dparams,
    with_dparams,
)
from .products import kept_weights, rooms_of, source_gradients
from .sums import (
    of_gates,
    offsets_of_totals,
    scaled,
    totals_of,
    with_saved_totals,
)


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
    passed_ptr,  # (T + 1, G, D, rows, units) in fragments; None where a program owns all units
    counter_ptr,  # None: what programs pass on says itself that it is there
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
    TOTALS: gl.constexpr,
    STEP_ZEROS: gl.constexpr,  # per result of STEP_VJP, and of SOURCE_VJP of each stage,
    SOURCE_ZEROS: gl.constexpr,  # whether it is zero in any case
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
        offsets_of_totals(offs_b, TOTALS, D * G * H, H, BLOCK_H),
    )
    stride = B.to(gl.int64) * D  # from a row of (T, B, D) to that of the next step
    row = first_b * D + direction + gl.where(walks_back, begin, T - 1 - begin) * stride
    walk = (gl.where(walks_back, -stride, stride), T, end, walks_back)
    draws = draws_of(key_ptr, first_b + offs_b, direction % HEADS * H + units, direction // HEADS)
    own = (direction.to(gl.int64) * B + first_b) * H  # of (D, B, H)

    params = kept_params(param_ptrs, direction, units, H, DTYPE, ALONE)
    weights = ()
    for s in gl.static_range(len(SPANS)):
        tiles = ()
        if not is_fixed(MATRICES, s):
            tiles = kept_weights(
                weight_ptrs[at(MATRICES, s)], direction, H, gate_count(SPANS, s), at(VECTORS, s),
                BLOCK_H, True, ALONE, at(HELD, s),
            )  # fmt: skip
        weights = weights + (tiles,)
    fixed = (params, weights, draws)
    rooms = rooms_of(
        SPANS, MATRICES, VECTORS, order_of(EARLY, PARTS), BLOCK_B, BLOCK_H, DTYPE, ALONE
    )

    pointers = (stream_ptrs, initial_ptrs, sequence_ptrs, pre_ptr, dsequence_ptrs)
    ahead = _ahead(pointers, row, T - 1 - begin, walk, own, offs, units, D, G, TOTALS, H)
    dstate = ()
    for i in gl.static_range(len(dcarry_ptrs)):
        d = load(dcarry_ptrs[i] + own, offs[2], units, H)
        if pairs_rows(len(param_ptrs), ALONE):
            d = gl.where(mask_b[:, None], d, 0.0)
        dstate = dstate + (d,)
    dparams = first_dparams(dparam_ptrs, own, offs[2], units, dstate[0], H, ALONE)
    later = ()  # of the step after: what its computed sources read, and the gradients of streams
    if has_computed(STATES):
        dstreams = ()
        for _ in gl.static_range(len(stream_ptrs)):
            dstreams = dstreams + (gl.zeros_like(dstate[0]),)
        later = (ahead[1], ahead[2], dstreams)
    dsums = ()  # and the gradients of its gates that sums of early stages make
    none = gl.zeros([BLOCK_B], DTYPE, gl.SliceLayout(1, LAYOUT))[:, None]
    for e in gl.static_range(len(EARLY)):
        totals = ()
        if is_fixed(MATRICES, at(EARLY, e)):
            for _ in gl.static_range(gate_count(SPANS, at(EARLY, e))):
                totals = totals + (none,)
        dsums = dsums + (totals,)
    carried = (dstate, dparams, later, dsums)

    places = places_of(passed_ptr, B, direction, first_b, G, D, H, PASSED, BLOCK_B, BLOCK_H, ALONE)
    nothing = gl.full([BLOCK_B, BLOCK_H], 0.0, DTYPE, LAYOUT)
    for g in gl.static_range(G):  # of the step after the last
        if is_early(SPANS, MATRICES, EARLY, g):
            pass_on(places_at(places, 0, G, ALONE)[g], nothing, offs[3], units, H, ALONE)
    meet(ALONE)
    targets = (dstream_ptrs, dpre_ptr)

    for pair in range(0, (end - begin) // 2):
        for half in gl.static_range(2):
            reads = places_at(places, half, G, ALONE)
            writes = places_at(places, half + 1, G, ALONE)
            carried, ahead, row = _step(
                begin + 2 * pair + half, row, reads, writes, carried, ahead, fixed, rooms[half],
                pointers, targets, walk, own, offs, mask_b, units, D, H, G, SPANS, VECTORS,
                MATRICES, PARTS, DRAWN, EARLY, STATES, TOTALS, STEP_ZEROS, SOURCE_ZEROS, STEP_VJP,
                SOURCE_VJP, ALONE, HELD, PRECISION, DTYPE, False,
            )  # fmt: skip
        places = places_after(places, 2, G, ALONE)
    if (end - begin) % 2 == 1:
        reads, writes = places_at(places, 0, G, ALONE), places_at(places, 1, G, ALONE)
        carried, ahead, row = _step(
            end - 1, row, reads, writes, carried, ahead, fixed, rooms[0], pointers, targets, walk,
            own, offs, mask_b, units, D, H, G, SPANS, VECTORS, MATRICES, PARTS, DRAWN, EARLY,
            STATES, TOTALS, STEP_ZEROS, SOURCE_ZEROS, STEP_VJP, SOURCE_VJP, ALONE, HELD, PRECISION,
            DTYPE, True,
        )  # fmt: skip

    own, offs_own, mask_b, units = carried_block(
        first_row, B, direction, hidden, H, BLOCK_B, BLOCK_H, LAYOUT
    )
    for i in gl.static_range(len(dcarry_ptrs)):
        store(dcarry_ptrs[i] + own, offs_own, carried[0][i], mask_b, units, H)
    dparams = whole_dparams(carried[1], carried[0][0], ALONE)
    for i in gl.static_range(len(dparam_ptrs)):
        store(dparam_ptrs[i] + own, offs_own, dparams[i], mask_b, units, H)
    if has_computed(STATES):
        for i in gl.static_range(len(dstream_ptrs)):
            last = row + walk[0]
            store(dstream_ptrs[i] + last * H, offs[1], carried[2][2][i], mask_b, units, H)


@gluon.jit
def _step(
    back, row, reads, writes, carried, ahead, fixed, rooms, pointers, targets, walk, own, offs,
    mask_b, units, D: gl.constexpr, H: gl.constexpr, G: gl.constexpr, SPANS: gl.constexpr,
    VECTORS: gl.constexpr, MATRICES: gl.constexpr, PARTS: gl.constexpr, DRAWN: gl.constexpr,
    EARLY: gl.constexpr, STATES: gl.constexpr, TOTALS: gl.constexpr, STEP_ZEROS: gl.constexpr,
    SOURCE_ZEROS: gl.constexpr, STEP_VJP: gl.constexpr, SOURCE_VJP: gl.constexpr,
    ALONE: gl.constexpr, HELD: gl.constexpr, PRECISION: gl.constexpr, DTYPE: gl.constexpr,
    IS_LAST: gl.constexpr,
):  # fmt: skip
    P: gl.constexpr = len(PARTS) - 1
    N: gl.constexpr = len(pointers[2])
    PARAMS: gl.constexpr = len(fixed[0])
    t = walk[1] - 1 - back
    params, weights, draws = fixed
    dstate, dparams, later, dsums = carried
    ROWS: gl.constexpr = dstate[0].shape[0]
    UNITS: gl.constexpr = dstate[0].shape[1]
    for e in gl.static_range(len(EARLY)):  # the products of step t + 1
        if is_fixed(MATRICES, at(EARLY, e)):
            dsource = scaled(dsums[e], at(MATRICES, at(EARLY, e)), H)
        else:
            dsource = source_gradients(
                reads, weights[at(EARLY, e)], rooms[at(EARLY, e)], first_gate(SPANS, at(EARLY, e)),
                at(at(SPANS, at(EARLY, e)), 1), at(VECTORS, at(EARLY, e)), dstate[0], H, ALONE,
                at(HELD, at(EARLY, e)), PRECISION,
            )  # fmt: skip
        if len(at(STATES, e)) > 0:
            for v in gl.static_range(len(dsource)):
                dstate = replace(
                    dstate, at(at(STATES, e), v), dstate[at(at(STATES, e), v)] + dsource[v]
                )
        else:
            d = through_next_source(
                SOURCE_VJP, at(EARLY, e), first_gate(SPANS, at(EARLY, e)), dsource, later,
                params_of(params, dstate[0], ALONE), draws, walk, back, t + 1, DRAWN, DTYPE,
            )  # fmt: skip
            dstate = add_each(dstate, d[0])
            dparams = with_dparams(
                dparams, d[1], at(SOURCE_ZEROS, at(EARLY, e)),
                first_gate(SPANS, at(EARLY, e)) + N, dstate[0], ALONE,
            )  # fmt: skip
            later = (later[0], later[1], add_each(later[2], d[2]))
    if has_computed(STATES):
        after = row + walk[0]
        for i in gl.static_range(len(targets[0])):
            store(targets[0][i] + after * H, offs[1], later[2][i], mask_b & (back > 0), units, H)

    # Not before: what was loaded for this step may still be on its way.
    pre = widen_each(ahead[0], DTYPE)
    for i in gl.static_range(len(ahead[4])):
        pre = with_saved_totals(pre, ahead[4][i].to(DTYPE), TOTALS, UNITS)
    state = widen_each(ahead[1], DTYPE)
    streams = streams_of(ahead[2], draws, walk, t, DRAWN, DTYPE)
    total = ()
    for i in gl.static_range(N):
        d = dstate[i]
        if pointers[4][i] is not None:
            doutput = ahead[3][i].to(DTYPE)
            if pairs_rows(PARAMS, ALONE):
                doutput = gl.where(mask_b[:, None], doutput, 0.0)
            d += doutput
        total = total + (d,)
    out = STEP_VJP(pre, state, params_of(params, dstate[0], ALONE), streams, t, total)
    dgates, dstate, of_params, dstreams = split(out, G, N, PARAMS)
    dgates = of_gates(dgates, TOTALS, units, H, ROWS)
    dstate = as_blocks(dstate, ROWS, UNITS)
    dstreams = as_blocks(dstreams, ROWS, UNITS)
    dparams = with_dparams(dparams, of_params, STEP_ZEROS, G + N, dstate[0], ALONE)
    arguments = (pre, state, params, streams, t)
    d = (dgates, dstate, dparams, dstreams)
    for i in gl.static_range(len(local_stages(MATRICES, PARTS, P - 1))):
        d = through_source(
            SOURCE_VJP, at(local_stages(MATRICES, PARTS, P - 1), i), arguments,
            of_stage(d[0], SPANS, at(local_stages(MATRICES, PARTS, P - 1), i)), d, SPANS,
            TOTALS, SOURCE_ZEROS, units, H, ALONE,
        )  # fmt: skip

    for p in gl.static_range(P):
        # The gates that no later stage of this walk back changes.
        for g in gl.static_range(first_final(SPANS, PARTS, p), last_final(SPANS, PARTS, p, G)):
            if is_multiplied(SPANS, MATRICES, g) and (p < P - 1 or not IS_LAST):
                pass_on(writes[g], d[0][g], offs[3], units, H, ALONE)
        if p < P - 1:
            if is_fixed(MATRICES, at(PARTS, P - 1 - p)):
                totals = totals_of(
                    of_stage(d[0], SPANS, at(PARTS, P - 1 - p)), rooms[at(PARTS, P - 1 - p)]
                )
                d = (with_shares(d[0], totals, SPANS, at(PARTS, P - 1 - p), H), d[1], d[2], d[3])
                for g in gl.static_range(
                    first_final(SPANS, PARTS, p), last_final(SPANS, PARTS, p, G)
                ):  # of cells with sums, which have many: they would hold registers until the end
                    if is_before_sums(SPANS, MATRICES, PARTS, EARLY, g, G):
                        place = targets[1] + (row * G + g) * H
                        store(place, offs[0], d[0][g], mask_b, units, H)
                dsource = scaled(totals, at(MATRICES, at(PARTS, P - 1 - p)), H)
            else:
                meet(ALONE)
                dsource = source_gradients(
                    writes, weights[at(PARTS, P - 1 - p)], rooms[at(PARTS, P - 1 - p)],
                    first_gate(SPANS, at(PARTS, P - 1 - p)),
                    at(at(SPANS, at(PARTS, P - 1 - p)), 1), at(VECTORS, at(PARTS, P - 1 - p)),
                    dstate[0], H, ALONE, at(HELD, at(PARTS, P - 1 - p)), PRECISION,
                )  # fmt: skip
            d = through_source(
                SOURCE_VJP, at(PARTS, P - 1 - p), arguments, dsource, d, SPANS, TOTALS,
                SOURCE_ZEROS, units, H, ALONE,
            )  # fmt: skip
            for i in gl.static_range(len(local_stages(MATRICES, PARTS, P - 2 - p))):
                d = through_source(
                    SOURCE_VJP, at(local_stages(MATRICES, PARTS, P - 2 - p), i), arguments,
                    of_stage(d[0], SPANS, at(local_stages(MATRICES, PARTS, P - 2 - p), i)), d,
                    SPANS, TOTALS, SOURCE_ZEROS, units, H, ALONE,
                )  # fmt: skip
    dgates, dstate, dparams, dstreams = d
    dsums = ()
    for e in gl.static_range(len(EARLY)):
        totals = ()
        if is_fixed(MATRICES, at(EARLY, e)):
            totals = totals_of(of_stage(dgates, SPANS, at(EARLY, e)), rooms[at(EARLY, e)])
            dgates = with_shares(dgates, totals, SPANS, at(EARLY, e), H)
        dsums = dsums + (totals,)

    if has_computed(STATES):
        later = (ahead[1], ahead[2], dstreams[: len(targets[0])])
    else:
        for i in gl.static_range(len(targets[0])):
            store(targets[0][i] + row * H, offs[1], dstreams[i], mask_b, units, H)
    if not IS_LAST:
        # Loaded while this step ends and the products of the next one run.
        next_row = gl.where(back + 1 < walk[2], row - walk[0], row)
        next_t = gl.where(back + 1 < walk[2], t - 1, t)
        ahead = _ahead(pointers, next_row, next_t, walk, own, offs, units, D, G, TOTALS, H)
        meet(ALONE)
    for g in gl.static_range(G):
        if not is_before_sums(SPANS, MATRICES, PARTS, EARLY, g, G):
            store(targets[1] + (row * G + g) * H, offs[0], dgates[g], mask_b, units, H)
    return (dstate, dparams, later, dsums), ahead, row - walk[0]


@gluon.jit
def _ahead(
    pointers, row, t, walk, own, offs, units, D: gl.constexpr, G: gl.constexpr,
    TOTALS: gl.constexpr, H: gl.constexpr,
):  # fmt: skip
    """Load what step t reads.

    Returns:
        The gates, the states before the step, the streams; the gradients of the outputs, None as 0;
        the gates that are totals, side by side.
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
    gates = load_others(pre_ptr, row, offs[0], units, G, TOTALS, H)
    totals = ()
    for i in gl.static_range(len(offs[4])):
        totals = (gl.load(pre_ptr + row * G * H + offs[4][i]),)
    streams = load_each(stream_ptrs, row * H, offs[1], units, H)
    return gates, states, streams, doutputs, totals
