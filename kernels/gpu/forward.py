"""The forward kernel of every cell, and its launcher."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ...cells import Cell
from ...checks import boundary
from ...numerics import accumulator, form, state_dtypes
from ...plan import plan
from .blocks import (
    at,
    band_bounds,
    batch_tile,
    columns,
    gates_of,
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
def _forward_kernel(
    x_ptr,  # (T, B, D, X, H)
    weight_ptrs,  # per stage s (D, R_s, H, H)
    bias_ptr,  # (D, M, H) or None
    param_ptrs,  # each (D, H)
    stream_ptrs,  # each (T, B, D, H)
    carry_ptrs,  # per state (D, B, H): the initial states, replaced by the final ones
    sequence_ptrs,  # per state (T, B, D, H)
    pre_ptr,  # (T, B, D, G, H), one step of it unless SAVE
    source_ptr,  # (S, 2, D, B, H): the sources that programs pass on; None where one owns all
    counter_ptr,  # (batch tiles, D, COUNTER) of programs that wait for each other; else None
    T,
    B,
    first_row,  # of the batch, in this launch
    hidden,  # H at run time, so that a loop over its blocks stays a loop
    begin,  # the steps to take: begin <= t < end
    end,
    D: tl.constexpr,
    H: tl.constexpr,
    X_INDEX: tl.constexpr,  # per gate its place in x or -1
    BIAS_INDEX: tl.constexpr,  # per gate its place in bias or -1
    BANDS: tl.constexpr,  # per stage the bounds of its bands of gates; last, of gates without one
    X: tl.constexpr,
    M: tl.constexpr,
    STEP: tl.constexpr,  # the cell, see emit.Emitted
    SOURCE: tl.constexpr,
    FIRST: tl.constexpr,  # the stages to take; the step follows the last
    LAST: tl.constexpr,
    REVERSE: tl.constexpr,
    SAVE: tl.constexpr,  # keep pre and the sequences of all states, for a backward
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
    S: tl.constexpr = len(BANDS) - 1
    direction = tl.program_id(2)
    walks_back = (direction == 1) != REVERSE
    first_b, offs_b, mask_b = batch_tile(first_row, B, BLOCK_B)
    own_rows = (direction.to(tl.int64) * B + first_b, offs_b)  # of (D, B, H)
    source_size = B.to(tl.int64) * D * H
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
        params = params + (load_units(param_ptrs, direction, offs_h, H, DTYPE),)

    # Loaded before the loop, the tiles stay on the chip for the whole sequence.
    weights = ()  # per stage
    biases = ()
    for s in tl.static_range(S + 1):
        biases = biases + (
            _biases(bias_ptr, direction, firsts, H, M, BIAS_INDEX, at(BANDS, s), BLOCK_H, DTYPE),
        )
        if KEEP and s < S:
            weights = weights + (_kept_weights(
                weight_ptrs[s], direction, firsts, H, at(BANDS, s), BLOCK_H,
                BLOCK_H if ALONE else BLOCK_K,
            ),)

    # num_stages=1: the pipeliner must not move a load of one step above the stores of another.
    # Sources alternate between two places: a program may be one step ahead of one that still reads.
    for t in tl.range(begin, end, num_stages=1):
        time = tl.where(walks_back, T - 1 - t, t).to(tl.int64)
        rows = ((time * B + first_b) * D + direction, offs_b * D)  # of (T, B, D, H)
        pre_rows = rows if SAVE else own_rows
        own = ()  # per stage and chunk: per band (BLOCK_B or 1, gates · BLOCK_H)
        for s in tl.static_range(S + 1):
            if s >= FIRST and (s < LAST or LAST == S):
                own = own + (
                    _own_parts(
                        x_ptr, biases[s], rows, mask_b, firsts, H, X, X_INDEX, at(BANDS, s), BLOCK_H
                    ),
                )
            else:
                own = own + ((),)
        streams = ()
        pre = ()  # per chunk: per gate (BLOCK_B, BLOCK_H)
        for j in tl.static_range(OWN):
            streams = streams + (load_each(stream_ptrs, rows, mask_b, chunks[j], H, DTYPE),)
            earlier = ()
            for g in tl.static_range(at(at(BANDS, FIRST), 0)):  # computed by another launch
                gate = load_block(pre_ptr, part_of(pre_rows, G, g), mask_b, chunks[j], H)
                earlier = earlier + (gate.to(DTYPE),)
            pre = pre + (earlier,)

        if counter_ptr is not None:
            # The loads of x for the step are in flight meanwhile.
            wait(counter_ptr, (t - begin) * S * programs)

        for s in tl.static_range(FIRST, LAST):
            parts = _widened(own[s], BLOCK_B, DTYPE)
            read = source_ptr  # None where a program owns all
            if not ALONE:
                read += (2 * s + t % 2) * source_size
            if ALONE:
                source = ()
                for k in tl.static_range(OWN):
                    v = SOURCE(s, pre[k], state[k], params[k], streams[k], t)
                    v = only_units(v, chunks[k], (k + 1) * BLOCK_H, H)
                    source = source + (v.to(x_ptr.dtype.element_ty),)
                products = _kept_product(source, weights[s], parts, PRECISION)
            elif KEEP:
                products = _gathered_product(
                    read, own_rows, mask_b, weights[s], parts, H, BLOCK_K, PRECISION
                )
            else:
                products = _streamed_product(
                    read, own_rows, mask_b, weight_ptrs[s], direction, firsts, parts, hidden, H,
                    at(BANDS, s), BLOCK_H, BLOCK_K, PRECISION,
                )
            if SAVE or s + 1 < S:
                _store_bands(
                    pre_ptr, pre_rows, mask_b, products, firsts, G, H, at(BANDS, s), BLOCK_H
                )
            grown = ()
            for j in tl.static_range(OWN):
                grown = grown + (pre[j] + _gates(products[j], BLOCK_H),)
            pre = grown
            if not ALONE and s + 1 < S:
                write = source_ptr + (2 * (s + 1) + t % 2) * source_size
                for j in tl.static_range(OWN):
                    v = SOURCE(s + 1, pre[j], state[j], params[j], streams[j], t)
                    store_block(write, own_rows, mask_b, chunks[j], v, H)
                if counter_ptr is not None:
                    arrive(counter_ptr)
                    wait(counter_ptr, ((t - begin) * S + s + 1) * programs)

        if LAST == S:
            rest = _widened(own[S], BLOCK_B, DTYPE)
            if SAVE:
                _store_bands(
                    pre_ptr, pre_rows, mask_b, rest, firsts, G, H, at(BANDS, S), BLOCK_H
                )
            after = ()
            for j in tl.static_range(OWN):
                gates = pre[j] + _gates(rest[j], BLOCK_H)
                new = STEP(gates, state[j], params[j], streams[j], t)
                for i in tl.static_range(len(sequence_ptrs)):
                    if SAVE or i == 0:
                        store_block(sequence_ptrs[i], rows, mask_b, chunks[j], new[i], H)
                after = after + (new,)
            state = after
            if not ALONE:
                write = source_ptr + (t + 1) % 2 * source_size
                for j in tl.static_range(OWN):
                    v = SOURCE(0, (), state[j], params[j], streams[j], t)
                    store_block(write, own_rows, mask_b, chunks[j], v, H)
                if counter_ptr is not None:
                    arrive(counter_ptr)

    if LAST == S:
        zero = unknown_zero(hidden, H)
        first_b, offs_b, mask_b = batch_tile(first_row, B + zero, BLOCK_B)
        own_rows = (direction.to(tl.int64) * (B + zero) + first_b, offs_b)
        for j in tl.static_range(OWN):
            for i in tl.static_range(len(carry_ptrs)):
                store_block(carry_ptrs[i], own_rows, mask_b, chunks[j] + zero, state[j][i], H)


@triton.jit
def _biases(
    bias_ptr, direction, firsts, H: tl.constexpr, M: tl.constexpr, BIAS_INDEX: tl.constexpr,
    BANDS: tl.constexpr, BLOCK_H: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Per chunk: per band the biases of its gates, (1, gates · BLOCK_H), or zeros."""
    biases = ()
    for j in tl.static_range(len(firsts)):
        bands = ()
        for n in tl.static_range(len(BANDS) - 1):
            bias = tl.zeros((1, gates_of(BANDS, n) * BLOCK_H), DTYPE)
            if bias_ptr is not None and at(BIAS_INDEX, at(BANDS, n)) >= 0:
                place = bias_ptr + (direction * M + at(BIAS_INDEX, at(BANDS, n))) * H
                offs, inside = columns(firsts[j], gates_of(BANDS, n), BLOCK_H, H)
                bias = tl.load(place + offs, mask=inside, other=0.0).to(DTYPE)[None, :]
            bands = bands + (bias,)
        biases = biases + (bands,)
    return biases


