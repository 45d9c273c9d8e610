"""The backward kernel of every cell, and its launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...cells import Cell, heads
from ...checks import boundary
from ...numerics import accumulator, form
from ...plan import held_choices, plan
from . import explicit, pieces, wiring
from .backward_arguments import arguments_of, split, through_next_source
from .backward_products import kept_weights, product
from .blocks import (
    add_each,
    as_blocks,
    at,
    batch_tile,
    end_of_chunk,
    first_gate,
    gate_count,
    kept_params,
    load_block,
    load_each,
    params_of,
    program_count,
    replace,
    steps_of_piece,
    store_block,
    tile_and_piece,
    unknown_zero,
)
from .draws import load_key
from .emit import emit
from .gradients import (
    kept_dparams,
    load_gates,
    local_stages,
    no_gates,
    of_chunk,
    of_gates,
    of_stage,
    own_gates,
    places,
    store_final,
    through_source,
    with_dparams,
    with_states,
)
from .launch import describe, launch_all, prepare
from .sums import is_fixed
from .sync import arrive, wait


@triton.jit(do_not_specialize=["T", "B", "first_row", "hidden", "begin", "end"])
def _backward_kernel(
    weight_ptrs,  # per matrix, of stage s (D, R_s, H, V_s, H)
    param_ptrs,  # each (D, H)
    stream_ptrs,  # each (T, B, D, H)
    key_ptr,  # (2 + B,) of what the cell draws; else None
    initial_ptrs,  # per state (D, B, H), in the dtype of its sequence
    sequence_ptrs,  # per state (T, B, D, H)
    pre_ptr,  # (T, B, D, G, H)
    dsequence_ptrs,  # per state (T, B, D, H) or None
    dcarry_ptrs,  # per state (pieces, D, B, H): of the last states, replaced by the first ones'
    dparam_ptrs,  # each (pieces, D, B, H), summed over time
    dstream_ptrs,  # each (T, B, D, H)
    dpre_ptr,  # (T, B, D, G, H)
    dtotal_ptr,  # (totals, 2, D, B, PROGRAMS): each program's sum of a gradient; None in ALONE
    counter_ptr,  # (batch tiles, D, COUNTER) of programs that wait for each other; else None
    T,
    B,
    first_row,  # of the batch, in this launch
    hidden,  # H at run time, so that a loop over its blocks stays a loop
    begin,  # the steps to take, counted from the last: begin <= T - 1 - t < end
    end,  # with PIECES, the steps of each
    D: tl.constexpr,  # directions of the layer times heads of each
    HEADS: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    SPANS: tl.constexpr,  # stage s has the gates SPANS[s][0] to SPANS[s][1]
    VECTORS: tl.constexpr,  # per stage, of its source
    MATRICES: tl.constexpr,  # per stage, see wiring.py
    PARTS: tl.constexpr,  # the wiring, see wiring.py
    EARLY: tl.constexpr,
    DRAWN: tl.constexpr,
    STATES: tl.constexpr,  # per early stage the states that are its source; () if it is computed
    TOTALS: tl.constexpr,
    STEP_ZEROS: tl.constexpr,  # per result of STEP_VJP, and of SOURCE_VJP of each stage,
    SOURCE_ZEROS: tl.constexpr,  # whether it is zero in any case
    STEP_VJP: tl.constexpr,  # the cell, see emit.Emitted
    SOURCE_VJP: tl.constexpr,
    FIRST: tl.constexpr,  # the phases to take: 0 is the early stages of t+1 and the step of t,
    LAST: tl.constexpr,  # p > 0 is the stage that begins part P - p, of t
    REVERSE: tl.constexpr,
    PIECES: tl.constexpr,  # whether a program takes one piece of the steps, see pieces.py
    ALONE: tl.constexpr,  # see blocks.py
    KEEP: tl.constexpr,
    OWN: tl.constexpr,  # chunks that a program owns
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    COUNTER: tl.constexpr,
    PRECISION: tl.constexpr,
    DTYPE: tl.constexpr,  # of the arithmetic
):
    S: tl.constexpr = len(SPANS)
    P: tl.constexpr = len(PARTS) - 1
    E: tl.constexpr = len(EARLY)
    MEETS: tl.constexpr = P - 1 + (E > 0)  # how often programs meet in a step
    N: tl.constexpr = len(dcarry_ptrs)
    PARAMS: tl.constexpr = len(param_ptrs)
    direction = tl.program_id(2)
    walks_back = (direction // HEADS == 1) != REVERSE
    tile, piece = tile_and_piece(B, BLOCK_B, PIECES)
    first_b, offs_b, mask_b = batch_tile(tile, first_row, B, BLOCK_B)
    unit_rows = (direction.to(tl.int64) * B + first_b, offs_b)  # of (D, B, H)
    own_rows = ((piece * D).to(tl.int64) * B + unit_rows[0], offs_b)  # of (pieces, D, B, H)
    if PIECES:
        begin, end = steps_of_piece(piece, T, end)
    key = load_key(key_ptr, first_b, mask_b, direction % HEADS * H, direction // HEADS)
    PROGRAMS: tl.constexpr = program_count(H, OWN, BLOCK_H)
    total_size = B.to(tl.int64) * D * PROGRAMS
    if counter_ptr is not None:
        counter_ptr += ((first_row // BLOCK_B + tl.program_id(0)) * D + direction) * COUNTER
        programs = tl.num_programs(1).to(tl.int64)

    firsts = ()  # per chunk its first unit
    chunks = ()  # and all of them
    params = ()
    dstate = ()  # per chunk: per state (BLOCK_B, BLOCK_H)
    dparams = ()
    for j in tl.static_range(OWN):
        first_unit = (tl.program_id(1) * OWN + j) * BLOCK_H
        offs_h = first_unit + tl.arange(0, BLOCK_H)
        firsts = firsts + (first_unit,)
        chunks = chunks + (offs_h,)
        params = params + (kept_params(param_ptrs, direction, offs_h, H, DTYPE),)
        dstate = dstate + (load_each(dcarry_ptrs, own_rows, mask_b, offs_h, H, DTYPE),)
        dparams = dparams + (kept_dparams(dparam_ptrs, own_rows, mask_b, offs_h, H, DTYPE),)
    later = ()  # ALONE: per early stage and chunk: per band the dpre of t+1
    for e in tl.static_range(E):
        of_chunks = ()
        for _ in tl.static_range(OWN):
            of_chunks = of_chunks + (
                no_gates(SPANS, MATRICES, at(EARLY, e), BLOCK_B, BLOCK_H, dpre_ptr, DTYPE),
            )
        later = later + (of_chunks,)

    # Loaded before the loop, the tiles stay on the chip for the whole sequence.
    weights = ()  # per stage
    if KEEP:
        for s in tl.static_range(S):
            tiles = ()
            if not is_fixed(MATRICES, s):
                tiles = kept_weights(
                    weight_ptrs[at(MATRICES, s)], direction, firsts, chunks, H,
                    gate_count(SPANS, s), at(VECTORS, s), ALONE, BLOCK_H, BLOCK_K,
                )
            weights = weights + (tiles,)

    # num_stages=1: the pipeliner must not move a load of one step above the stores of another.
    for back in tl.range(begin, end, num_stages=1):
        t = T - 1 - back
        time = tl.where(walks_back, back, t).to(tl.int64)
        step = tl.where(walks_back, -1, 1).to(tl.int64)
        rows = ((time * B + first_b) * D + direction, offs_b * D)  # of (T, B, D, H)
        before = (rows[0] - step * B * D, rows[1])
        after = (rows[0] + step * B * D, rows[1])

        dgates = ()  # per chunk: per gate (BLOCK_B, BLOCK_H)
        dstreams = ()
        if FIRST == 0:
            for e in tl.static_range(E):
                dsource = product(
                    later[e], dpre_ptr, after, mask_b & (back > 0), weights, weight_ptrs, direction,
                    chunks, hidden, H, G, SPANS, VECTORS, MATRICES, at(EARLY, e), ALONE, KEEP,
                    BLOCK_K, PRECISION, DTYPE, dtotal_ptr, unit_rows, total_size, (back + 1) % 2,
                    TOTALS, PROGRAMS,
                )
                if len(at(STATES, e)) > 0:
                    grown = ()
                    for j in tl.static_range(OWN):
                        d = with_states(dstate[j], dsource, j, OWN, at(STATES, e))
                        grown = grown + (d,)
                    dstate = grown
                else:
                    for j in tl.static_range(OWN):
                        own_params = params_of(
                            params[j], param_ptrs, direction, chunks[j], H, DTYPE
                        )
                        d = through_next_source(
                            SOURCE_VJP, at(EARLY, e), first_gate(SPANS, at(EARLY, e)),
                            of_chunk(dsource, j, OWN), sequence_ptrs, stream_ptrs, own_params, rows,
                            after, mask_b, back, t + 1, chunks[j], key, time + step, DRAWN, H,
                            DTYPE,
                        )
                        dstate = replace(dstate, j, add_each(dstate[j], d[0]))
                        dparams = replace(dparams, j, with_dparams(
                            dparams[j], dparam_ptrs, d[1], at(SOURCE_ZEROS, at(EARLY, e)),
                            first_gate(SPANS, at(EARLY, e)) + N, own_rows, mask_b, chunks[j], H,
                        ))
                        # This program has stored them in the step before, with other threads maybe.
                        tl.debug_barrier()
                        for i in tl.static_range(len(dstream_ptrs)):
                            total = load_block(
                                dstream_ptrs[i], after, mask_b & (back > 0), chunks[j], H
                            ).to(DTYPE)
                            total += d[2][i]
                            store_block(
                                dstream_ptrs[i], after, mask_b & (back > 0), chunks[j], total, H
                            )
            through = ()
            for j in tl.static_range(OWN):
                total = ()
                for i in tl.static_range(N):
                    d = dstate[j][i]
                    if dsequence_ptrs[i] is not None:
                        d += load_block(dsequence_ptrs[i], rows, mask_b, chunks[j], H).to(DTYPE)
                    total = total + (d,)
                pre, state, streams = arguments_of(
                    pre_ptr, sequence_ptrs, initial_ptrs, stream_ptrs, rows, before, unit_rows,
                    mask_b, t, firsts[j], chunks[j], key, time, DRAWN, H, G, G, DTYPE, TOTALS,
                )
                own_params = params_of(params[j], param_ptrs, direction, chunks[j], H, DTYPE)
                out = STEP_VJP(pre, state, own_params, streams, t, total)
                d = split(out, G, N, PARAMS)
                dgates = dgates + (of_gates(
                    d[0], STEP_ZEROS, TOTALS, chunks[j], end_of_chunk(j, H, OWN, BLOCK_H),
                    BLOCK_B, H, DTYPE,
                ),)
                through = through + (as_blocks(d[1], BLOCK_B, BLOCK_H),)
                dparams = replace(dparams, j, with_dparams(
                    dparams[j], dparam_ptrs, d[2], STEP_ZEROS, G + N, own_rows, mask_b, chunks[j],
                    H,
                ))
                dstreams = dstreams + (as_blocks(d[3], BLOCK_B, BLOCK_H),)
            dstate = through
            here = (rows, before, unit_rows, mask_b, firsts, chunks)
            for i in tl.static_range(len(local_stages(MATRICES, PARTS, P - 1))):
                dgates, dstate, dparams, dstreams = through_source(
                    SOURCE_VJP, at(local_stages(MATRICES, PARTS, P - 1), i),
                    of_stage(dgates, SPANS, at(local_stages(MATRICES, PARTS, P - 1), i)), dgates,
                    dstate, dparams, dstreams, pre_ptr, sequence_ptrs, initial_ptrs, stream_ptrs,
                    params, param_ptrs, dparam_ptrs, here, direction, t, key, time,
                    DRAWN, H, G, SPANS, TOTALS, SOURCE_ZEROS, BLOCK_B, DTYPE,
                )
            # Places known from one part of a step would hold registers until the next.
            end_of_part = places(
                tile, first_row, B, firsts, unknown_zero(hidden, H, back + P) if P > 1 else 0, time,
                step, direction, D, BLOCK_B, BLOCK_H,
            )
            store_final(
                dpre_ptr, dtotal_ptr, dgates, end_of_part, hidden, total_size, back % 2, H, G,
                first_gate(SPANS, at(PARTS, P - 1)) if LAST > 1 else 0, G, TOTALS, PROGRAMS,
                BLOCK_H,
            )
            if counter_ptr is not None and MEETS > 0:
                arrive(counter_ptr)
                wait(counter_ptr, ((back - begin) * MEETS + 1) * programs)
        else:
            for j in tl.static_range(OWN):
                dgates = dgates + (load_gates(
                    dpre_ptr, dtotal_ptr, rows, unit_rows, mask_b, j, chunks[j], total_size,
                    back % 2, H, G, TOTALS, PROGRAMS, DTYPE,
                ),)
                dstreams = dstreams + (
                    load_each(dstream_ptrs, rows, mask_b, chunks[j], H, DTYPE),
                )

        for p in tl.static_range(1, P):
            if p >= FIRST and p < LAST:
                where = places(
                    tile, first_row, B, firsts, unknown_zero(hidden, H, back + p), time, step,
                    direction, D, BLOCK_B, BLOCK_H,
                )
                own = ()
                if ALONE:
                    own = own_gates(
                        dgates, where[5], H, SPANS, MATRICES, at(PARTS, P - p), dpre_ptr
                    )
                dsource = product(
                    own, dpre_ptr, where[0], where[3], weights, weight_ptrs, direction, where[5],
                    hidden, H, G, SPANS, VECTORS, MATRICES, at(PARTS, P - p), ALONE, KEEP, BLOCK_K,
                    PRECISION, DTYPE, dtotal_ptr, where[2], total_size, back % 2, TOTALS, PROGRAMS,
                )
                dgates, dstate, dparams, dstreams = through_source(
                    SOURCE_VJP, at(PARTS, P - p), dsource, dgates, dstate, dparams, dstreams,
                    pre_ptr, sequence_ptrs, initial_ptrs, stream_ptrs, params, param_ptrs,
                    dparam_ptrs, where, direction, t, key, time, DRAWN, H, G, SPANS,
                    TOTALS, SOURCE_ZEROS, BLOCK_B, DTYPE,
                )
                for i in tl.static_range(len(local_stages(MATRICES, PARTS, P - 1 - p))):
                    dgates, dstate, dparams, dstreams = through_source(
                        SOURCE_VJP, at(local_stages(MATRICES, PARTS, P - 1 - p), i),
                        of_stage(dgates, SPANS, at(local_stages(MATRICES, PARTS, P - 1 - p), i)),
                        dgates, dstate, dparams, dstreams, pre_ptr, sequence_ptrs, initial_ptrs,
                        stream_ptrs, params, param_ptrs, dparam_ptrs, where, direction,
                        t, key, time, DRAWN, H, G, SPANS, TOTALS, SOURCE_ZEROS, BLOCK_B, DTYPE,
                    )
                end_of_part = places(
                    tile, first_row, B, firsts, unknown_zero(hidden, H, back + P + p), time, step,
                    direction, D, BLOCK_B, BLOCK_H,
                )
                store_final(
                    dpre_ptr, dtotal_ptr, dgates, end_of_part, hidden, total_size, back % 2, H, G,
                    first_gate(SPANS, at(PARTS, P - 1 - p)) if p + 1 < LAST else 0,
                    first_gate(SPANS, at(PARTS, P - p)), TOTALS, PROGRAMS, BLOCK_H,
                )
                if counter_ptr is not None and p < MEETS:
                    arrive(counter_ptr)
                    wait(counter_ptr, ((back - begin) * MEETS + p + 1) * programs)

        for j in tl.static_range(OWN):
            for i in tl.static_range(len(dstream_ptrs)):
                store_block(dstream_ptrs[i], rows, mask_b, chunks[j], dstreams[j][i], H)
        if ALONE:
            kept = ()
            for e in tl.static_range(E):
                kept = kept + (
                    own_gates(dgates, chunks, H, SPANS, MATRICES, at(EARLY, e), dpre_ptr),
                )
            later = kept

    end_zero = unknown_zero(hidden, H)
    first_b, offs_b, mask_b = batch_tile(tile, first_row, B + end_zero, BLOCK_B)
    own_rows = ((piece * D + direction).to(tl.int64) * (B + end_zero) + first_b, offs_b)
    for j in tl.static_range(OWN):
        for i in tl.static_range(N):
            store_block(dcarry_ptrs[i], own_rows, mask_b, chunks[j] + end_zero, dstate[j][i], H)
        for i in tl.static_range(len(dparams[j])):
            store_block(dparam_ptrs[i], own_rows, mask_b, chunks[j] + end_zero, dparams[j][i], H)


def backward(
    cell: Cell,
    weights: list[Tensor],
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    sequences: list[Tensor],
    pre: Tensor,
    dsequences: list[Tensor | None],
    dgates: None,
    dfinals: list[Tensor | None],
    reverse: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Compute what ``sequence.backward`` returns, with the fused kernel.

    Takes no gradient of the gates.
    """
    groups = (weights, states, params, streams)
    boundary.backward(cell, *groups, sequences, pre, dsequences, dgates, dfinals, takes_dpre=False)
    given = (*groups, sequences, pre, dsequences, dfinals, reverse)
    if heads.several(cell, weights, pre.shape[-1]):
        return heads.backward(_run, cell, *given)
    return _run(cell, *given)


