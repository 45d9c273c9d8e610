"""The recurrent products of the forward kernel: weights kept on the chip, or read at each step.

Each adds to what is given, per chunk of units and band of gates. V: the number of vectors of the
source; the weights of a stage are (D, R, H, V, H).
"""

import triton
import triton.language as tl

from .blocks import at, columns, gates_of, load_passed, load_weight


@triton.jit
def kept_weights(
    ptr, direction, firsts, H: tl.constexpr, BANDS: tl.constexpr, V: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Per chunk: per band, vector of the source and block k of it the tile."""
    weights = ()
    for j in tl.static_range(len(firsts)):
        tiles = ()
        for n in tl.static_range(len(BANDS) - 1):
            for v in tl.static_range(V):
                for k in tl.static_range((H + BLOCK_K - 1) // BLOCK_K):
                    tile = _tile(ptr, direction, firsts[j], k, H, BANDS, n, V, v, BLOCK_H, BLOCK_K)
                    tiles = tiles + (tile,)
        weights = weights + (tiles,)
    return weights


@triton.jit
def _tile(
    ptr, direction, first_unit, k, H: tl.constexpr, BANDS: tl.constexpr, n: tl.constexpr,
    V: tl.constexpr, v: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """(BLOCK_K, gates · BLOCK_H) of the weights of a stage: band n and vector v, transposed."""
    gates: tl.constexpr = at(BANDS, len(BANDS) - 1) - at(BANDS, 0)  # of the stage
    offs, inside = columns(first_unit, gates_of(BANDS, n), BLOCK_H, H)
    offs_k = k * BLOCK_K + tl.arange(0, BLOCK_K)
    first = (direction * gates + at(BANDS, n) - at(BANDS, 0)) * H
    mask = inside[None, :] & (offs_k < H)[:, None]
    return load_weight(ptr + v * H, (first + offs)[None, :], offs_k[:, None], mask, V * H)


@triton.jit
def kept_product(source, weights, parts, PRECISION: tl.constexpr):
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
def gathered_product(
    source_ptr, source_rows, mask_b, weights, parts, H: tl.constexpr, V: tl.constexpr,
    v: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same with vector v of the source, read block by block from where programs pass it on."""
    BLOCKS: tl.constexpr = (H + BLOCK_K - 1) // BLOCK_K
    products = parts
    for k in tl.static_range(BLOCKS):
        offs_k = k * BLOCK_K + tl.arange(0, BLOCK_K)
        block = load_passed(source_ptr, source_rows, mask_b, offs_k, H, H)
        grown = ()
        for j in tl.static_range(len(parts)):
            bands = ()
            for n in tl.static_range(len(parts[j])):
                acc, tile = products[j][n], weights[j][(n * V + v) * BLOCKS + k]
                acc = tl.dot(block, tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)
                bands = bands + (acc,)
            grown = grown + (bands,)
        products = grown
    return products


@triton.jit
def streamed_product(
    source_ptr, source_rows, mask_b, weight_ptr, direction, firsts, parts, hidden,
    H: tl.constexpr, BANDS: tl.constexpr, V: tl.constexpr, v: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The same, with the tiles read too."""
    products = parts
    for k in tl.range(0, tl.cdiv(hidden, BLOCK_K)):
        offs_k = k * BLOCK_K + tl.arange(0, BLOCK_K)
        block = load_passed(source_ptr, source_rows, mask_b, offs_k, H, H)
        grown = ()
        for j in tl.static_range(len(firsts)):
            bands = ()
            for n in tl.static_range(len(BANDS) - 1):
                tile = _tile(
                    weight_ptr, direction, firsts[j], k, H, BANDS, n, V, v, BLOCK_H, BLOCK_K
                )
                acc = products[j][n]
                acc = tl.dot(block, tile, acc, input_precision=PRECISION, out_dtype=acc.dtype)
                bands = bands + (acc,)
            grown = grown + (bands,)
        products = grown
    return products
