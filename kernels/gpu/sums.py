"""Products with the fixed matrices, "mean", "sum" and "cumsum": sums over the units.

With the "identity" the product is the source itself, and every program has its units of it.

The sum or mean of all units is one number per row, (BLOCK_B, 1), which registers hold as such; only
the tensors of gates have it once per unit. Where a row has several programs, each passes on the
sum of its own units, in the dtype of the arithmetic: see ``pass_total``.

The gradient of a product is one with the transposed matrix: those of "mean" and "sum" are
themselves; that of "cumsum", with REVERSE, sums a unit and those after it.
"""

import triton
import triton.language as tl

from .blocks import gates_of, load_passed, split_band
from .interpreter import compiled


@triton.constexpr_function
def is_fixed(matrices, s):
    """Whether stage s has a fixed matrix."""
    return isinstance(matrices[s], str)


@triton.constexpr_function
def is_total(matrices, s):
    """Whether the gates of stage s are sums of all units, and so one number per row."""
    return matrices[s] in ("mean", "sum")


@triton.constexpr_function
def is_local(matrices, s):
    """Whether the matrix of stage s is the identity: a program then needs nothing of another."""
    return matrices[s] == "identity"


@triton.constexpr_function
def _enters(reverse, k, j):
    """Whether all of chunk k enters the running sums of chunk j of the same program."""
    return k > j if reverse else k < j


