"""The backward kernel of every cell, and its launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..cells import Cell
from ..plan import plan
from ..sequence import accumulator
from .blocks import (
    add_each,
    at,
    load_block,
    load_each,
    load_passed,
    load_units,
    load_weight,
    store_block,
    weight_blocks,
)
from .emit import emit
from .launch import describe, launch_all, prepare
from .sync import grid_barrier


@triton.jit(do_not_specialize=["T", "B", "first_row", "k_blocks", "begin", "end"])
def _backward_kernel(
    weight_ptrs,  # per stage s (D, R_s, H, H)
    param_ptrs,  # each (D, H)
    stream_ptrs,  # each (T, B, D, H)
    initial_ptrs,  # per state (D, B, H), in the dtype of its sequence
    sequence_ptrs,  # per state (T, B, D, H)
    pre_ptr,  # (T, B, D, G, H)
    dsequence_ptrs,  # per state (T, B, D, H) or None
    dcarry_ptrs,  # per state (D, B, H): of the finals; the kernel leaves that of the initial
    dparam_ptrs,  # each (D, B, H), summed over time
    dstream_ptrs,  # each (T, B, D, H)
    dpre_ptr,  # (T, B, D, G, H)
    counter_ptr,  # (batch tiles, D, COUNTER) of programs that wait for each other; else None
    T,
    B,
    first_row,  # of the batch, in this launch
    k_blocks,  # of BLOCK_K in H; at run time, so that the loop over them stays a loop
    begin,  # how many steps to leave out at the end, and to take at most: T > t >= T - end
    end,
    D: tl.constexpr,
    H: tl.constexpr,
    X_INDEX: tl.constexpr,
    BIAS_INDEX: tl.constexpr,
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
    G: tl.constexpr = len(X_INDEX)
    S: tl.constexpr = len(BOUNDS) - 1
    N: tl.constexpr = len(dcarry_ptrs)
    P: tl.constexpr = len(param_ptrs)
    direction = tl.program_id(2)
    walks_back = (direction == 1) != REVERSE
    offs_b = first_row + tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = (offs_b < B)[:, None]
    own_rows = direction.to(tl.int64) * B + offs_b  # of (D, B, H)
    all_rows = T.to(tl.int64) * B * D
    if counter_ptr is not None:
        counter_ptr += ((first_row // BLOCK_B + tl.program_id(0)) * D + direction) * COUNTER
        programs = tl.num_programs(1).to(tl.int64)

    chunks = ()
    masks = ()
    params = ()
    dstate = ()  # per chunk: per state (BLOCK_B, BLOCK_H)
    dparams = ()
    dsource_gates = ()  # ALONE: per chunk, per gate of stage 0, the dpre of t+1
    for j in tl.static_range(OWN):
        offs_h = (tl.program_id(1) * OWN + j) * BLOCK_H + tl.arange(0, BLOCK_H)
        mask_bh = mask_b & (offs_h < H)[None, :]
        chunks = chunks + (offs_h,)
        masks = masks + (mask_bh,)
        params = params + (load_units(param_ptrs, direction, offs_h, H, DTYPE),)
        dstate = dstate + (load_each(dcarry_ptrs, own_rows, offs_h, mask_bh, H, DTYPE),)
        dparams = dparams + (load_each(dparam_ptrs, own_rows, offs_h, mask_bh, H, DTYPE),)
        gates = ()
        for _ in tl.static_range(at(BOUNDS, 1)):
            gates = gates + (tl.zeros((BLOCK_B, BLOCK_H), dpre_ptr.dtype.element_ty),)
        dsource_gates = dsource_gates + (gates,)

    weights = ()
    blocks = ()
    if KEEP:
        blocks = weight_blocks(chunks, ALONE, H, BLOCK_K)
        for s in tl.static_range(S):
            weights = weights + (_kept_weights(
                weight_ptrs[s], direction, chunks, blocks, H, at(BOUNDS, s + 1) - at(BOUNDS, s)
            ),)

    # num_stages=1: the pipeliner must not move a load of one step above the stores of another.
    for back in tl.range(begin, end, num_stages=1):
        t = T - 1 - back
        time = tl.where(walks_back, back, t).to(tl.int64)
        step = tl.where(walks_back, -1, 1).to(tl.int64)
        rows = (time * B + offs_b) * D + direction  # of (T, B, D, H)
        before = rows - step * B * D
        after = rows + step * B * D

        dgates = ()  # per chunk: per gate (BLOCK_B, BLOCK_H)
        dstreams = ()
        if FIRST == 0:
            dsource = _product(
                dsource_gates, dpre_ptr, after,
                mask_b & ((after >= 0) & (after < all_rows))[:, None], weights[:1], weight_ptrs[0],
                direction, chunks, blocks, k_blocks, H, G, 0, at(BOUNDS, 1), ALONE, KEEP, BLOCK_K,
                PRECISION, DTYPE,
            )
            through = ()
            for j in tl.static_range(OWN):
                total = ()
                for i in tl.static_range(N):
                    d = dstate[j][i]
                    if i == SOURCE_STATE:
                        d += dsource[j]
                    if dsequence_ptrs[i] is not None:
                        d += load_block(dsequence_ptrs[i], rows, chunks[j], masks[j], H).to(DTYPE)
                    total = total + (d,)
                pre, state, streams = _arguments(
                    pre_ptr, sequence_ptrs, initial_ptrs, stream_ptrs, rows, before, own_rows,
                    all_rows, chunks[j], masks[j], H, G, G, DTYPE,
                )
                out = STEP_VJP(pre, state, params[j], streams, t, total)
                d = _split(out, G, N, P)
                dgates = dgates + (d[0],)
                through = through + (d[1],)
                dparams = _replace(dparams, j, add_each(dparams[j], d[2]))
                dstreams = dstreams + (d[3],)
            dstate = through
            _store_final(
                dpre_ptr, dgates, rows, chunks, masks, H, G, at(BOUNDS, S - 1) if LAST > 1 else 0, G
            )
            if counter_ptr is not None:
                grid_barrier(counter_ptr, ((back - begin) * S + 1) * programs)
        else:
            for j in tl.static_range(OWN):
                loaded = ()
                for g in tl.static_range(G):
                    gate = load_block(dpre_ptr, rows * G + g, chunks[j], masks[j], H)
                    loaded = loaded + (gate.to(DTYPE),)
                dgates = dgates + (loaded,)
                dstreams = dstreams + (
                    load_each(dstream_ptrs, rows, chunks[j], masks[j], H, DTYPE),
                )

        for p in tl.static_range(1, S):
            if p >= FIRST and p < LAST:
                own = ()
                if ALONE:
                    for j in tl.static_range(OWN):
                        last = dgates[j][at(BOUNDS, S - p) : at(BOUNDS, S - p + 1)]
                        own = own + (_round(last, dpre_ptr),)
                dsource = _product(
                    own, dpre_ptr, rows, mask_b, weights[S - p : S - p + 1], weight_ptrs[S - p],
                    direction, chunks, blocks, k_blocks, H, G, at(BOUNDS, S - p),
                    at(BOUNDS, S - p + 1), ALONE, KEEP, BLOCK_K, PRECISION, DTYPE,
                )
                for j in tl.static_range(OWN):
                    # Read again: until here they would only have taken registers.
                    pre, state, streams = _arguments(
                        pre_ptr, sequence_ptrs, initial_ptrs, stream_ptrs, rows, before, own_rows,
                        all_rows, chunks[j], masks[j], H, G, at(BOUNDS, S - p), DTYPE,
                    )
                    out = SOURCE_VJP(S - p, pre, state, params[j], streams, t, (dsource[j],))
                    d = _split(out, at(BOUNDS, S - p), N, P)
                    dgates = _replace(dgates, j, add_each(dgates[j], d[0]))
                    dstate = _replace(dstate, j, add_each(dstate[j], d[1]))
                    dparams = _replace(dparams, j, add_each(dparams[j], d[2]))
                    dstreams = _replace(dstreams, j, add_each(dstreams[j], d[3]))

                _store_final(
                    dpre_ptr, dgates, rows, chunks, masks, H, G,
                    at(BOUNDS, S - 1 - p) if p + 1 < LAST else 0, at(BOUNDS, S - p),
                )
                if counter_ptr is not None:
                    grid_barrier(counter_ptr, ((back - begin) * S + p + 1) * programs)

        for j in tl.static_range(OWN):
            for i in tl.static_range(len(dstream_ptrs)):
                store_block(dstream_ptrs[i], rows, chunks[j], masks[j], dstreams[j][i], H)
        if ALONE:
            kept = ()
            for j in tl.static_range(OWN):
                kept = kept + (_round(dgates[j][: at(BOUNDS, 1)], dpre_ptr),)
            dsource_gates = kept

    for j in tl.static_range(OWN):
        for i in tl.static_range(N):
            store_block(dcarry_ptrs[i], own_rows, chunks[j], masks[j], dstate[j][i], H)
        for i in tl.static_range(P):
            store_block(dparam_ptrs[i], own_rows, chunks[j], masks[j], dparams[j][i], H)


@triton.jit
def _arguments(
    pre_ptr, sequence_ptrs, initial_ptrs, stream_ptrs, rows, before, own_rows, all_rows, offs_h,
    mask, H: tl.constexpr, G: tl.constexpr, GATES: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The first gates of step t, the states of t - 1 and the streams of t, of one chunk."""
    pre = ()
    for g in tl.static_range(GATES):
        pre = pre + (load_block(pre_ptr, rows * G + g, offs_h, mask, H).to(DTYPE),)
    # At the first step one of the two masks is empty, at the others the other.
    inside = ((before >= 0) & (before < all_rows))[:, None]
    old = load_each(sequence_ptrs, before, offs_h, mask & inside, H, DTYPE)
    first = load_each(initial_ptrs, own_rows, offs_h, mask & (inside == 0), H, DTYPE)
    return pre, add_each(old, first), load_each(stream_ptrs, rows, offs_h, mask, H, DTYPE)


