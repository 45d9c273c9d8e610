"""The recurrent products of a program that owns all units: matrices in registers."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from .gathered import gather, kept_slice, partial_product, totals, zero_partial
from .layouts import (
    from_accumulator,
    of_passed,
    of_product,
    of_source,
    of_weight,
    to_accumulator,
    unit_of,
)


@gluon.jit
def kept_weights(
    ptr, direction, H: gl.constexpr, GATES: gl.constexpr, V: gl.constexpr, UNITS: gl.constexpr,
    TRANSPOSED: gl.constexpr, ALONE: gl.constexpr, HELD: gl.constexpr,
):  # fmt: skip
    """The matrices of a stage, (D, GATES, H, V, H): per gate and vector.

    TRANSPOSED: for the backward, whose product is over the units of the gates.
    HELD: how many are in registers; if a program owns all units, others are in shared memory.
    """
    if not ALONE:
        return kept_slice(
            ptr, direction, gl.program_id(1) * UNITS, H, GATES, V, UNITS, gl.num_warps(), TRANSPOSED
        )
    else:
        LAYOUT: gl.constexpr = of_weight(UNITS, ptr.dtype.element_ty)
        m = unit_of(gl.arange(0, UNITS, layout=gl.SliceLayout(1, LAYOUT)))[:, None]
        k = gl.arange(0, UNITS, layout=gl.SliceLayout(0, LAYOUT))[None, :]
        offs = k * (V * H) + m if TRANSPOSED else m * (V * H) + k
        weights = ()
        for g in gl.static_range(GATES):
            for v in gl.static_range(V):
                base = (direction.to(gl.int64) * GATES + g) * (H * V * H) + v * H
                if UNITS > H:
                    tile = gl.load(ptr + base + offs, mask=(m < H) & (k < H), other=0.0)
                else:
                    tile = gl.load(ptr + base + offs)
                if g * V + v >= HELD:
                    tile = gl.allocate_shared_memory(
                        tile.dtype, [UNITS, UNITS], of_passed(tile.dtype), tile
                    )
                weights = weights + (tile,)
        return weights


@gluon.jit
def add_products(
    pre, FIRST: gl.constexpr, LAST: gl.constexpr, sources, weights, H: gl.constexpr,
    ALONE: gl.constexpr, HELD: gl.constexpr, PRECISION: gl.constexpr,
):  # fmt: skip
    """The gates with the products of one stage added to FIRST to LAST."""
    V: gl.constexpr = len(sources)
    found = pre[:FIRST]
    if ALONE:
        for g in gl.static_range(FIRST, LAST):
            accumulator = to_accumulator(pre[g])
            for v in gl.static_range(V):
                accumulator = product(
                    weights[(g - FIRST) * V + v], sources[v], accumulator,
                    (g - FIRST) * V + v < HELD, PRECISION,
                )  # fmt: skip
            found = found + (from_accumulator(accumulator),)
    else:
        ROWS: gl.constexpr = pre[FIRST].shape[0]
        UNITS: gl.constexpr = pre[FIRST].shape[1]
        WARPS: gl.constexpr = gl.num_warps()
        DTYPE: gl.constexpr = pre[FIRST].dtype
        CHUNKS: gl.constexpr = len(weights) // ((LAST - FIRST) * V)
        partials = ()
        for _ in gl.static_range(FIRST, LAST):
            partials = partials + (zero_partial(ROWS, UNITS, WARPS, DTYPE),)
        for v in gl.static_range(V):
            operands = gather(sources[v], H, ROWS, WARPS)
            grown = ()
            for g in gl.static_range(LAST - FIRST):
                grown = grown + (
                    partial_product(
                        operands, weights, (g * V + v) * CHUNKS, partials[g], PRECISION
                    ),
                )
            partials = grown
        sums = totals(partials)
        for g in gl.static_range(LAST - FIRST):
            found = found + (pre[FIRST + g] + sums[g],)
    return found + pre[LAST:]


@gluon.jit
def product(weight, source, accumulator, IS_HELD: gl.constexpr, PRECISION: gl.constexpr):
    """accumulator + R · sourceᵀ, of a source in shared memory."""
    LAYOUT: gl.constexpr = of_source(source.shape[1], source.dtype)
    operand = source.permute((1, 0)).load(LAYOUT)
    if not IS_HELD:
        OF_WEIGHT: gl.constexpr = of_weight(source.shape[1], source.dtype)
        weight = weight.load(OF_WEIGHT)
    return mma_v2(weight, operand, accumulator, input_precision=PRECISION)


@gluon.jit
def source_gradients(
    places, weights, FIRST: gl.constexpr, LAST: gl.constexpr, V: gl.constexpr, like,
    H: gl.constexpr, ALONE: gl.constexpr, HELD: gl.constexpr, PRECISION: gl.constexpr,
):  # fmt: skip
    """The gradients of the V vectors of a source, by those of gates FIRST to LAST in their places.

    like: a block.
    """
    if ALONE:
        return _source_gradients(places, weights, FIRST, LAST, V, like, HELD, PRECISION)
    else:
        return _gathered_gradients(places, weights, FIRST, LAST, V, like, H, PRECISION)


@gluon.jit
def _source_gradients(
    places, weights, FIRST: gl.constexpr, LAST: gl.constexpr, V: gl.constexpr, like,
    HELD: gl.constexpr, PRECISION: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = like.shape[0]
    UNITS: gl.constexpr = like.shape[1]
    LAYOUT: gl.constexpr = of_product(UNITS)
    found = ()
    for v in gl.static_range(V):
        # In two sums: a product waits for the one before it in the same sum.
        even = gl.zeros([UNITS, ROWS], like.dtype, LAYOUT)
        odd = even
        for g in gl.static_range(LAST - FIRST):
            if g % 2 == 0:
                even = product(
                    weights[g * V + v], places[FIRST + g], even, g * V + v < HELD, PRECISION
                )
            else:
                odd = product(
                    weights[g * V + v], places[FIRST + g], odd, g * V + v < HELD, PRECISION
                )
        if LAST - FIRST > 1:
            even += odd
        found = found + (from_accumulator(even),)
    return found


@gluon.jit
def _gathered_gradients(
    places, weights, FIRST: gl.constexpr, LAST: gl.constexpr, V: gl.constexpr, like,
    H: gl.constexpr, PRECISION: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = like.shape[0]
    UNITS: gl.constexpr = like.shape[1]
    WARPS: gl.constexpr = gl.num_warps()
    CHUNKS: gl.constexpr = len(weights) // ((LAST - FIRST) * V)
    partials = ()
    for _ in gl.static_range(V):
        partials = partials + (zero_partial(ROWS, UNITS, WARPS, like.dtype),)
    for g in gl.static_range(LAST - FIRST):
        operands = gather(places[FIRST + g], H, ROWS, WARPS)
        grown = ()
        for v in gl.static_range(V):
            grown = grown + (
                partial_product(operands, weights, (g * V + v) * CHUNKS, partials[v], PRECISION),
            )
        partials = grown
    return totals(partials)
