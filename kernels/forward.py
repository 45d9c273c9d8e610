"""The forward kernel of every cell, and its launcher."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..cells import Cell
from ..plan import plan
from ..sequence import accumulator, state_dtypes
from .blocks import (
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
def _forward_kernel(
    x_ptr,  # (T, B, D, X, H)
    weight_ptrs,  # per stage s (D, R_s, H, H)
    bias_ptr,  # (D, M, H) or None
    param_ptrs,  # each (D, H)
    stream_ptrs,  # each (T, B, D, H)
    carry_ptrs,  # per state (D, B, H): before the first step; the kernel leaves the last there
    sequence_ptrs,  # per state (T, B, D, H)
    pre_ptr,  # (T, B, D, G, H), one step of it unless SAVE
    source_ptr,  # (S, 2, D, B, H): the sources that programs pass on; None where one owns all
    counter_ptr,  # (batch tiles, D, COUNTER) of programs that wait for each other; else None
    T,
    B,
    first_row,  # of the batch, in this launch
    k_blocks,  # of BLOCK_K in H; at run time, so that the loop over them stays a loop
    begin,  # the steps to take: begin <= t < end
    end,
    D: tl.constexpr,
    H: tl.constexpr,
    X_INDEX: tl.constexpr,  # per gate its place in x or -1
    BIAS_INDEX: tl.constexpr,  # per gate its place in bias or -1
    BOUNDS: tl.constexpr,  # stage s has the gates BOUNDS[s] to BOUNDS[s + 1]
    X: tl.constexpr,
    M: tl.constexpr,
    STEP: tl.constexpr,  # the cell, see emit.Emitted
    SOURCE: tl.constexpr,
    FIRST: tl.constexpr,  # the stages to take; the step follows the last
    LAST: tl.constexpr,
    REVERSE: tl.constexpr,
    SAVE: tl.constexpr,  # for a backward: pre, and the sequences of all states
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
    direction = tl.program_id(2)
    walks_back = (direction == 1) != REVERSE
    offs_b = first_row + tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = (offs_b < B)[:, None]
    own_rows = direction.to(tl.int64) * B + offs_b  # of (D, B, H)
    source_size = B.to(tl.int64) * D * H
    if counter_ptr is not None:
        counter_ptr += ((first_row // BLOCK_B + tl.program_id(0)) * D + direction) * COUNTER
        programs = tl.num_programs(1).to(tl.int64)

    chunks = ()
    masks = ()
    state = ()  # per chunk: per state (BLOCK_B, BLOCK_H)
    params = ()
    for j in tl.static_range(OWN):
        offs_h = (tl.program_id(1) * OWN + j) * BLOCK_H + tl.arange(0, BLOCK_H)
        mask_bh = mask_b & (offs_h < H)[None, :]
        chunks = chunks + (offs_h,)
        masks = masks + (mask_bh,)
        state = state + (load_each(carry_ptrs, own_rows, offs_h, mask_bh, H, DTYPE),)
        params = params + (load_units(param_ptrs, direction, offs_h, H, DTYPE),)

    # Loaded before the loop, the tiles stay on the chip for the whole sequence.
    weights = ()
    blocks = ()
    if KEEP:
        blocks = weight_blocks(chunks, ALONE, H, BLOCK_K)
        for s in tl.static_range(S):
            weights = weights + (_kept_weights(
                weight_ptrs[s], direction, chunks, blocks, H, at(BOUNDS, s + 1) - at(BOUNDS, s)
            ),)

    # num_stages=1: the pipeliner must not move a load of one step above the stores of another.
    # Sources alternate between two places: a program may be one step ahead of another's reading.
    for t in tl.range(begin, end, num_stages=1):
        time = tl.where(walks_back, T - 1 - t, t).to(tl.int64)
        rows = (time * B + offs_b) * D + direction  # of (T, B, D, H)
        pre_rows = rows if SAVE else own_rows
        streams = ()
        pre = ()  # per chunk: per gate (BLOCK_B, BLOCK_H)
        for j in tl.static_range(OWN):
            streams = streams + (load_each(stream_ptrs, rows, chunks[j], masks[j], H, DTYPE),)
            earlier = ()
            for g in tl.static_range(at(BOUNDS, FIRST)):  # by another launch
                gate = load_block(pre_ptr, pre_rows * G + g, chunks[j], masks[j], H)
                earlier = earlier + (gate.to(DTYPE),)
            pre = pre + (earlier,)

        for s in tl.static_range(FIRST, LAST):
            parts = ()
            for j in tl.static_range(OWN):
                parts = parts + (_own_parts(
                    x_ptr, bias_ptr, rows, direction, chunks[j], masks[j], H, X, M,
                    X_INDEX, BIAS_INDEX, at(BOUNDS, s), at(BOUNDS, s + 1), DTYPE,
                ),)
            read = source_ptr  # None where a program owns all
            if not ALONE:
                read += (2 * s + t % 2) * source_size
            if ALONE:
                source = ()
                for k in tl.static_range(OWN):
                    v = SOURCE(s, pre[k], state[k], params[k], streams[k], t)
                    source = source + (v.to(x_ptr.dtype.element_ty),)
                products = _kept_product(source, weights[s], parts, PRECISION)
            elif KEEP:
                products = _gathered_product(
                    read, own_rows, mask_b, weights[s], blocks, parts, H, PRECISION
                )
            else:
                products = _streamed_product(
                    read, own_rows, mask_b, weight_ptrs[s], direction, chunks, parts,
                    k_blocks, H, at(BOUNDS, s + 1) - at(BOUNDS, s), BLOCK_K, PRECISION,
                )
            grown = ()
            for j in tl.static_range(OWN):
                for g in tl.static_range(at(BOUNDS, s), at(BOUNDS, s + 1)):
                    if SAVE or s + 1 < S:
                        store_block(
                            pre_ptr, pre_rows * G + g, chunks[j], masks[j],
                            products[j][g - at(BOUNDS, s)], H,
                        )
                grown = grown + (pre[j] + products[j],)
            pre = grown
            if not ALONE and s + 1 < S:
                write = source_ptr + (2 * (s + 1) + t % 2) * source_size
                for j in tl.static_range(OWN):
                    v = SOURCE(s + 1, pre[j], state[j], params[j], streams[j], t)
                    store_block(write, own_rows, chunks[j], masks[j], v, H)
                if counter_ptr is not None:
                    grid_barrier(counter_ptr, ((t - begin) * S + s + 1) * programs)

        if LAST == S:
            after = ()
            for j in tl.static_range(OWN):
                alone = _own_parts(
                    x_ptr, bias_ptr, rows, direction, chunks[j], masks[j], H, X, M,
                    X_INDEX, BIAS_INDEX, at(BOUNDS, S), G, DTYPE,
                )
                if SAVE:
                    for g in tl.static_range(at(BOUNDS, S), G):
                        store_block(
                            pre_ptr, pre_rows * G + g, chunks[j], masks[j],
                            alone[g - at(BOUNDS, S)], H,
                        )
                new = STEP(pre[j] + alone, state[j], params[j], streams[j], t)
                for i in tl.static_range(len(sequence_ptrs)):
                    if SAVE or i == 0:
                        store_block(sequence_ptrs[i], rows, chunks[j], masks[j], new[i], H)
                after = after + (new,)
            state = after
            if not ALONE:
                write = source_ptr + (t + 1) % 2 * source_size
                for j in tl.static_range(OWN):
                    v = SOURCE(0, (), state[j], params[j], streams[j], t)
                    store_block(write, own_rows, chunks[j], masks[j], v, H)
                if counter_ptr is not None:
                    grid_barrier(counter_ptr, ((t - begin) * S + S) * programs)

    if LAST == S:
        for j in tl.static_range(OWN):
            for i in tl.static_range(len(carry_ptrs)):
                store_block(carry_ptrs[i], own_rows, chunks[j], masks[j], state[j][i], H)


@triton.jit
def _own_parts(
    x_ptr, bias_ptr, rows, direction, offs_h, mask, H: tl.constexpr, X: tl.constexpr,
    M: tl.constexpr, X_INDEX: tl.constexpr, BIAS_INDEX: tl.constexpr, FIRST: tl.constexpr,
    LAST: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """What gates FIRST to LAST have besides a product: x, the bias, or nothing."""
    parts = ()
    for g in tl.static_range(FIRST, LAST):
        if X_INDEX[g] >= 0:
            part = load_block(x_ptr, rows * X + X_INDEX[g], offs_h, mask, H).to(DTYPE)
        elif bias_ptr is not None:
            place = bias_ptr + (direction * M + BIAS_INDEX[g]) * H
            part = tl.load(place + offs_h, mask=offs_h < H, other=0.0).to(DTYPE)
            part = tl.broadcast_to(part[None, :], mask.shape)
        else:
            part = tl.zeros(mask.shape, DTYPE)
        parts = parts + (part,)
    return parts


@triton.jit
def _kept_weights(ptr, direction, chunks, blocks, H: tl.constexpr, R: tl.constexpr):
    """Per chunk: per gate and block k the tile (units of k, BLOCK_H), transposed."""
    weights = ()
    for j in tl.static_range(len(chunks)):
        tiles = ()
        for g in tl.static_range(R):
            for k in tl.static_range(len(blocks)):
                first = (direction * R + g) * H
                tile = load_weight(ptr, chunks[j][None, :], blocks[k][:, None], H, first)
                tiles = tiles + (tile,)
        weights = weights + (tiles,)
    return weights


@triton.jit
def _kept_product(source, weights, parts, PRECISION: tl.constexpr):
    """parts + source · Rᵀ with tiles on the chip; per chunk: per gate (BLOCK_B, BLOCK_H)."""
    products = ()
    for j in tl.static_range(len(parts)):
        gates = ()
        for g in tl.static_range(len(parts[j])):
            acc = parts[j][g]
            for k in tl.static_range(len(source)):
                tile = weights[j][g * len(source) + k]
                acc = tl.dot(source[k], tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)
            gates = gates + (acc,)
        products = products + (gates,)
    return products


@triton.jit
def _gathered_product(
    source_ptr, source_rows, mask_b, weights, blocks, parts, H: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The same, with the source read block by block, from where all programs have put it."""
    products = parts
    for k in tl.static_range(len(blocks)):
        mask = mask_b & (blocks[k] < H)[None, :]
        v = load_passed(source_ptr, source_rows, blocks[k], mask, H)
        grown = ()
        for j in tl.static_range(len(parts)):
            gates = ()
            for g in tl.static_range(len(parts[j])):
                acc, tile = products[j][g], weights[j][g * len(blocks) + k]
                acc = tl.dot(v, tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)
                gates = gates + (acc,)
            grown = grown + (gates,)
        products = grown
    return products