@triton.jit
def _split(out, GATES: tl.constexpr, N: tl.constexpr, P: tl.constexpr):
    """What a vjp returns, as the gradients of gates, states, params and streams."""
    return out[:GATES], out[GATES : GATES + N], out[GATES + N : GATES + N + P], out[GATES + N + P :]


@triton.jit
def _replace(blocks, index: tl.constexpr, value):
    """The tuple with another element at ``index``."""
    return blocks[:index] + (value,) + blocks[index + 1 :]


@triton.jit
def _round(blocks, ptr):
    """A tuple of blocks in the dtype of a tensor, as they will be read from it."""
    rounded = ()
    for i in tl.static_range(len(blocks)):
        rounded = rounded + (blocks[i].to(ptr.dtype.element_ty),)
    return rounded


@triton.jit
def _store_final(
    dpre_ptr, dgates, rows, chunks, masks, H: tl.constexpr, G: tl.constexpr, FROM: tl.constexpr,
    TO: tl.constexpr,
):  # fmt: skip
    """Gates FROM to TO, which no later phase of this launch changes."""
    for j in tl.static_range(len(chunks)):
        for g in tl.static_range(FROM, TO):
            store_block(dpre_ptr, rows * G + g, chunks[j], masks[j], dgates[j][g], H)