@triton.jit
def own_sums(
    vectors, OWN: tl.constexpr, MATRIX: tl.constexpr, REVERSE: tl.constexpr, H: tl.constexpr,
):  # fmt: skip
    """The sums of a program that owns all units; vectors and results per vector and chunk."""
    sums = ()
    if MATRIX == "cumsum":
        for v in tl.static_range(len(vectors) // OWN):
            for j in tl.static_range(OWN):
                block = vectors[v * OWN + j]
                total = tl.zeros((block.shape[0], 1), block.dtype)
                for k in tl.static_range(OWN):
                    if _enters(REVERSE, k, j):
                        total += tl.sum(vectors[v * OWN + k], 1)[:, None]
                sums = sums + (tl.cumsum(block, 1, reverse=REVERSE) + total,)
    else:
        totals = own_totals(vectors, OWN)
        for v in tl.static_range(len(totals)):
            sums = sums + per_chunk(_scaled(totals[v], MATRIX, H), OWN)
    return sums


@triton.jit
def sums_of_chunks(gates, MATRIX: tl.constexpr, H: tl.constexpr):
    """The same of the gates of each chunk, which are sums of the chunk's units, (BLOCK_B, 1)."""
    sums = ()
    for v in tl.static_range(len(gates[0])):
        total = gates[0][v]
        for j in tl.static_range(1, len(gates)):
            total += gates[j][v]
        sums = sums + per_chunk(_scaled(total, MATRIX, H), len(gates))
    return sums


@triton.jit
def per_chunk(value, OWN: tl.constexpr):
    """A tuple of one value that all chunks have in common."""
    values = ()
    for _ in tl.static_range(OWN):
        values = values + (value,)
    return values


@triton.jit
def row_sums(blocks):
    """The sum of each block of a tuple over its units, (BLOCK_B, 1).

    Up to four in one reduction: the warps of a program then meet once for all.
    """
    sums = ()
    COUNT: tl.constexpr = len(blocks)
    if not compiled():  # the interpreter takes minutes to reduce several blocks at once
        for i in tl.static_range(COUNT):
            sums = sums + (tl.sum(blocks[i], 1)[:, None],)
        return sums
    else:
        for i in tl.static_range(0, COUNT, 4):
            if i + 3 < COUNT:
                a, b, c, d = tl.reduce(blocks[i : i + 4], 1, _add_four)
                sums = sums + (a[:, None], b[:, None], c[:, None], d[:, None])
        if COUNT % 4 >= 2:
            a, b = tl.reduce(blocks[COUNT // 4 * 4 : COUNT // 4 * 4 + 2], 1, _add_two)
            sums = sums + (a[:, None], b[:, None])
        if COUNT % 2 == 1:
            sums = sums + (tl.sum(blocks[COUNT - 1], 1)[:, None],)
        return sums


@triton.jit
def _add_two(a, b, e, f):
    return a + e, b + f


@triton.jit
def _add_four(a, b, c, d, e, f, g, h):
    return a + e, b + f, c + g, d + h


@triton.jit
def own_totals(vectors, OWN: tl.constexpr):
    """The sum of each vector, given per vector and chunk, over all units of a program."""
    blocks = ()
    for v in tl.static_range(len(vectors) // OWN):
        block = vectors[v * OWN]
        for k in tl.static_range(1, OWN):
            block += vectors[v * OWN + k]
        blocks = blocks + (block,)
    return row_sums(blocks)


@triton.jit
def _scaled(total, MATRIX: tl.constexpr, H: tl.constexpr):
    if MATRIX == "mean":
        return total / H
    else:
        return total


@triton.jit
def pass_total(ptr, rows, mask_b, total, PROGRAMS: tl.constexpr):
    """Store the sum over a program's units, (BLOCK_B, 1), in its column of (rows, PROGRAMS)."""
    places = ptr + rows[0] * PROGRAMS + (rows[1] * PROGRAMS)[:, None] + tl.program_id(1)
    tl.store(places, total, mask=mask_b[:, None])


@triton.jit
def load_own_total(ptr, rows, mask_b, PROGRAMS: tl.constexpr):
    """What ``pass_total`` has stored in an earlier launch."""
    places = ptr + rows[0] * PROGRAMS + (rows[1] * PROGRAMS)[:, None] + tl.program_id(1)
    return tl.load(places, mask=mask_b[:, None], other=0.0)


@triton.jit
def passed_total(
    ptr, rows, mask_b, MATRIX: tl.constexpr, PROGRAMS: tl.constexpr, H: tl.constexpr
):  # fmt: skip
    """The sum or mean of all units, (BLOCK_B, 1), of what all programs of a row have stored."""
    offs = tl.arange(0, triton.next_power_of_2(PROGRAMS))
    parts = load_passed(ptr, rows, mask_b, offs, PROGRAMS, PROGRAMS)
    return _scaled(tl.sum(parts, 1)[:, None], MATRIX, H)


@triton.jit
def passed_running_sums(
    ptr, rows, mask_b, chunks, hidden, REVERSE: tl.constexpr, H: tl.constexpr,
    BLOCK_K: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The running sums of one vector (rows, H), which is read block by block."""
    sums = ()
    for j in tl.static_range(len(chunks)):
        block = load_passed(ptr, rows, mask_b, chunks[j], H, H).to(DTYPE)
        total = tl.zeros((block.shape[0],), DTYPE)
        first = tl.min(chunks[j], 0)
        for k in tl.range(0, tl.cdiv(hidden, BLOCK_K)):
            offs = k * BLOCK_K + tl.arange(0, BLOCK_K)
            part = load_passed(ptr, rows, mask_b, offs, H, H).to(DTYPE)
            others = offs >= first + block.shape[1] if REVERSE else offs < first
            total += tl.sum(tl.where(others[None, :], part, 0.0), 1)
        sums = sums + (tl.cumsum(block, 1, reverse=REVERSE) + total[:, None],)
    return sums


@triton.jit
def by_vector(own, BANDS: tl.constexpr, DTYPE: tl.constexpr):
    """The gates of a stage, per chunk: per band, as one tuple per gate and chunk, in DTYPE."""
    vectors = ()
    for n in tl.static_range(len(BANDS) - 1):
        for i in tl.static_range(gates_of(BANDS, n)):
            for j in tl.static_range(len(own)):
                gate = split_band(own[j][n], gates_of(BANDS, n))[i]
                vectors = vectors + (gate.to(DTYPE),)
    return vectors