@triton.jit
def _streamed_product(
    source_ptr, source_rows, mask_b, weight_ptr, direction, chunks, parts, k_blocks,
    H: tl.constexpr, R: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same, with the tiles read too."""
    products = parts
    for k in tl.range(0, k_blocks):
        offs_k = k * BLOCK_K + tl.arange(0, BLOCK_K)
        mask = mask_b & (offs_k < H)[None, :]
        v = load_passed(source_ptr, source_rows, offs_k, mask, H)
        grown = ()
        for j in tl.static_range(len(chunks)):
            gates = ()
            for g in tl.static_range(R):
                first = (direction * R + g) * H
                tile = load_weight(weight_ptr, chunks[j][None, :], offs_k[:, None], H, first)
                acc = products[j][g]
                acc = tl.dot(v, tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)
                gates = gates + (acc,)
            grown = grown + (gates,)
        products = grown
    return products


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
    """What ``sequence.forward`` returns, by the fused kernel.

    Args:
        save: keep the gates and the sequences of all states; otherwise only the first sequence and
            the finals mean anything.
    """
    steps, batch, directions, _, hidden = x.shape
    launch = plan(cell, steps, batch, hidden, x.dtype, x.device, directions).forward
    wide = accumulator(x.dtype)
    shape = (steps, batch, directions, hidden)
    sequences = [
        x.new_empty(shape if save or i == 0 else (0,), dtype=dtype)
        for i, dtype in enumerate(state_dtypes(cell, x.dtype))
    ]
    kept = steps if save else 1
    pre = x.new_empty(kept, batch, directions, len(cell.gates), hidden)
    carry = [state.to(wide, copy=True).contiguous() for state in states]
    if batch == 0:
        return sequences, pre, [c.to(x.dtype) for c in carry]

    source = None
    if launch.strategy != "resident":
        source = x.new_empty(len(cell.stages), 2, directions, batch, hidden)
        (source[0, 0],) = cell.run_source(0, (), states)
    tensors = prepare(x, weights, bias, params, streams, carry, sequences, pre, source)
    constants = describe(cell, launch, directions, hidden, x.dtype, reverse) | {
        "X": len(cell.x_gates),
        "M": len(cell.bias_gates),
        "STEP": emit(cell).step,
        "SOURCE": emit(cell).source,
        "SAVE": save,
    }
    launch_all(_forward_kernel, launch, tensors, x, len(cell.stages), constants)
    return sequences, pre, [c.to(x.dtype) for c in carry]
