"""The forward kernel of every cell, and its launcher."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...cells import Cell, heads
from ...checks import boundary
from ...numerics import accumulator, form, state_dtypes
from ...plan import held_choices, plan
from . import explicit, pieces, wiring
from .blocks import (
    as_blocks,
    at,
    batch_tile,
    kept_params,
    load_each,
    load_gate,
    params_of,
    part_of,
    program_count,
    steps_of_piece,
    store_block,
    store_gates,
    store_states,
    takes_gap,
    takes_stage,
    tile_and_piece,
    unknown_zero,
)
from .draws import load_key, load_streams
from .emit import emit
from .forward_products import gathered_product, kept_product, kept_weights, streamed_product
from .gates import load_biases, own_parts, widened_bands, with_bands, with_others, with_sums
from .launch import describe, launch_all, prepare
from .sources import pass_on, sources
from .sums import (
    is_fixed,
    is_local,
    is_total,
    own_sums,
    passed_running_sums,
    passed_total,
    per_chunk,
)
from .sync import arrive, wait


@triton.jit(do_not_specialize=["T", "B", "first_row", "hidden", "begin", "end"])
def _forward_kernel(
    x_ptr,  # (T, B, D, X, H)
    weight_ptrs,  # per matrix, of stage s (D, R_s, H, V_s, H)
    bias_ptr,  # (D, M, H) or None
    param_ptrs,  # each (D, H)
    stream_ptrs,  # each (T, B, D, H)
    key_ptr,  # (2 + B,) of what the cell draws; else None
    carry_ptrs,  # per state (pieces, D, B, H): the first states, replaced by the last ones
    sequence_ptrs,  # per state (T, B, D, H)
    pre_ptr,  # (T, B, D, G, H), one step of it unless SAVE
    source_ptr,  # (slots, 2, D, B, H): the sources that programs pass on; None where one owns all
    total_ptr,  # (slots, 2, D, B, PROGRAMS): each program's sum of a source; likewise
    counter_ptr,  # (batch tiles, D, COUNTER) of programs that wait for each other; else None
    T,
    B,
    first_row,  # of the batch, in this launch
    hidden,  # H at run time, so that a loop over its blocks stays a loop
    begin,  # the steps to take: begin <= t < end
    end,  # with PIECES, the steps of each
    D: tl.constexpr,  # directions of the layer times heads of each
    HEADS: tl.constexpr,
    H: tl.constexpr,
    X_INDEX: tl.constexpr,  # per gate its place in x or -1
    BIAS_INDEX: tl.constexpr,  # per gate its place in bias or -1
    BANDS: tl.constexpr,  # the wiring, see wiring.py
    GAPS: tl.constexpr,
    MATRICES: tl.constexpr,
    PARTS: tl.constexpr,
    SLOTS: tl.constexpr,
    PASSED_ON: tl.constexpr,
    DRAWN: tl.constexpr,
    TOTALS: tl.constexpr,
    X: tl.constexpr,
    M: tl.constexpr,
    STEP: tl.constexpr,  # the cell, see emit.Emitted
    SOURCE: tl.constexpr,
    FIRST: tl.constexpr,  # the parts to take; the step follows the last
    LAST: tl.constexpr,
    REVERSE: tl.constexpr,
    SAVE: tl.constexpr,  # keep pre and the sequences of all states, for a backward
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
    G: tl.constexpr = len(X_INDEX)
    S: tl.constexpr = len(BANDS)
    P: tl.constexpr = len(PARTS) - 1
    # How often programs meet in a step: after it, and before each part but the first.
    MEETS: tl.constexpr = P - 1 + (len(PASSED_ON) > 0)
    # Where other programs wait for the next source, what no program reads is stored after it.
    LATE: tl.constexpr = counter_ptr is not None and LAST == P
    EARLY: tl.constexpr = (SAVE and not LATE) or LAST < P
    direction = tl.program_id(2)
    walks_back = (direction // HEADS == 1) != REVERSE
    tile, piece = tile_and_piece(B, BLOCK_B, PIECES)
    first_b, offs_b, mask_b = batch_tile(tile, first_row, B, BLOCK_B)
    own_rows = ((piece * D + direction).to(tl.int64) * B + first_b, offs_b)  # of (pieces, D, B, H)
    if PIECES:
        begin, end = steps_of_piece(piece, T, end)
    source_size = B.to(tl.int64) * D * H
    key = load_key(key_ptr, first_b, mask_b, direction % HEADS * H, direction // HEADS)
    PROGRAMS: tl.constexpr = program_count(H, OWN, BLOCK_H)
    total_size = B.to(tl.int64) * D * PROGRAMS
    if counter_ptr is not None:
        counter_ptr += ((first_row // BLOCK_B + tl.program_id(0)) * D + direction) * COUNTER
        programs = tl.num_programs(1).to(tl.int64)

    firsts = ()  # per chunk its first unit
    chunks = ()  # and all of them
    state = ()  # per chunk: per state (BLOCK_B, BLOCK_H)
    params = ()
    for j in tl.static_range(OWN):
        first_unit = (tl.program_id(1) * OWN + j) * BLOCK_H
        offs_h = first_unit + tl.arange(0, BLOCK_H)
        firsts = firsts + (first_unit,)
        chunks = chunks + (offs_h,)
        state = state + (load_each(carry_ptrs, own_rows, mask_b, offs_h, H, DTYPE),)
        params = params + (kept_params(param_ptrs, direction, offs_h, H, DTYPE),)

    # Loaded before the loop, the tiles stay on the chip for the whole sequence.
    weights = ()  # per stage
    biases = ()  # of the gates of each stage
    other_biases = ()  # and of those before it, or after the last
    for s in tl.static_range(S + 1):
        if s < S:
            biases = biases + (load_biases(
                bias_ptr, direction, firsts, H, M, BIAS_INDEX, at(BANDS, s), BLOCK_H, DTYPE
            ),)
        other_biases = other_biases + (load_biases(
            bias_ptr, direction, firsts, H, M, BIAS_INDEX, at(GAPS, s), BLOCK_H, DTYPE
        ),)
        if KEEP and s < S:
            tiles = ()
            if not is_fixed(MATRICES, s):
                tiles = kept_weights(
                    weight_ptrs[at(MATRICES, s)], direction, firsts, H, at(BANDS, s),
                    len(at(SLOTS, s)), BLOCK_H, BLOCK_H if ALONE else BLOCK_K,
                )
            weights = weights + (tiles,)

    # num_stages=1: the pipeliner must not move a load of one step above the stores of another.
    # Sources alternate between two places: a program may be one step ahead of one that still reads.
    for t in tl.range(begin, end, num_stages=1):
        time = tl.where(walks_back, T - 1 - t, t).to(tl.int64)
        rows = ((time * B + first_b) * D + direction, offs_b * D)  # of (T, B, D, H)
        pre_rows = rows if SAVE else own_rows
        own = ()  # per stage and chunk: per band (BLOCK_B or 1, gates · BLOCK_H)
        others = ()  # of the gates without a product
        for s in tl.static_range(S + 1):
            stage, gap = (), ()
            if takes_stage(PARTS, FIRST, LAST, s) and not is_fixed(MATRICES, s):
                stage = own_parts(
                    x_ptr, biases[s], rows, mask_b, firsts, H, X, X_INDEX, at(BANDS, s), BLOCK_H
                )
            if takes_gap(PARTS, FIRST, LAST, s):
                gap = own_parts(
                    x_ptr, other_biases[s], rows, mask_b, firsts, H, X, X_INDEX, at(GAPS, s),
                    BLOCK_H,
                )
            own = own + (stage,)
            others = others + (gap,)
        streams = ()
        pre = ()  # per chunk: per gate (BLOCK_B, BLOCK_H)
        for j in tl.static_range(OWN):
            streams = streams + (
                load_streams(stream_ptrs, rows, mask_b, chunks[j], key, time, DRAWN, H, DTYPE),
            )
            earlier = ()
            if FIRST > 0:
                for g in tl.static_range(at(at(BANDS, at(PARTS, FIRST)), 0)):  # by another launch
                    gate = load_gate(
                        pre_ptr, part_of(pre_rows, G, g), mask_b, chunks[j], at(TOTALS, g) >= 0, H
                    )
                    earlier = earlier + (gate.to(DTYPE),)
            pre = pre + (earlier,)
        if FIRST == 0:
            pre = with_others(
                pre, others[0], pre_ptr, pre_rows, mask_b, firsts, G, H, at(GAPS, 0),
                EARLY, BLOCK_B, BLOCK_H, DTYPE,
            )

        if counter_ptr is not None:
            # The loads of x for the step are in flight meanwhile.
            wait(counter_ptr, (t - begin) * MEETS * programs)

        for p in tl.static_range(FIRST, LAST):
            for s in tl.static_range(at(PARTS, p), at(PARTS, p + 1)):
                source = ()
                if ALONE or is_local(MATRICES, s):
                    source = sources(
                        SOURCE, s, len(at(SLOTS, s)), pre, state, params, param_ptrs, direction,
                        streams, t, chunks, BLOCK_B, H,
                        DTYPE if is_fixed(MATRICES, s) else x_ptr.dtype.element_ty,
                    )
                if is_fixed(MATRICES, s):
                    sums = source
                    if is_local(MATRICES, s):
                        pass
                    elif ALONE:
                        sums = own_sums(source, OWN, at(MATRICES, s), False, H)
                    else:
                        sums = ()
                        for v in tl.static_range(len(at(SLOTS, s))):
                            place = 2 * at(at(SLOTS, s), v) + t % 2
                            if is_total(MATRICES, s):
                                total = passed_total(
                                    total_ptr + place * total_size, own_rows, mask_b,
                                    at(MATRICES, s), PROGRAMS, H,
                                )
                                sums = sums + per_chunk(total, OWN)
                            else:
                                sums = sums + passed_running_sums(
                                    source_ptr + place * source_size, own_rows, mask_b, chunks,
                                    hidden, False, H, BLOCK_K, DTYPE,
                                )
                    gates = with_sums(
                        pre, sums, pre_ptr, pre_rows, mask_b, chunks, G, H, EARLY
                    )
                else:
                    products = widened_bands(own[s], BLOCK_B, DTYPE)
                    if ALONE:
                        products = kept_product(source, weights[s], products, PRECISION)
                    else:
                        for v in tl.static_range(len(at(SLOTS, s))):
                            read = source_ptr + (2 * at(at(SLOTS, s), v) + t % 2) * source_size
                            if KEEP:
                                products = gathered_product(
                                    read, own_rows, mask_b, weights[s], products, H,
                                    len(at(SLOTS, s)), v, BLOCK_K, PRECISION,
                                )
                            else:
                                products = streamed_product(
                                    read, own_rows, mask_b, weight_ptrs[at(MATRICES, s)], direction,
                                    firsts, products, hidden, H, at(BANDS, s),
                                    len(at(SLOTS, s)), v, BLOCK_H, BLOCK_K, PRECISION,
                                )
                    gates = with_bands(
                        pre, products, pre_ptr, pre_rows, mask_b, firsts, G, H, at(BANDS, s),
                        EARLY, BLOCK_H,
                    )
                pre = with_others(
                    gates, others[s + 1], pre_ptr, pre_rows, mask_b, firsts, G, H, at(GAPS, s + 1),
                    EARLY, BLOCK_B, BLOCK_H, DTYPE,
                )
            if not ALONE and p + 1 < P:
                pass_on(
                    SOURCE, at(PARTS, p + 1), _all_of(SLOTS, at(PARTS, p + 1)), SLOTS, MATRICES,
                    pre, state, params, param_ptrs, direction, streams, t, t % 2, source_ptr,
                    source_size, total_ptr, total_size, own_rows, mask_b, chunks, BLOCK_B,
                    PROGRAMS, H, DTYPE,
                )
                if counter_ptr is not None:
                    arrive(counter_ptr)
                    wait(counter_ptr, ((t - begin) * MEETS + p + 1) * programs)

        if LAST == P:
            after = ()
            for j in tl.static_range(OWN):
                own_params = params_of(params[j], param_ptrs, direction, chunks[j], H, DTYPE)
                new = STEP(pre[j], state[j], own_params, streams[j], t)
                after = after + (as_blocks(new, BLOCK_B, BLOCK_H),)
            state = after
            if not LATE:
                store_states(sequence_ptrs, rows, mask_b, chunks, state, H, SAVE)
            if not ALONE and len(PASSED_ON) > 0:
                # Of the next step, which the last one does not have.
                step = tl.where(walks_back, -1, 1).to(tl.int64)
                next_rows = (rows[0] + step * B * D, rows[1])
                next_b = mask_b & (t + 1 < T)
                coming = ()
                nothing = ()
                for j in tl.static_range(OWN):
                    of_chunk = load_streams(
                        stream_ptrs, next_rows, next_b, chunks[j], key, time + step, DRAWN, H,
                        DTYPE,
                    )
                    coming = coming + (of_chunk,)
                    nothing = nothing + ((),)
                for n in tl.static_range(len(_by_stage(PASSED_ON))):
                    pass_on(
                        SOURCE, at(at(_by_stage(PASSED_ON), n), 0),
                        at(at(_by_stage(PASSED_ON), n), 1), SLOTS, MATRICES,
                        nothing, state, params, param_ptrs, direction, coming, t + 1, (t + 1) % 2,
                        source_ptr, source_size, total_ptr, total_size, own_rows, mask_b, chunks,
                        BLOCK_B, PROGRAMS, H, DTYPE,
                    )
                if counter_ptr is not None:
                    arrive(counter_ptr)
            if LATE:
                store_states(sequence_ptrs, rows, mask_b, chunks, state, H, SAVE)
                if SAVE:
                    store_gates(
                        pre_ptr, pre_rows, mask_b, pre, firsts, chunks, G, H, TOTALS, BLOCK_H
                    )

    if LAST == P:
        zero = unknown_zero(hidden, H)
        first_b, offs_b, mask_b = batch_tile(tile, first_row, B + zero, BLOCK_B)
        own_rows = ((piece * D + direction).to(tl.int64) * (B + zero) + first_b, offs_b)
        for j in tl.static_range(OWN):
            for i in tl.static_range(len(carry_ptrs)):
                store_block(carry_ptrs[i], own_rows, mask_b, chunks[j] + zero, state[j][i], H)


@triton.constexpr_function
def _by_stage(passed_on):
    """Pairs of a stage and the vectors of its source that are passed on after a step."""
    stages = sorted({s for s, _, _ in passed_on})
    return tuple((s, tuple(v for of, v, _ in passed_on if of == s)) for s in stages)


@triton.constexpr_function
def _all_of(slots, s):
    """The numbers of all vectors of a source."""
    return tuple(range(len(slots[s])))




def forward(
    cell: Cell,
    x: Tensor,
    weights: list[Tensor],
    bias: Tensor | None,
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    reverse: bool,
    save: bool,
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Compute what ``sequence.forward`` returns, with the fused kernel.

    Args:
        save: keep the gates and the sequences of all states; otherwise only the first sequence and
            the finals are defined.
    """
    given = (x, weights, bias, states, params, streams)
    boundary.forward(cell, *given)
    if heads.several(cell, weights, x.shape[-1]):
        return heads.forward(_run, cell, *given, reverse, save)
    return _run(cell, *given, reverse, save)


