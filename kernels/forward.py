"""The forward kernel of every cell, and its launcher."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ..cells import Cell
from ..plan import plan
from ..sequence import accumulator, state_dtypes
from .blocks import at, load_block, load_each, load_units, load_weight, store_block
from .emit import emit
from .launch import describe, prepare, start


@triton.jit(do_not_specialize=["T", "B", "k_blocks", "begin", "end"])
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
    T,
    B,
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
    FIRST_STAGE: tl.constexpr,  # the stages to take; the step follows the last
    LAST_STAGE: tl.constexpr,
    REVERSE: tl.constexpr,
    SAVE: tl.constexpr,  # for a backward: pre, and the sequences of all states
    RESIDENT: tl.constexpr,
    OWN: tl.constexpr,  # chunks that a program owns
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
    DTYPE: tl.constexpr,  # of the arithmetic
):
    G: tl.constexpr = len(X_INDEX)
    S: tl.constexpr = len(BOUNDS) - 1
    direction = tl.program_id(2)
    walks_back = (direction == 1) != REVERSE
    offs_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    mask_b = (offs_b < B)[:, None]
    own_rows = direction.to(tl.int64) * B + offs_b  # of (D, B, H)
    source_size = B.to(tl.int64) * D * H

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
    if RESIDENT:
        for s in tl.static_range(S):
            weights = weights + (_resident_weights(
                weight_ptrs[s], direction, chunks, H, at(BOUNDS, s + 1) - at(BOUNDS, s), OWN
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
            for g in tl.static_range(at(BOUNDS, FIRST_STAGE)):  # by another launch
                gate = load_block(pre_ptr, pre_rows * G + g, chunks[j], masks[j], H)
                earlier = earlier + (gate.to(DTYPE),)
            pre = pre + (earlier,)

        for s in tl.static_range(FIRST_STAGE, LAST_STAGE):
            parts = ()
            for j in tl.static_range(OWN):
                parts = parts + (_own_parts(
                    x_ptr, bias_ptr, rows, direction, chunks[j], masks[j], H, X, M,
                    X_INDEX, BIAS_INDEX, at(BOUNDS, s), at(BOUNDS, s + 1), DTYPE,
                ),)
            if RESIDENT:
                source = ()
                for k in tl.static_range(OWN):
                    v = SOURCE(s, pre[k], state[k], params[k], streams[k], t)
                    source = source + (v.to(x_ptr.dtype.element_ty),)
                products = _resident_product(source, weights[s], parts, PRECISION)
            else:
                read = source_ptr + (2 * s + t % 2) * source_size
                products = _streamed_product(
                    read, own_rows, mask_b, weight_ptrs[s], direction, chunks[0], parts[0],
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
            if not RESIDENT and s + 1 < S:
                v = SOURCE(s + 1, pre[0], state[0], params[0], streams[0], t)
                write = source_ptr + (2 * (s + 1) + t % 2) * source_size
                store_block(write, own_rows, chunks[0], masks[0], v, H)

        if LAST_STAGE == S:
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
            if not RESIDENT:
                v = SOURCE(0, (), state[0], params[0], streams[0], t)
                write = source_ptr + (t + 1) % 2 * source_size
                store_block(write, own_rows, chunks[0], masks[0], v, H)

    if LAST_STAGE == S:
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
def _resident_weights(ptr, direction, chunks, H: tl.constexpr, R: tl.constexpr, OWN: tl.constexpr):
    """Per chunk: per gate and chunk k the tile (BLOCK_H of k, BLOCK_H), transposed."""
    weights = ()
    for j in tl.static_range(OWN):
        tiles = ()
        for g in tl.static_range(R):
            for k in tl.static_range(OWN):
                first = (direction * R + g) * H
                tile = load_weight(ptr, chunks[j][None, :], chunks[k][:, None], H, first)
                tiles = tiles + (tile,)
        weights = weights + (tiles,)
    return weights


@triton.jit
def _resident_product(source, weights, parts, PRECISION: tl.constexpr):
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
def _streamed_product(
    source_ptr, source_rows, mask_b, weight_ptr, direction, offs_h, parts, k_blocks,
    H: tl.constexpr, R: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same for one chunk, with source and tiles read block by block."""
    gates = parts
    for k in tl.range(0, k_blocks):
        offs_k = k * BLOCK_K + tl.arange(0, BLOCK_K)
        v = load_block(source_ptr, source_rows, offs_k, mask_b & (offs_k < H)[None, :], H)
        grown = ()
        for g in tl.static_range(R):
            first = (direction * R + g) * H
            tile = load_weight(weight_ptr, offs_h[None, :], offs_k[:, None], H, first)
            acc = tl.dot(v, tile, gates[g], input_precision=PRECISION, out_dtype=gates[g].dtype)
            grown = grown + (acc,)
        gates = grown
    return (gates,)


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
    launch = plan(cell, steps, batch, hidden, x.dtype, x.device).forward
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

    resident = launch.strategy == "resident"
    stages = len(cell.stages)
    source = None
    if not resident:
        source = x.new_empty(stages, 2, directions, batch, hidden)
        (source[0, 0],) = cell.run_source(0, (), states)
    # One launch for the sequence where a program owns all units; otherwise the programs wait for
    # each other's sources, and the end of a launch is where they do.
    launches = (
        [(0, steps, 0, stages)]
        if resident
        else [(t, t + 1, s, s + 1) for t in range(steps) for s in range(stages)]
    )
    grid, constants = describe(cell, launch, batch, directions, hidden, x.dtype, reverse)
    tensors = prepare(x, weights, bias, params, streams, carry, sequences, pre, source)
    constants |= {
        "X": len(cell.x_gates),
        "M": len(cell.bias_gates),
        "STEP": emit(cell).step,
        "SOURCE": emit(cell).source,
        "SAVE": save,
    }
    k_blocks = triton.cdiv(hidden, launch.block_k)
    for begin, end, first_stage, last_stage in launches:
        constants |= {"FIRST_STAGE": first_stage, "LAST_STAGE": last_stage}
        arguments = [*tensors, steps, batch, k_blocks, begin, end]
        start(_forward_kernel, grid, arguments, constants)
    return sequences, pre, [c.to(x.dtype) for c in carry]