def _run(
    cell, weights, states, params, streams, sequences, pre, dsequences, dfinals, reverse, count=1
):
    """``backward`` with ``count`` heads of each direction as directions."""
    steps, batch, directions, _, hidden = pre.shape
    launch = plan(cell, steps, batch, hidden, pre.dtype, pre.device, directions).backward
    wide = accumulator(pre.dtype)
    # Contiguous, since kernels write to them; what heads make of a tensor may not be.
    dpre = torch.empty_like(pre, memory_format=torch.contiguous_format)
    dcarry = [
        state.new_zeros(state.shape, dtype=wide)
        if dfinal is None
        else dfinal.to(wide, copy=True).contiguous()
        for state, dfinal in zip(states, dfinals, strict=True)
    ]
    cut = launch.cut(steps)[0]
    dparams = [pre.new_zeros(cut, directions, batch, hidden, dtype=wide) for _ in params]
    given, key = wiring.apart(cell, streams)
    dstreams = [torch.empty_like(stream).contiguous() for stream in given]
    if batch * hidden > 0:
        printed = emit(cell, form(pre.dtype), wide)
        initial = [s.to(q.dtype) for s, q in zip(states, sequences, strict=True)]
        known = (params, given, key, initial, sequences, pre)
        dcarry = pieces.last_gradients(cell, launch, *known, dsequences, dcarry, reverse, count)
        passed = _totals(cell, launch, pre)
        if launch.explicit:
            passed = explicit.passed_on(launch, len(cell.gates), pre)
        tensors = prepare(
            weights, *known, dsequences, dcarry, dparams, dstreams, dpre, passed
        )  # fmt: skip
        constants = describe(cell, launch, directions, count, hidden, pre.dtype, reverse) | {
            "G": len(cell.gates),
            **cell.made[wiring.of_backward],
            "STEP_VJP": printed.step_vjp,
            "SOURCE_VJP": printed.source_vjp,
        }
        kernel = _backward_kernel
        if launch.explicit:
            kernel = explicit.backward_kernel
            own = (hidden, pre.itemsize, True, pre.device)
            constants["HELD"] = held_choices(cell, launch, *own)
        launch_all(kernel, launch, tensors, pre, len(constants["PARTS"]) - 1, constants)
        dcarry = [d[-1] for d in dcarry]
    dparams = [d.sum((0, 2)) for d in dparams]
    groups = (weights, states, params, streams)
    of_first = (dpre, dcarry, dparams, dstreams)
    wiring.add_first_products(cell, *groups, *of_first, reverse, count)
    return (
        dpre,
        [d.to(s.dtype) for d, s in zip(dcarry, states, strict=True)],
        [d.to(p.dtype) for d, p in zip(dparams, params, strict=True)],
        dstreams,
    )


def _totals(cell, launch, pre):
    """The memory in which programs pass on their sums of the gradients of some gates."""
    count = 1 + max(cell.made[wiring.of_backward]["TOTALS"], default=-1)
    if launch.alone or not count:
        return None
    _, batch, directions, _, hidden = pre.shape
    shape = (count, 2, directions, batch, launch.programs(hidden))
    return pre.new_empty(shape, dtype=accumulator(pre.dtype))