@triton.jit
def _own_parts(
    x_ptr, biases, rows, mask_b, firsts, H: tl.constexpr, X: tl.constexpr, X_INDEX: tl.constexpr,
    BANDS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """The summands of the products: x, as it is stored, or the bias; per chunk: per band."""
    parts = ()
    for j in tl.static_range(len(firsts)):
        bands = ()
        for n in tl.static_range(len(BANDS) - 1):
            part = biases[j][n]
            if at(X_INDEX, at(BANDS, n)) >= 0:
                gates = part_of(rows, X, at(X_INDEX, at(BANDS, n)))
                part = load_band(x_ptr, gates, mask_b, firsts[j], gates_of(BANDS, n), BLOCK_H, H)
            bands = bands + (part,)
        parts = parts + (bands,)
    return parts


@triton.jit
def _widened(own, BLOCK_B: tl.constexpr, DTYPE: tl.constexpr):
    """The summands of a stage as accumulators of its products: per chunk: per band."""
    parts = ()
    for j in tl.static_range(len(own)):
        bands = ()
        for n in tl.static_range(len(own[j])):
            part = own[j][n].to(DTYPE)
            bands = bands + (tl.broadcast_to(part, (BLOCK_B, part.shape[1])),)
        parts = parts + (bands,)
    return parts


@triton.jit
def _gates(bands, BLOCK_H: tl.constexpr):
    """The gates of all bands of a tuple, each (BLOCK_B, BLOCK_H)."""
    gates = ()
    for n in tl.static_range(len(bands)):
        gates = gates + split_band(bands[n], bands[n].shape[1] // BLOCK_H)
    return gates


@triton.jit
def _store_bands(
    pre_ptr, rows, mask_b, products, firsts, G: tl.constexpr, H: tl.constexpr,
    BANDS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    for j in tl.static_range(len(firsts)):
        for n in tl.static_range(len(BANDS) - 1):
            gates = part_of(rows, G, at(BANDS, n))
            store_band(pre_ptr, gates, mask_b, firsts[j], products[j][n], BLOCK_H, H)


@triton.jit
def _kept_weights(
    ptr, direction, firsts, H: tl.constexpr, BANDS: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Per chunk: per band and block k of the source its tile."""
    weights = ()
    for j in tl.static_range(len(firsts)):
        tiles = ()
        for n in tl.static_range(len(BANDS) - 1):
            for k in tl.static_range((H + BLOCK_K - 1) // BLOCK_K):
                tile = _tile(ptr, direction, firsts[j], k, H, BANDS, n, BLOCK_H, BLOCK_K)
                tiles = tiles + (tile,)
        weights = weights + (tiles,)
    return weights


@triton.jit
def _tile(
    ptr, direction, first_unit, k, H: tl.constexpr, BANDS: tl.constexpr, n: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(BLOCK_K, gates · BLOCK_H) of the weights of a stage: band n, transposed."""
    gates: tl.constexpr = at(BANDS, len(BANDS) - 1) - at(BANDS, 0)  # of the stage
    offs, inside = columns(first_unit, gates_of(BANDS, n), BLOCK_H, H)
    offs_k = k * BLOCK_K + tl.arange(0, BLOCK_K)
    first = (direction * gates + at(BANDS, n) - at(BANDS, 0)) * H
    mask = inside[None, :] & (offs_k < H)[:, None]
    return load_weight(ptr, (first + offs)[None, :], offs_k[:, None], mask, H)


@triton.jit
def _kept_product(source, weights, parts, PRECISION: tl.constexpr):
    """parts + source · Rᵀ with tiles on the chip; per chunk: per band."""
    products = ()
    for j in tl.static_range(len(parts)):
        bands = ()
        for n in tl.static_range(len(parts[j])):
            acc = parts[j][n]
            for k in tl.static_range(len(source)):
                tile = weights[j][n * len(source) + k]
                acc = tl.dot(source[k], tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)
            bands = bands + (acc,)
        products = products + (bands,)
    return products


@triton.jit
def _gathered_product(
    source_ptr, source_rows, mask_b, weights, parts, H: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The same, with the source read block by block, from where all programs have stored it."""
    BLOCKS: tl.constexpr = (H + BLOCK_K - 1) // BLOCK_K
    products = parts
    for k in tl.static_range(BLOCKS):
        offs_k = k * BLOCK_K + tl.arange(0, BLOCK_K)
        v = load_passed(source_ptr, source_rows, mask_b, offs_k, H, H)
        grown = ()
        for j in tl.static_range(len(parts)):
            bands = ()
            for n in tl.static_range(len(parts[j])):
                acc, tile = products[j][n], weights[j][n * BLOCKS + k]
                acc = tl.dot(v, tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)
                bands = bands + (acc,)
            grown = grown + (bands,)
        products = grown
    return products


@triton.jit
def _streamed_product(
    source_ptr, source_rows, mask_b, weight_ptr, direction, firsts, parts, hidden,
    H: tl.constexpr, BANDS: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The same, with the tiles read too."""
    products = parts
    for k in tl.range(0, tl.cdiv(hidden, BLOCK_K)):
        offs_k = k * BLOCK_K + tl.arange(0, BLOCK_K)
        v = load_passed(source_ptr, source_rows, mask_b, offs_k, H, H)
        grown = ()
        for j in tl.static_range(len(firsts)):
            bands = ()
            for n in tl.static_range(len(BANDS) - 1):
                tile = _tile(weight_ptr, direction, firsts[j], k, H, BANDS, n, BLOCK_H, BLOCK_K)
                acc = products[j][n]
                acc = tl.dot(v, tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)
                bands = bands + (acc,)
            grown = grown + (bands,)
        products = grown
    return products


def _bands(cell: Cell) -> tuple[tuple[int, ...], ...]:
    """Per stage the bounds of its bands; last, those of the gates that no stage has.

    The gates of a band are adjacent in x, or else in the bias.
    """
    found = []
    for first, last in [*cell.spans, (cell.spans[-1][1], len(cell.gates))]:
        bounds = [first]
        for g in range(first + 1, last + 1):
            places = [(cell.x_index[i], cell.bias_index[i]) for i in (g - 1, g)] if g < last else ()
            step = places and tuple(b - a for a, b in zip(*places, strict=True))
            if step not in ((1, 0), (0, 1)):
                bounds += band_bounds(bounds[-1], g)[1:]
        found.append(tuple(bounds))
    return tuple(found)


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
    boundary.forward(cell, x, weights, bias, states, params, streams)
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

    source = None
    if launch.strategy != "resident":
        source = x.new_empty(len(cell.stages), 2, directions, batch, hidden)
        (source[0, 0],) = cell.run_source(0, (), states)
    printed = emit(cell, form(x.dtype), wide)
    tensors = prepare(x, weights, bias, params, streams, carry, sequences, pre, source)
    constants = describe(cell, launch, directions, hidden, x.dtype, reverse) | {
        "X_INDEX": cell.x_index,
        "BIAS_INDEX": cell.bias_index,
        "BANDS": cell.made[_bands],
        "X": len(cell.x_gates),
        "M": len(cell.bias_gates),
        "STEP": printed.step,
        "SOURCE": printed.source,
        "SAVE": save,
    }
    launch_all(_forward_kernel, launch, tensors, x, len(cell.stages), constants)
    return sequences, pre, [c.to(x.dtype) for c in carry]
