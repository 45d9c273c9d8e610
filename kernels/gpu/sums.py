"""Products with the fixed matrices, "mean", "sum" and "cumsum": sums over the units.

The gradient of a product is one with the transposed matrix: those of "mean" and "sum" are
themselves; that of "cumsum", with REVERSE, sums a unit and those after it.
"""

import triton
import triton.language as tl

from .blocks import gates_of, load_passed, split_band


@triton.constexpr_function
def is_fixed(matrices, s):
    """Whether stage s has a fixed matrix."""
    return isinstance(matrices[s], str)


@triton.constexpr_function
def _enters(matrix, reverse, k, j):
    """Whether all of chunk k enters the sums of chunk j of the same program."""
    return matrix != "cumsum" or (k > j if reverse else k < j)


@triton.jit
def own_sums(
    vectors, OWN: tl.constexpr, MATRIX: tl.constexpr, REVERSE: tl.constexpr, H: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """The sums of a program that owns all units; vectors and results per vector and chunk."""
    sums = ()
    for v in tl.static_range(len(vectors) // OWN):
        totals = ()
        for k in tl.static_range(OWN):
            totals = totals + (tl.sum(vectors[v * OWN + k].to(DTYPE), 1),)
        for j in tl.static_range(OWN):
            total = tl.zeros_like(totals[0])
            for k in tl.static_range(OWN):
                if _enters(MATRIX, REVERSE, k, j):
                    total += totals[k]
            block = vectors[v * OWN + j].to(DTYPE)
            sums = sums + (_of_chunk(block, total, MATRIX, REVERSE, H),)
    return sums


@triton.jit
def passed_sums(
    ptr, rows, mask_b, chunks, hidden, MATRIX: tl.constexpr, REVERSE: tl.constexpr,
    H: tl.constexpr, BLOCK_K: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The same of one vector (rows, H), read block by block from what all programs have stored."""
    sums = ()
    for j in tl.static_range(len(chunks)):
        block = load_passed(ptr, rows, mask_b, chunks[j], H, H).to(DTYPE)
        total = tl.zeros((block.shape[0],), DTYPE)
        if MATRIX != "cumsum" and j > 0:
            sums = sums + (sums[0],)
        else:
            first = tl.min(chunks[j], 0)
            for k in tl.range(0, tl.cdiv(hidden, BLOCK_K)):
                offs = k * BLOCK_K + tl.arange(0, BLOCK_K)
                part = load_passed(ptr, rows, mask_b, offs, H, H).to(DTYPE)
                if MATRIX == "cumsum":
                    others = offs >= first + block.shape[1] if REVERSE else offs < first
                    part = tl.where(others[None, :], part, 0.0)
                total += tl.sum(part, 1)
            sums = sums + (_of_chunk(block, total, MATRIX, REVERSE, H),)
    return sums


@triton.jit
def _of_chunk(block, total, MATRIX: tl.constexpr, REVERSE: tl.constexpr, H: tl.constexpr):
    """The sums of a chunk, from its values (rows, units) and the total of the other units."""
    if MATRIX == "cumsum":
        return tl.cumsum(block, 1, reverse=REVERSE) + total[:, None]
    elif MATRIX == "mean":
        return tl.broadcast_to((total / H)[:, None], block.shape)
    else:
        return tl.broadcast_to(total[:, None], block.shape)


@triton.jit
def add_sums(parts, sums, FIRST: tl.constexpr):
    """``parts``, per chunk: per band, with ``sums``, per vector and chunk, from vector FIRST on.

    The bands of a stage with a fixed matrix are its gates.
    """
    OWN: tl.constexpr = len(parts)
    total = ()
    for j in tl.static_range(OWN):
        bands = parts[j]
        for v in tl.static_range(len(sums) // OWN):
            band = bands[FIRST + v] + sums[v * OWN + j]
            bands = bands[: FIRST + v] + (band,) + bands[FIRST + v + 1 :]
        total = total + (bands,)
    return total


@triton.jit
def by_vector(own, BANDS: tl.constexpr):
    """The gates of a stage, per chunk: per band, as one tuple per gate and chunk."""
    vectors = ()
    for n in tl.static_range(len(BANDS) - 1):
        for i in tl.static_range(gates_of(BANDS, n)):
            for j in tl.static_range(len(own)):
                vectors = vectors + (split_band(own[j][n], gates_of(BANDS, n))[i],)
    return vectors
