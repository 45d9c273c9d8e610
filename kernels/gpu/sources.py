"""The sources of products: a program's own, and those that programs pass on to each other."""

import triton
import triton.language as tl

from .blocks import as_blocks, at, end_of_chunk, only_units, params_of, store_block
from .sums import is_total, own_totals, pass_total


@triton.jit
def sources(
    SOURCE: tl.constexpr, STAGE: tl.constexpr, V: tl.constexpr, pre, state, params, param_ptrs,
    direction, streams, t, chunks, BLOCK_B: tl.constexpr, H: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The source of a stage for the units of a program: per vector and chunk."""
    OWN: tl.constexpr = len(chunks)
    BLOCK_H: tl.constexpr = chunks[0].shape[0]
    computed = ()
    for k in tl.static_range(OWN):
        own = params_of(params[k], param_ptrs, direction, chunks[k], H, state[k][0].dtype)
        vectors = SOURCE(STAGE, pre[k], state[k], own, streams[k], t)
        computed = computed + (as_blocks(vectors, BLOCK_B, BLOCK_H),)
    found = ()
    for v in tl.static_range(V):
        for k in tl.static_range(OWN):
            block = only_units(computed[k][v], chunks[k], end_of_chunk(k, H, OWN, BLOCK_H), H)
            found = found + (block.to(DTYPE),)
    return found


@triton.jit
def pass_on(
    SOURCE: tl.constexpr, STAGE: tl.constexpr, VECTORS: tl.constexpr, SLOTS: tl.constexpr,
    MATRICES: tl.constexpr, pre, state, params, param_ptrs, direction, streams, t, parity,
    source_ptr, source_size, total_ptr, total_size, rows, mask_b, chunks, BLOCK_B: tl.constexpr,
    PROGRAMS: tl.constexpr, H: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Store vectors of a stage's source for all programs of a row: each its units, or their sum.

    Args:
        VECTORS: their numbers.
        parity: alternates between steps, see the kernel.
    """
    OWN: tl.constexpr = len(chunks)
    vectors = sources(
        SOURCE, STAGE, len(at(SLOTS, STAGE)), pre, state, params, param_ptrs, direction, streams, t,
        chunks, BLOCK_B, H, DTYPE,
    )  # fmt: skip
    totals = ()
    if is_total(MATRICES, STAGE):
        totals = own_totals(vectors, OWN)
    for v in tl.static_range(len(at(SLOTS, STAGE))):
        if is_among(v, VECTORS):
            place = 2 * at(at(SLOTS, STAGE), v) + parity
            if is_total(MATRICES, STAGE):
                pass_total(total_ptr + place * total_size, rows, mask_b, totals[v], PROGRAMS)
            else:
                for j in tl.static_range(OWN):
                    write = source_ptr + place * source_size
                    store_block(write, rows, mask_b, chunks[j], vectors[v * OWN + j], H)


@triton.constexpr_function
def is_among(value, values):
    return value in values
