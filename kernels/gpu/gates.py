"""The gates of the forward kernel: what they are before their products, and how they are stored."""

import triton
import triton.language as tl

from .blocks import (
    at,
    columns,
    gates_of,
    load_band,
    part_of,
    split_band,
    store_bands,
    store_block,
)


@triton.jit
def with_bands(
    pre, bands, pre_ptr, rows, mask_b, firsts, G: tl.constexpr, H: tl.constexpr,
    BANDS: tl.constexpr, STORE: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """``pre``, per chunk: per gate, with those of ``bands``, which are stored too."""
    if STORE:
        store_bands(pre_ptr, rows, mask_b, bands, firsts, G, H, BANDS, BLOCK_H)
    grown = ()
    for j in tl.static_range(len(firsts)):
        gates = ()
        for n in tl.static_range(len(BANDS) - 1):
            gates = gates + split_band(bands[j][n], gates_of(BANDS, n))
        grown = grown + (pre[j] + gates,)
    return grown


@triton.jit
def with_others(
    pre, others, pre_ptr, rows, mask_b, firsts, G: tl.constexpr, H: tl.constexpr,
    BANDS: tl.constexpr, STORE: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """The same with the gates that have no product."""
    if len(BANDS) == 1:
        return pre
    else:
        bands = widened_bands(others, BLOCK_B, DTYPE)
        return with_bands(pre, bands, pre_ptr, rows, mask_b, firsts, G, H, BANDS, STORE, BLOCK_H)


@triton.jit
def with_sums(
    pre, sums, pre_ptr, rows, mask_b, chunks, G: tl.constexpr, H: tl.constexpr,
    STORE: tl.constexpr,
):  # fmt: skip
    """The same with the gates of a stage with a fixed matrix, per gate and chunk."""
    OWN: tl.constexpr = len(chunks)
    FIRST: tl.constexpr = len(pre[0])
    grown = ()
    for j in tl.static_range(OWN):
        gates = ()
        for v in tl.static_range(len(sums) // OWN):
            gate = sums[v * OWN + j]
            if STORE:
                store_block(pre_ptr, part_of(rows, G, FIRST + v), mask_b, chunks[j], gate, H)
            gates = gates + (gate,)
        grown = grown + (pre[j] + gates,)
    return grown


@triton.jit
def load_biases(
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
def own_parts(
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
def widened_bands(own, BLOCK_B: tl.constexpr, DTYPE: tl.constexpr):
    """The summands of a stage as accumulators of its products: per chunk: per band."""
    parts = ()
    for j in tl.static_range(len(own)):
        bands = ()
        for n in tl.static_range(len(own[j])):
            part = own[j][n].to(DTYPE)
            bands = bands + (tl.broadcast_to(part, (BLOCK_B, part.shape[1])),)
        parts = parts + (bands,)
    return parts