def _run(cell, x, weights, bias, states, params, streams, reverse, save, count=1):
    """``forward`` with ``count`` heads of each direction as directions."""
    steps, batch, directions, _, hidden = x.shape
    launch = plan(cell, steps, batch, hidden, x.dtype, x.device, directions, save).forward
    wide = accumulator(x.dtype)
    shape = (steps, batch, directions, hidden)
    sequences = [
        x.new_empty(shape if save or i == 0 else (0,), dtype=dtype)
        for i, dtype in enumerate(state_dtypes(cell, x.dtype))
    ]
    kept = steps if save else 1
    pre = x.new_empty(kept, batch, directions, len(cell.gates), hidden)
    carry = [state.to(wide, copy=True).contiguous() for state in states]
    if batch * hidden == 0:
        return sequences, pre, [c.to(x.dtype) for c in carry]
    flow = wiring.apart(cell, streams)
    carry = pieces.first_states(cell, launch, x, params, *flow, carry, reverse, count)

    source = total = None
    if launch.explicit:
        source = explicit.passed_on(launch, wiring.slot_count(cell), x)
    elif not launch.alone:
        given, programs = (states, params, streams), launch.programs(hidden)
        source, total = wiring.first_sources(cell, x, *given, reverse, count, programs)
    printed = emit(cell, form(x.dtype), wide)
    tensors = prepare(x, weights, bias, params, *flow, carry, sequences, pre, source)
    wired = wiring.of_explicit_forward if launch.explicit else wiring.of_forward
    constants = describe(cell, launch, directions, count, hidden, x.dtype, reverse) | {
        **cell.made[wired],
        "X": len(cell.x_gates),
        "M": len(cell.bias_gates),
        "STEP": printed.step,
        "SOURCE": printed.source,
        "SAVE": save,
    }
    kernel = explicit.forward_kernel if launch.explicit else _forward_kernel
    if not launch.explicit:
        tensors.append(total)
    else:
        own = (hidden, x.itemsize, False, x.device)
        constants["HELD"] = held_choices(cell, launch, *own)
    launch_all(kernel, launch, tensors, x, len(constants["PARTS"]) - 1, constants)
    return sequences, pre, [c[-1].to(x.dtype) for c in carry]
