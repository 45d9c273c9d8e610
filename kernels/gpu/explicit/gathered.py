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

from ..blocks import index_of, replace
from .layouts import of_fragments, of_halves, of_partial, of_slice
from .published import load_published, width


@gluon.constexpr_function
def chunk_count(H, WARPS):
    """How many chunks the units make: a warp takes 16 of each, the fewest that Triton allows."""
    return -(-H // (16 * WARPS))


@gluon.constexpr_function
def padded(H, WARPS):
    """The units of all chunks."""
    return 16 * WARPS * chunk_count(H, WARPS)


@gluon.jit
def in_fragments(rows, units, H: gl.constexpr, WARPS: gl.constexpr, DTYPE: gl.constexpr):
    """Where the values of a block (rows, units) lie in the fragments of a tile of the batch.

    An operand gives a thread rows m and m + 8 of 16. These are neighbouring rows of the batch: so
    a thread of a program that passes them on has them in its neighbours.
    """
    WIDTH: gl.constexpr = width(DTYPE)
    INNER: gl.constexpr = 8 * WIDTH  # units of a fragment
    k = units % INNER
    of_units = units // INNER * (16 * INNER) + k // WIDTH % 4 * (4 * WIDTH)
    of_units += k // (4 * WIDTH) * (2 * WIDTH) + k % WIDTH
    of_rows = rows // 16 * (16 * padded(H, WARPS))
    of_rows += rows % 16 // 2 * (16 * WIDTH) + rows % 2 * WIDTH
    return (of_rows[:, None] + of_units[None, :]).to(gl.uint32)


@gluon.jit
def gather(ptrs, H: gl.constexpr, ROWS: gl.constexpr, WARPS: gl.constexpr):
    """What programs have passed on, in fragments: per block and chunk the operand of a product."""
    DTYPE: gl.constexpr = ptrs[0].dtype.element_ty
    WIDTH: gl.constexpr = width(DTYPE)
    SIZE: gl.constexpr = WARPS * 16 * 16
    BLOCKS: gl.constexpr = len(ptrs)
    CHUNKS: gl.constexpr = chunk_count(H, WARPS)
    TILES: gl.constexpr = ROWS // 16
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, of_partial(WARPS), WIDTH)
    LAYOUT: gl.constexpr = of_fragments(TILES, WARPS, DTYPE)
    tiles = gl.arange(0, TILES, layout=gl.SliceLayout(1, LAYOUT))
    values = gl.arange(0, SIZE, layout=gl.SliceLayout(0, LAYOUT))
    offs = (tiles[:, None] * (CHUNKS * SIZE) + values[None, :]).to(gl.uint32)
    loaded = load_published(ptrs, offs, CHUNKS, TILES)
    blocks = ()
    for i in gl.static_range(BLOCKS):
        operands = ()
        for c in gl.static_range(CHUNKS):
            parts = loaded[i * CHUNKS + c].reshape(TILES, WARPS, 2 // WIDTH, 8, 4, 2, 2, WIDTH)
            parts = parts.permute(1, 0, 6, 3, 2, 5, 4, 7).reshape(WARPS, ROWS, 16)
            operands = operands + (gl.convert_layout(parts, OPERAND, assert_trivial=True),)
        blocks = blocks + (operands,)
    return blocks


@gluon.constexpr_function
def at_once(H, ROWS, WARPS, dtype):
    """How many blocks to gather at once: each time waits for L2, and each block takes registers."""
    most = 64  # registers
    return max(1, most // (chunk_count(H, WARPS) * ROWS // 2 // width(dtype)))


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
def gathered_products(
    places, weights, room, RESULTS: gl.constexpr, OF_RESULT: gl.constexpr, OF_BLOCK: gl.constexpr,
    ROWS: gl.constexpr, UNITS: gl.constexpr, H: gl.constexpr, PRECISION: gl.constexpr,
    DTYPE: gl.constexpr,
):  # fmt: skip
    """The sums of products of the blocks in ``places``, of which there are RESULTS.

    weights: for result r and block b the matrix r · OF_RESULT + b · OF_BLOCK, in chunks.
    room: in shared memory, see ``places_of_sums``.
    """
    WARPS: gl.constexpr = gl.num_warps()
    CHUNKS: gl.constexpr = chunk_count(H, WARPS)
    AT_ONCE: gl.constexpr = at_once(H, ROWS, WARPS, places[0].dtype.element_ty)
    partials = ()
    for _ in gl.static_range(RESULTS):
        partials = partials + (
            _zeros(accumulators_of(RESULTS, ROWS, UNITS), ROWS, UNITS, WARPS, DTYPE),
        )
    for first in gl.static_range(0, len(places), AT_ONCE):
        blocks = gather(places[first : first + AT_ONCE], H, ROWS, WARPS)
        for b in gl.static_range(len(blocks)):
            grown = ()
            for r in gl.static_range(RESULTS):
                matrix = weights[(r * OF_RESULT + (first + b) * OF_BLOCK) * CHUNKS :][:CHUNKS]
                grown = grown + (
                    _added(partials[r], blocks[b], matrix, (first + b) * CHUNKS, PRECISION),
                )
            partials = grown
    return _totals(partials, room)


@gluon.constexpr_function
def accumulators_of(results, rows, units):
    """How many accumulators take the products of a result in turns.

    An instruction's product of 16 rows and 8 units waits for the one before it in the same
    accumulator, four times as long as it keeps the tensor cores busy.
    """
    products = results * (rows // 16) * (units // 8)
    return 4 if products == 1 else 2 if products < 4 else 1


@gluon.jit
def _zeros(
    COUNT: gl.constexpr, ROWS: gl.constexpr, UNITS: gl.constexpr, WARPS: gl.constexpr,
    DTYPE: gl.constexpr,
):  # fmt: skip
    LAYOUT: gl.constexpr = of_partial(WARPS)
    zeros = ()
    for _ in gl.static_range(COUNT):
        zeros = zeros + (gl.zeros([WARPS, ROWS, UNITS], DTYPE, LAYOUT),)
    return zeros


@gluon.jit
def _added(accumulators, operands, matrix, BEFORE: gl.constexpr, PRECISION: gl.constexpr):
    """The accumulators with the product of a block, before which they took BEFORE chunks."""
    COUNT: gl.constexpr = len(accumulators)
    for c in gl.static_range(len(operands)):
        one = accumulators[(BEFORE + c) % COUNT]
        one = mma_v2(operands[c], matrix[c], one, input_precision=PRECISION)
        accumulators = replace(accumulators, (BEFORE + c) % COUNT, one)
    return accumulators


@gluon.jit
def places_of_sums(
    COUNTS: gl.constexpr, ORDER: gl.constexpr, ROWS: gl.constexpr, UNITS: gl.constexpr,
    DTYPE: gl.constexpr,
):  # fmt: skip
    """For even and for odd steps: per stage the shared memory in which COUNTS products are summed.

    There are two places, which the stages of a step, in ORDER, use in turns: so the fastest warp
    does not write what the slowest still reads, since they meet in between. Of large ones there is
    one; then Triton puts a barrier in front.
    """
    first = _places_of_partials(most(COUNTS), ROWS, UNITS, DTYPE)
    last = first
    if are_in_turns(most(COUNTS), gl.num_warps() * ROWS * UNITS):
        last = _places_of_partials(most(COUNTS), ROWS, UNITS, DTYPE)
    even = ()
    odd = ()
    for s in gl.static_range(len(COUNTS)):
        even = even + ((first, last)[index_of(ORDER, s) % 2],)
        odd = odd + ((first, last)[(index_of(ORDER, s) + len(ORDER)) % 2],)
    return even, odd


@gluon.constexpr_function
def most(counts):
    return max(counts)


@gluon.constexpr_function
def are_in_turns(count, values):
    """Whether partial sums have two places, if each has ``values``; as in plan/explicit.py."""
    return 2 * count * values * 4 <= 65536


@gluon.jit
def _places_of_partials(
    COUNT: gl.constexpr, ROWS: gl.constexpr, UNITS: gl.constexpr, DTYPE: gl.constexpr
):
    # The rows m and m + 8 of a product, which a thread writes, and their neighbours in the batch,
    # which a thread and its neighbours read, lie in different banks.
    LAYOUT: gl.constexpr = gl.SwizzledSharedLayout(16, 1, 2, order=[2, 1, 0])
    places = ()
    for _ in gl.static_range(COUNT):
        place = gl.allocate_shared_memory(DTYPE, [gl.num_warps(), ROWS // 8, 8 * UNITS], LAYOUT)
        places = places + (place,)
    return places


@gluon.jit
def _totals(partials, places):
    """The sums of all accumulators of all warps, of each result, as blocks."""
    WARPS: gl.constexpr = partials[0][0].shape[0]
    ROWS: gl.constexpr = partials[0][0].shape[1]
    UNITS: gl.constexpr = partials[0][0].shape[2]
    HALVES: gl.constexpr = of_halves(ROWS, UNITS, WARPS)
    LAYOUT: gl.constexpr = of_slice(ROWS, UNITS, WARPS)
    for i in gl.static_range(len(partials)):
        own = partials[i][0]
        for n in gl.static_range(1, len(partials[i])):
            own += partials[i][n]
        places[i].store(own.reshape(WARPS, ROWS // 8, 8 * UNITS))
    found = ()
    for i in gl.static_range(len(partials)):
        total = places[i].slice(0, 2, dim=0).load(HALVES)
        for w in gl.static_range(2, WARPS, 2):
            total += places[i].slice(w, 2, dim=0).load(HALVES)
        # In the order of the batch, see ``in_fragments``.
        total = total.reshape(2, ROWS // 16, 2, 8, UNITS).permute(0, 1, 3, 2, 4)
        total = gl.sum(total.reshape(2, ROWS, UNITS), 0)
        found = found + (gl.convert_layout(total, LAYOUT),)
    return found
