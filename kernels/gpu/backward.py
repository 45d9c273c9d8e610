"""The backward kernel of every cell, and its launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...cells import Cell
from ...checks import boundary
from ...numerics import accumulator, form
from ...plan import plan
from .blocks import (
    add_each,
    at,
    band_bounds,
    batch_tile,
    columns,
    gates_of,
    join_band,
    load_band,
    load_block,
    load_each,
    load_passed,
    load_units,
    load_weight,
    only_units,
    part_of,
    split_band,
    store_band,
    store_block,
    unknown_zero,
)
from .emit import emit
from .launch import describe, launch_all, prepare
from .sync import arrive, wait


@triton.jit(do_not_specialize=["T", "B", "first_row", "hidden", "begin", "end"])
def _backward_kernel(
    weight_ptrs,  # per stage s (D, R_s, H, H)
    param_ptrs,  # each (D, H)
    stream_ptrs,  # each (T, B, D, H)
    initial_ptrs,  # per state (D, B, H), in the dtype of its sequence
    sequence_ptrs,  # per state (T, B, D, H)
    pre_ptr,  # (T, B, D, G, H)
    dsequence_ptrs,  # per state (T, B, D, H) or None
    dcarry_ptrs,  # per state (D, B, H): of the final states, replaced by the initial ones'
    dparam_ptrs,  # each (D, B, H), summed over time
    dstream_ptrs,  # each (T, B, D, H)
    dpre_ptr,  # (T, B, D, G, H)
    counter_ptr,  # (batch tiles, D, COUNTER) of programs that wait for each other; else None
    T,
    B,
    first_row,  # of the batch, in this launch
    hidden,  # H at run time, so that a loop over its blocks stays a loop
    begin,  # the steps to take, counted from the last: begin <= T - 1 - t < end
    end,
    D: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    BOUNDS: tl.constexpr,  # stage s has the gates BOUNDS[s] to BOUNDS[s + 1]
    SOURCE_STATE: tl.constexpr,  # which state is the source of stage 0
    STEP_VJP: tl.constexpr,  # the cell, see emit.Emitted
    SOURCE_VJP: tl.constexpr,
    FIRST: tl.constexpr,  # the phases to take: 0 is stage 0 of t+1 and the step of t,
    LAST: tl.constexpr,  # p > 0 is stage S - p of t
    REVERSE: tl.constexpr,
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
    S: tl.constexpr = len(BOUNDS) - 1
    N: tl.constexpr = len(dcarry_ptrs)
    P: tl.constexpr = len(param_ptrs)
    direction = tl.program_id(2)
    walks_back = (direction == 1) != REVERSE
    first_b, offs_b, mask_b = batch_tile(first_row, B, BLOCK_B)
    own_rows = (direction.to(tl.int64) * B + first_b, offs_b)  # of (D, B, H)
    if counter_ptr is not None:
        counter_ptr += ((first_row // BLOCK_B + tl.program_id(0)) * D + direction) * COUNTER
        programs = tl.num_programs(1).to(tl.int64)

    firsts = ()  # per chunk its first unit
    chunks = ()  # and all of them
    params = ()
    dstate = ()  # per chunk: per state (BLOCK_B, BLOCK_H)
    dparams = ()
    dsource_bands = ()  # ALONE: per chunk: per band of stage 0 the dpre of t+1
    for j in tl.static_range(OWN):
        first_unit = (tl.program_id(1) * OWN + j) * BLOCK_H
        offs_h = first_unit + tl.arange(0, BLOCK_H)
        firsts = firsts + (first_unit,)
        chunks = chunks + (offs_h,)
        params = params + (load_units(param_ptrs, direction, offs_h, H, DTYPE),)
        dstate = dstate + (load_each(dcarry_ptrs, own_rows, mask_b, offs_h, H, DTYPE),)
        dparams = dparams + (load_each(dparam_ptrs, own_rows, mask_b, offs_h, H, DTYPE),)
        zeros = ()
        for _ in tl.static_range(at(BOUNDS, 1)):
            zeros = zeros + (tl.zeros((BLOCK_B, BLOCK_H), DTYPE),)
        dsource_bands = dsource_bands + (_bands(zeros, dpre_ptr),)

    # Loaded before the loop, the tiles stay on the chip for the whole sequence.
    weights = ()  # per stage
    if KEEP:
        for s in tl.static_range(S):
            weights = weights + (_kept_weights(
                weight_ptrs[s], direction, firsts, chunks, H, at(BOUNDS, s + 1) - at(BOUNDS, s),
                ALONE, BLOCK_H, BLOCK_K,
            ),)

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
            dsource = _product(
                dsource_bands, dpre_ptr, after, mask_b & (back > 0), weights[:1], weight_ptrs[0],
                direction, chunks, hidden, H, G, 0, at(BOUNDS, 1), ALONE, KEEP, BLOCK_K, PRECISION,
                DTYPE,
            )
            through = ()
            for j in tl.static_range(OWN):
                total = ()
                for i in tl.static_range(N):
                    d = dstate[j][i]
                    if i == SOURCE_STATE:
                        d += dsource[j]
                    if dsequence_ptrs[i] is not None:
                        d += load_block(dsequence_ptrs[i], rows, mask_b, chunks[j], H).to(DTYPE)
                    total = total + (d,)
                pre, state, streams = _arguments(
                    pre_ptr, sequence_ptrs, initial_ptrs, stream_ptrs, rows, before, own_rows,
                    mask_b, t, firsts[j], chunks[j], H, G, G, DTYPE,
                )
                out = STEP_VJP(pre, state, params[j], streams, t, total)
                d = _split(out, G, N, P)
                dgates = dgates + (d[0],)
                through = through + (d[1],)
                dparams = _replace(dparams, j, add_each(dparams[j], d[2]))
                dstreams = dstreams + (d[3],)
            dstate = through
            _store_final(
                dpre_ptr, dgates, rows, mask_b, firsts, H, G,
                at(BOUNDS, S - 1) if LAST > 1 else 0, G, BLOCK_H,
            )
            if counter_ptr is not None:
                arrive(counter_ptr)
                wait(counter_ptr, ((back - begin) * S + 1) * programs)
        else:
            for j in tl.static_range(OWN):
                loaded = ()
                for g in tl.static_range(G):
                    gate = load_block(dpre_ptr, part_of(rows, G, g), mask_b, chunks[j], H)
                    loaded = loaded + (gate.to(DTYPE),)
                dgates = dgates + (loaded,)
                dstreams = dstreams + (
                    load_each(dstream_ptrs, rows, mask_b, chunks[j], H, DTYPE),
                )

        for p in tl.static_range(1, S):
            if p >= FIRST and p < LAST:
                own = ()
                if ALONE:
                    for j in tl.static_range(OWN):
                        last = dgates[j][at(BOUNDS, S - p) : at(BOUNDS, S - p + 1)]
                        last = _only_units(last, chunks[j], (j + 1) * BLOCK_H, H)
                        own = own + (_bands(last, dpre_ptr),)
                dsource = _product(
                    own, dpre_ptr, rows, mask_b, weights[S - p : S - p + 1], weight_ptrs[S - p],
                    direction, chunks, hidden, H, G, at(BOUNDS, S - p), at(BOUNDS, S - p + 1),
                    ALONE, KEEP, BLOCK_K, PRECISION, DTYPE,
                )
                for j in tl.static_range(OWN):
                    # Loaded again: kept until here, they would hold registers.
                    pre, state, streams = _arguments(
                        pre_ptr, sequence_ptrs, initial_ptrs, stream_ptrs, rows, before, own_rows,
                        mask_b, t, firsts[j], chunks[j], H, G, at(BOUNDS, S - p), DTYPE,
                    )
                    out = SOURCE_VJP(S - p, pre, state, params[j], streams, t, (dsource[j],))
                    d = _split(out, at(BOUNDS, S - p), N, P)
                    dgates = _replace(dgates, j, add_each(dgates[j], d[0]))
                    dstate = _replace(dstate, j, add_each(dstate[j], d[1]))
                    dparams = _replace(dparams, j, add_each(dparams[j], d[2]))
                    dstreams = _replace(dstreams, j, add_each(dstreams[j], d[3]))

                _store_final(
                    dpre_ptr, dgates, rows, mask_b, firsts, H, G,
                    at(BOUNDS, S - 1 - p) if p + 1 < LAST else 0, at(BOUNDS, S - p), BLOCK_H,
                )
                if counter_ptr is not None:
                    arrive(counter_ptr)
                    wait(counter_ptr, ((back - begin) * S + p + 1) * programs)

        for j in tl.static_range(OWN):
            for i in tl.static_range(len(dstream_ptrs)):
                store_block(dstream_ptrs[i], rows, mask_b, chunks[j], dstreams[j][i], H)
        if ALONE:
            kept = ()
            for j in tl.static_range(OWN):
                first = dgates[j][: at(BOUNDS, 1)]
                first = _only_units(first, chunks[j], (j + 1) * BLOCK_H, H)
                kept = kept + (_bands(first, dpre_ptr),)
            dsource_bands = kept

    zero = unknown_zero(hidden, H)
    first_b, offs_b, mask_b = batch_tile(first_row, B + zero, BLOCK_B)
    own_rows = (direction.to(tl.int64) * (B + zero) + first_b, offs_b)
    for j in tl.static_range(OWN):
        for i in tl.static_range(N):
            store_block(dcarry_ptrs[i], own_rows, mask_b, chunks[j] + zero, dstate[j][i], H)
        for i in tl.static_range(P):
            store_block(dparam_ptrs[i], own_rows, mask_b, chunks[j] + zero, dparams[j][i], H)


@triton.jit
def _arguments(
    pre_ptr, sequence_ptrs, initial_ptrs, stream_ptrs, rows, before, own_rows, mask_b, t,
    first_unit, offs_h, H: tl.constexpr, G: tl.constexpr, GATES: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """The first gates of step t, the states of t - 1 and the streams of t, of one chunk."""
    pre = ()
    BANDS: tl.constexpr = band_bounds(0, GATES)
    for n in tl.static_range(len(BANDS) - 1):
        gates = part_of(rows, G, at(BANDS, n))
        band = load_band(pre_ptr, gates, mask_b, first_unit, gates_of(BANDS, n), offs_h.shape[0], H)
        pre = pre + split_band(band.to(DTYPE), gates_of(BANDS, n))
    # The first step has no previous one, and only it needs the initial states.
    old = load_each(sequence_ptrs, before, mask_b & (t > 0), offs_h, H, DTYPE)
    initial = load_each(initial_ptrs, own_rows, mask_b & (t == 0), offs_h, H, DTYPE)
    streams = load_each(stream_ptrs, rows, mask_b, offs_h, H, DTYPE)
    return pre, add_each(old, initial), streams


@triton.jit
def _split(out, GATES: tl.constexpr, N: tl.constexpr, P: tl.constexpr):
    """What a vjp returns, as the gradients of gates, states, params and streams."""
    return out[:GATES], out[GATES : GATES + N], out[GATES + N : GATES + N + P], out[GATES + N + P :]


@triton.jit
def _replace(blocks, index: tl.constexpr, value):
    """The tuple with another element at ``index``."""
    return blocks[:index] + (value,) + blocks[index + 1 :]


@triton.jit
def _only_units(gates, units, END: tl.constexpr, H: tl.constexpr):
    """Gates for a product of a program that owns all units, see ``only_units``."""
    masked = ()
    for g in tl.static_range(len(gates)):
        masked = masked + (only_units(gates[g], units, END, H),)
    return masked


@triton.jit
def _bands(gates, ptr):
    """Gates joined to bands, in the dtype of the tensor that they will be read from."""
    BANDS: tl.constexpr = band_bounds(0, len(gates))
    joined = ()
    for n in tl.static_range(len(BANDS) - 1):
        band = join_band(gates[at(BANDS, n) : at(BANDS, n + 1)])
        joined = joined + (band.to(ptr.dtype.element_ty),)
    return joined


@triton.jit
def _store_final(
    dpre_ptr, dgates, rows, mask_b, firsts, H: tl.constexpr, G: tl.constexpr, FROM: tl.constexpr,
    TO: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Store gates FROM to TO, which no later phase of this launch changes."""
    BANDS: tl.constexpr = band_bounds(FROM, TO)
    for j in tl.static_range(len(firsts)):
        for n in tl.static_range(len(BANDS) - 1):
            band = join_band(dgates[j][at(BANDS, n) : at(BANDS, n + 1)])
            gates = part_of(rows, G, at(BANDS, n))
            store_band(dpre_ptr, gates, mask_b, firsts[j], band, BLOCK_H, H)


