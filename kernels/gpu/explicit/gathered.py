"""The recurrent products of programs that own different units, and pass sources to each other.

A product is over all units, and the warps split these: each takes a part of every source, straight
from the L2 cache into the registers of the operand. Its matrices are in registers. So there are
partial sums, which meet in shared memory.

Sources are passed on in *fragments*: in memory in the order in which the threads of a warp hold an
operand of 16 rows, 16 bytes for each. So a warp reads a fragment at once, and nothing moves.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from .layouts import of_fragments, of_halves, of_partial, of_slice


@gluon.constexpr_function
def chunk_count(H, WARPS):
    """How many chunks the units make: a warp takes 16 of each, the fewest that Triton allows."""
    return -(-H // (16 * WARPS))


@gluon.constexpr_function
def padded(H, WARPS):
    """The units of all chunks."""
    return 16 * WARPS * chunk_count(H, WARPS)


@gluon.constexpr_function
def width(dtype):
    """Values of a register."""
    return 32 // dtype.primitive_bitwidth


@gluon.jit
def in_fragments(rows, units, H: gl.constexpr, WARPS: gl.constexpr, DTYPE: gl.constexpr):
    """Where the values of a block (rows, units) lie in the fragments of a tile of the batch."""
    WIDTH: gl.constexpr = width(DTYPE)
    INNER: gl.constexpr = 8 * WIDTH  # units of a fragment
    k = units % INNER
    of_units = units // INNER * (16 * INNER) + k // WIDTH % 4 * (4 * WIDTH)
    of_units += k // (4 * WIDTH) * (2 * WIDTH) + k % WIDTH
    of_rows = rows // 16 * (16 * padded(H, WARPS)) + rows % 8 * (16 * WIDTH) + rows // 8 % 2 * WIDTH
    return (of_rows[:, None] + of_units[None, :]).to(gl.uint32)


@gluon.jit
def gather(ptr, H: gl.constexpr, ROWS: gl.constexpr, WARPS: gl.constexpr):
    """What programs have passed on, in fragments: per chunk the operand of a product."""
    DTYPE: gl.constexpr = ptr.dtype.element_ty
    WIDTH: gl.constexpr = width(DTYPE)
    SIZE: gl.constexpr = WARPS * 16 * 16
    CHUNKS: gl.constexpr = chunk_count(H, WARPS)
    TILES: gl.constexpr = ROWS // 16
    LAYOUT: gl.constexpr = of_fragments(TILES, WARPS, DTYPE)
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, of_partial(WARPS), WIDTH)
    tiles = gl.arange(0, TILES, layout=gl.SliceLayout(1, LAYOUT))
    values = gl.arange(0, SIZE, layout=gl.SliceLayout(0, LAYOUT))
    offs = (tiles[:, None] * (CHUNKS * SIZE) + values[None, :]).to(gl.uint32)
    operands = ()
    for c in gl.static_range(CHUNKS):
        # Past the L1 cache, which may hold older values.
        parts = gl.load(ptr + c * SIZE + offs, cache_modifier=".cg")
        parts = parts.reshape(TILES, WARPS, 2 // WIDTH, 8, 4, 2, 2, WIDTH)
        parts = parts.permute(1, 0, 6, 3, 2, 5, 4, 7).reshape(WARPS, ROWS, 16)
        operands = operands + (gl.convert_layout(parts, OPERAND, assert_trivial=True),)
    return operands


@gluon.jit
def kept_slice(
    ptr, direction, first_unit, H: gl.constexpr, GATES: gl.constexpr, V: gl.constexpr,
    UNITS: gl.constexpr, WARPS: gl.constexpr, TRANSPOSED: gl.constexpr,
):  # fmt: skip
    """The matrices of a stage, (D, GATES, H, V, H), in registers: per gate, vector and chunk.

    TRANSPOSED: for the backward, whose product is over the units of the gates.
    """
    DTYPE: gl.constexpr = ptr.dtype.element_ty
    LAYOUT: gl.constexpr = gl.DotOperandLayout(1, of_partial(WARPS), width(DTYPE))
    OF_WARPS: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT))
    OF_K: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT))
    OF_UNITS: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT))
    k = gl.arange(0, WARPS, layout=OF_WARPS)[:, None, None] * 16
    k += gl.arange(0, 16, layout=OF_K)[None, :, None]
    n = first_unit + gl.arange(0, UNITS, layout=OF_UNITS)[None, None, :]
    weights = ()
    for g in gl.static_range(GATES):
        for v in gl.static_range(V):
            base = ptr + (direction.to(gl.int64) * GATES + g) * (H * V * H) + v * H
            for c in gl.static_range(chunk_count(H, WARPS)):
                here = k + c * (WARPS * 16)
                offs = here * (V * H) + n if TRANSPOSED else n * (V * H) + here
                tile = gl.load(base + offs, mask=(here < H) & (n < H), other=0.0)
                weights = weights + (tile,)
    return weights


@gluon.jit
def zero_partial(ROWS: gl.constexpr, UNITS: gl.constexpr, WARPS: gl.constexpr, DTYPE: gl.constexpr):
    LAYOUT: gl.constexpr = of_partial(WARPS)
    return gl.zeros([WARPS, ROWS, UNITS], DTYPE, LAYOUT)


@gluon.jit
def partial_product(operands, weights, FIRST: gl.constexpr, partial, PRECISION: gl.constexpr):
    """partial + the product of a source with matrix FIRST, chunk by chunk."""
    for c in gl.static_range(len(operands)):
        partial = mma_v2(operands[c], weights[FIRST + c], partial, input_precision=PRECISION)
    return partial


@gluon.jit
def totals(partials):
    """The sums over the warps of the partial sums of a tuple, as blocks."""
    WARPS: gl.constexpr = partials[0].shape[0]
    ROWS: gl.constexpr = partials[0].shape[1]
    UNITS: gl.constexpr = partials[0].shape[2]
    SHARED: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[2, 1, 0])
    HALVES: gl.constexpr = of_halves(ROWS, UNITS, WARPS)
    LAYOUT: gl.constexpr = of_slice(ROWS, UNITS, WARPS)
    places = ()
    for i in gl.static_range(len(partials)):
        place = gl.allocate_shared_memory(partials[i].dtype, [WARPS, ROWS, UNITS], SHARED)
        place.store(partials[i])
        places = places + (place,)
    found = ()
    for i in gl.static_range(len(partials)):
        total = places[i].slice(0, 2, dim=0).load(HALVES)
        for w in gl.static_range(2, WARPS, 2):
            total += places[i].slice(w, 2, dim=0).load(HALVES)
        found = found + (gl.convert_layout(gl.sum(total, 0), LAYOUT),)
    return found
