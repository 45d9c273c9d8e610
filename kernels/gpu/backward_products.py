"""The recurrent products of the backward kernel: weights kept on the chip, or read at each step.

V: the number of vectors of the source of a stage, whose weights are (D, R, H, V, H).
"""

import triton
import triton.language as tl

from .blocks import (
    at,
    band_bounds,
    columns,
    first_gate,
    gate_count,
    gates_of,
    load_passed,
    load_weight,
    part_of,
)
from .sums import (
    by_vector,
    is_fixed,
    is_total,
    own_sums,
    passed_running_sums,
    passed_total,
    per_chunk,
    sums_of_chunks,
)


@triton.jit
def kept_weights(
    ptr, direction, firsts, chunks, H: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
    ALONE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Per vector and chunk k: the tiles (rows of R gates, units of k) that a product takes in turn.

    The rows of a tile are a band of a chunk if the program owns all units, else rows of (R · H).
    """
    BANDS: tl.constexpr = band_bounds(0, R)
    weights = ()
    for v in tl.static_range(V):
        for k in tl.static_range(len(chunks)):
            tiles = ()
            if ALONE:
                for j in tl.static_range(len(firsts)):
                    for n in tl.static_range(len(BANDS) - 1):
                        offs, exist = columns(firsts[j], gates_of(BANDS, n), BLOCK_H, H)
                        offs += at(BANDS, n) * H
                        tiles = tiles + (_tile(ptr, direction, offs, exist, chunks[k], H, R, V, v),)
            else:
                for n in tl.static_range((R * H + BLOCK_K - 1) // BLOCK_K):
                    offs = n * BLOCK_K + tl.arange(0, BLOCK_K)
                    exist = offs < R * H
                    tiles = tiles + (_tile(ptr, direction, offs, exist, chunks[k], H, R, V, v),)
            weights = weights + (tiles,)
    return weights


@triton.jit
def _tile(
    ptr, direction, rows, exist, units, H: tl.constexpr, R: tl.constexpr, V: tl.constexpr,
    v: tl.constexpr,
):  # fmt: skip
    mask = exist[:, None] & (units < H)[None, :]
    rows = direction * R * H + rows
    return load_weight(ptr + v * H, rows[:, None], units[None, :], mask, V * H)


@triton.jit
def product(
    own, dpre_ptr, rows, mask_b, weights, weight_ptrs, direction, chunks, hidden, H: tl.constexpr,
    G: tl.constexpr, SPANS: tl.constexpr, VECTORS: tl.constexpr, MATRICES: tl.constexpr,
    STAGE: tl.constexpr, ALONE: tl.constexpr, KEEP: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, DTYPE: tl.constexpr, dtotal_ptr, own_rows, total_size, parity,
    TOTALS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """dpre · R of the gates of a stage; per vector of its source and chunk (BLOCK_B, BLOCK_H).

    With ALONE the gates are ``own``. Otherwise they are read from what all programs have stored: a
    row of the gates' contiguous values, as the weights are.
    """
    FROM: tl.constexpr = first_gate(SPANS, STAGE)
    R: tl.constexpr = gate_count(SPANS, STAGE)
    gates = part_of(rows, G, FROM)
    if is_fixed(MATRICES, STAGE):
        matrix: tl.constexpr = at(MATRICES, STAGE)
        if not ALONE:
            sums = ()
            for v in tl.static_range(R):
                if is_total(MATRICES, STAGE):
                    place = dtotal_ptr + (2 * at(TOTALS, FROM + v) + parity) * total_size
                    total = passed_total(place, own_rows, mask_b, matrix, PROGRAMS, H)
                    sums = sums + per_chunk(total, len(chunks))
                else:
                    gate = (gates[0] + v, gates[1])
                    sums = sums + passed_running_sums(
                        dpre_ptr, gate, mask_b, chunks, hidden, True, H, BLOCK_K, DTYPE
                    )
            return sums
        elif is_total(MATRICES, STAGE):
            return sums_of_chunks(own, matrix, H)
        else:
            return own_sums(by_vector(own, band_bounds(0, R), DTYPE), len(chunks), matrix, True, H)
    else:
        tiles = ()
        if KEEP:
            tiles = weights[STAGE]
        return _with_tiles(
            own,
            dpre_ptr,
            gates,
            mask_b,
            tiles,
            weight_ptrs[at(MATRICES, STAGE)],
            direction,
            chunks,
            hidden,
            H,
            R,
            at(VECTORS, STAGE),
            ALONE,
            KEEP,
            BLOCK_K,
            PRECISION,
            DTYPE,
        )


@triton.jit
def _with_tiles(
    own, dpre_ptr, rows, mask_b, weights, weight_ptr, direction, chunks, hidden, H: tl.constexpr,
    R: tl.constexpr, V: tl.constexpr, ALONE: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The product with one of the weights, of R gates that stand side by side in ``rows``."""
    WIDTH: tl.constexpr = R * H
    products = ()
    for i in tl.static_range(V * len(chunks)):
        zeros = tl.zeros((mask_b.shape[0], chunks[i % len(chunks)].shape[0]), DTYPE)
        products = products + (zeros,)
    if ALONE:
        for j in tl.static_range(len(own)):
            for n in tl.static_range(len(own[j])):
                products = _add_product(
                    products, own[j][n], weights, j * len(own[j]) + n, PRECISION
                )
    elif KEEP:
        for n in tl.static_range((WIDTH + BLOCK_K - 1) // BLOCK_K):
            offs = n * BLOCK_K + tl.arange(0, BLOCK_K)
            d = load_passed(dpre_ptr, rows, mask_b, offs, WIDTH, H)
            products = _add_product(products, d, weights, n, PRECISION)
    else:
        for n in tl.range(0, tl.cdiv(hidden * R, BLOCK_K)):
            offs = n * BLOCK_K + tl.arange(0, BLOCK_K)
            d = load_passed(dpre_ptr, rows, mask_b, offs, WIDTH, H)
            tiles = ()
            for v in tl.static_range(V):
                for k in tl.static_range(len(chunks)):
                    tile = _tile(weight_ptr, direction, offs, offs < WIDTH, chunks[k], H, R, V, v)
                    tiles = tiles + ((tile,),)
            products = _add_product(products, d, tiles, 0, PRECISION)
    return products


@triton.jit
def _add_product(products, d, weights, n: tl.constexpr, PRECISION: tl.constexpr):
    """Add d times the n-th tile of every vector and chunk."""
    total = ()
    for k in tl.static_range(len(products)):
        acc = products[k]
        acc = tl.dot(d, weights[k][n], acc, input_precision=PRECISION, out_dtype=acc.dtype)
        total = total + (acc,)
    return total