@triton.jit
def _kept_weights(
    ptr, direction, firsts, chunks, H: tl.constexpr, R: tl.constexpr, ALONE: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Per chunk k: the tiles (rows of R gates, BLOCK_H units of k) that a product takes in turn.

    The rows of a tile are a band of a chunk if the program owns all units, else rows of (R · H).
    """
    BANDS: tl.constexpr = band_bounds(0, R)
    weights = ()
    for k in tl.static_range(len(chunks)):
        tiles = ()
        if ALONE:
            for j in tl.static_range(len(firsts)):
                for n in tl.static_range(len(BANDS) - 1):
                    offs, exist = columns(firsts[j], gates_of(BANDS, n), BLOCK_H, H)
                    offs += at(BANDS, n) * H
                    tiles = tiles + (_tile(ptr, direction, offs, exist, chunks[k], H, R),)
        else:
            for n in tl.static_range((R * H + BLOCK_K - 1) // BLOCK_K):
                offs = n * BLOCK_K + tl.arange(0, BLOCK_K)
                tiles = tiles + (_tile(ptr, direction, offs, offs < R * H, chunks[k], H, R),)
        weights = weights + (tiles,)
    return weights


@triton.jit
def _tile(ptr, direction, rows, exist, units, H: tl.constexpr, R: tl.constexpr):
    mask = exist[:, None] & (units < H)[None, :]
    return load_weight(ptr, (direction * R * H + rows)[:, None], units[None, :], mask, H)


@triton.jit
def _product(
    own, dpre_ptr, rows, mask_b, weights, weight_ptr, direction, chunks, hidden, H: tl.constexpr,
    G: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr, ALONE: tl.constexpr,
    KEEP: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """dpre · R of gates FROM to TO; per chunk (BLOCK_B, BLOCK_H).

    With ALONE the gates are ``own``. Otherwise they are read from what all programs have stored: a
    row of (TO - FROM) · H contiguous values, as the weights are.
    """
    WIDTH: tl.constexpr = (TO - FROM) * H
    products = ()
    for j in tl.static_range(len(chunks)):
        products = products + (tl.zeros((mask_b.shape[0], chunks[j].shape[0]), DTYPE),)
    if ALONE:
        for j in tl.static_range(len(own)):
            for n in tl.static_range(len(own[j])):
                products = _add_product(
                    products, own[j][n], weights[0], j * len(own[j]) + n, PRECISION
                )
    elif KEEP:
        for n in tl.static_range((WIDTH + BLOCK_K - 1) // BLOCK_K):
            offs = n * BLOCK_K + tl.arange(0, BLOCK_K)
            d = load_passed(dpre_ptr, part_of(rows, G, FROM), mask_b, offs, WIDTH, H)
            products = _add_product(products, d, weights[0], n, PRECISION)
    else:
        for n in tl.range(0, tl.cdiv(hidden * (TO - FROM), BLOCK_K)):
            offs = n * BLOCK_K + tl.arange(0, BLOCK_K)
            d = load_passed(dpre_ptr, part_of(rows, G, FROM), mask_b, offs, WIDTH, H)
            tiles = ()
            for k in tl.static_range(len(chunks)):
                tile = _tile(weight_ptr, direction, offs, offs < WIDTH, chunks[k], H, TO - FROM)
                tiles = tiles + ((tile,),)
            products = _add_product(products, d, tiles, 0, PRECISION)
    return products


@triton.jit
def _add_product(products, d, weights, n: tl.constexpr, PRECISION: tl.constexpr):
    """Add d times the n-th tile of every chunk."""
    total = ()
    for k in tl.static_range(len(products)):
        acc = products[k]
        acc = tl.dot(d, weights[k][n], acc, input_precision=PRECISION, out_dtype=acc.dtype)
        total = total + (acc,)
    return total


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
    steps, batch, directions, _, hidden = pre.shape
    launch = plan(cell, steps, batch, hidden, pre.dtype, pre.device, directions).backward
    wide = accumulator(pre.dtype)
    dpre = torch.empty_like(pre)
    dcarry = [
        torch.zeros_like(state, dtype=wide)
        if dfinal is None
        else dfinal.to(wide, copy=True).contiguous()
        for state, dfinal in zip(states, dfinals, strict=True)
    ]
    dparams = [pre.new_zeros(directions, batch, hidden, dtype=wide) for _ in params]
    dstreams = [torch.empty_like(stream).contiguous() for stream in streams]
    source_state = cell.states.index(cell.stages[0].source[0])
    if batch * hidden > 0:
        printed = emit(cell, form(pre.dtype), wide)
        initial = [s.to(q.dtype) for s, q in zip(states, sequences, strict=True)]
        tensors = prepare(
            weights, params, streams, initial, sequences, pre, dsequences, dcarry, dparams,
            dstreams, dpre,
        )  # fmt: skip
        constants = describe(cell, launch, directions, hidden, pre.dtype, reverse) | {
            "G": len(cell.gates),
            "BOUNDS": (0, *(end for _, end in cell.spans)),
            "SOURCE_STATE": source_state,
            "STEP_VJP": printed.step_vjp,
            "SOURCE_VJP": printed.source_vjp,
            "BLOCK_K": launch.backward_k or launch.block_k,
        }
        launch_all(_backward_kernel, launch, tensors, pre, len(cell.stages), constants)
    # The loop adds the product of a step's dpre at the next step, which the first one lacks.
    for d in range(directions):
        first = steps - 1 if reverse ^ (d == 1) else 0
        rows = dpre[first, :, d, : cell.spans[0][1]].flatten(1)
        dcarry[source_state][d] += rows @ weights[0][d]
    return (
        dpre,
        [d.to(s.dtype) for d, s in zip(dcarry, states, strict=True)],
        [d.sum(1).to(p.dtype) for d, p in zip(dparams, params, strict=True)],
        dstreams,
    )