@triton.jit
def _kept_weights(ptr, direction, chunks, blocks, H: tl.constexpr, R: tl.constexpr):
    """Per chunk k: per gate and block j the tile (units of j, BLOCK_H of k)."""
    weights = ()
    for k in tl.static_range(len(chunks)):
        tiles = ()
        for g in tl.static_range(R):
            for j in tl.static_range(len(blocks)):
                first = (direction * R + g) * H
                tile = load_weight(ptr, blocks[j][:, None], chunks[k][None, :], H, first)
                tiles = tiles + (tile,)
        weights = weights + (tiles,)
    return weights


@triton.jit
def _product(
    own, dpre_ptr, rows, mask, weights, weight_ptr, direction, chunks, blocks, k_blocks,
    H: tl.constexpr, G: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr, ALONE: tl.constexpr,
    KEEP: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """dpre · R of gates FROM to TO; per chunk (BLOCK_B, BLOCK_H).

    ALONE, the gates are ``own``; else they are read, from what all programs have stored.
    """
    if ALONE:
        return _kept_product(own, weights[0], PRECISION, DTYPE)
    elif KEEP:
        return _gathered_product(
            dpre_ptr, rows, mask, weights[0], chunks, blocks, H, G, FROM, TO, PRECISION, DTYPE
        )
    else:
        return _streamed_product(
            dpre_ptr, rows, mask, weight_ptr, direction, chunks, k_blocks, H, G, FROM, TO,
            BLOCK_K, PRECISION, DTYPE,
        )


@triton.jit
def _kept_product(dgates, weights, PRECISION: tl.constexpr, DTYPE: tl.constexpr):
    """The product with tiles on the chip."""
    products = ()
    for k in tl.static_range(len(weights)):
        acc = tl.zeros((dgates[0][0].shape[0], weights[k][0].shape[1]), DTYPE)
        for g in tl.static_range(len(dgates[0])):
            for j in tl.static_range(len(dgates)):
                tile = weights[k][g * len(dgates) + j]
                acc = tl.dot(dgates[j][g], tile, acc, input_precision=PRECISION, out_dtype=DTYPE)
        products = products + (acc,)
    return products


@triton.jit
def _gathered_product(
    dpre_ptr, rows, mask_b, weights, chunks, blocks, H: tl.constexpr, G: tl.constexpr,
    FROM: tl.constexpr, TO: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The same, with dpre read block by block, from where all programs have put it."""
    products = ()
    for j in tl.static_range(len(chunks)):
        products = products + (tl.zeros((rows.shape[0], chunks[j].shape[0]), DTYPE),)
    for g in tl.static_range(FROM, TO):
        for k in tl.static_range(len(blocks)):
            mask = mask_b & (blocks[k] < H)[None, :]
            d = load_passed(dpre_ptr, rows * G + g, blocks[k], mask, H)
            grown = ()
            for j in tl.static_range(len(chunks)):
                acc, tile = products[j], weights[j][(g - FROM) * len(blocks) + k]
                acc = tl.dot(d, tile, acc, input_precision=PRECISION, out_dtype=DTYPE)
                grown = grown + (acc,)
            products = grown
    return products


@triton.jit
def _streamed_product(
    dpre_ptr, rows, mask_b, weight_ptr, direction, chunks, k_blocks, H: tl.constexpr,
    G: tl.constexpr, FROM: tl.constexpr, TO: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The same, with the tiles read too."""
    products = ()
    for j in tl.static_range(len(chunks)):
        products = products + (tl.zeros((rows.shape[0], chunks[j].shape[0]), DTYPE),)
    for k in tl.range(0, k_blocks):
        offs_k = k * BLOCK_K + tl.arange(0, BLOCK_K)
        mask = mask_b & (offs_k < H)[None, :]
        for g in tl.static_range(FROM, TO):
            d = load_passed(dpre_ptr, rows * G + g, offs_k, mask, H)
            first = (direction * (TO - FROM) + g - FROM) * H
            grown = ()
            for j in tl.static_range(len(chunks)):
                tile = load_weight(weight_ptr, offs_k[:, None], chunks[j][None, :], H, first)
                acc = products[j]
                acc = tl.dot(d, tile, acc, input_precision=PRECISION, out_dtype=DTYPE)
                grown = grown + (acc,)
            products = grown
    return products


def backward(
    cell: Cell,
    weights: list[Tensor],
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    sequences: list[Tensor],
    pre: Tensor,
    dsequences: list[Tensor | None],
    dfinals: list[Tensor | None],
    reverse: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """What ``sequence.backward`` returns, by the fused kernel."""
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
    if batch > 0:
        initial = [s.to(q.dtype) for s, q in zip(states, sequences, strict=True)]
        tensors = prepare(
            weights, params, streams, initial, sequences, pre, dsequences, dcarry, dparams,
            dstreams, dpre,
        )  # fmt: skip
        constants = describe(cell, launch, directions, hidden, pre.dtype, reverse) | {
            "SOURCE_STATE": source_state,
            "STEP_VJP": emit(cell).step_vjp,
            "SOURCE_VJP": emit(cell).source_vjp,
        }
        launch_all(_backward_kernel, launch, tensors, pre, len(cell.stages), constants)
    # The product of the first step's dpre, which no later step is there to add.
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
