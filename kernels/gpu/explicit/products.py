"""The recurrent products of a program that owns all units: matrices in registers."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2

from ..blocks import widened
from .gathered import gathered_products, kept_slice, places_of_sums
from .layouts import (
    from_accumulator,
    halves,
    of_passed,
    of_product,
    of_source,
    of_weight,
    to_accumulator,
    unit_of,
)
from .sums import rooms_of_sums


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
def rooms_of(
    SPANS: gl.constexpr, MATRICES: gl.constexpr, COUNTS: gl.constexpr, ORDER: gl.constexpr,
    ROWS: gl.constexpr, UNITS: gl.constexpr, DTYPE: gl.constexpr, ALONE: gl.constexpr,
):  # fmt: skip
    """For even and for odd steps: per stage what its warps need of shared memory to add up.

    COUNTS: the products of a stage, each of which programs that own slices sum over their warps.
    ORDER: of the stages in a step.
    """
    if ALONE:
        rooms = rooms_of_sums(SPANS, MATRICES, ROWS, UNITS, DTYPE)
        return rooms, rooms
    else:
        return places_of_sums(COUNTS, ORDER, ROWS, UNITS, DTYPE)


@gluon.jit
def add_products(
    pre, FIRST: gl.constexpr, LAST: gl.constexpr, sources, weights, room, H: gl.constexpr,
    ALONE: gl.constexpr, HELD: gl.constexpr, PRECISION: gl.constexpr, DTYPE: gl.constexpr,
):  # fmt: skip
    """The gates, as they were loaded, with the products of a stage added to FIRST to LAST.

    room: of the stage, see ``rooms_of``.
    """
    V: gl.constexpr = len(sources)
    found = pre[:FIRST]
    if ALONE:
        for g in gl.static_range(FIRST, LAST):
            accumulator = to_accumulator(widened(pre[g], DTYPE))
            for v in gl.static_range(V):
                accumulator = product(
                    weights[(g - FIRST) * V + v], sources[v], accumulator,
                    (g - FIRST) * V + v < HELD, sums_of(LAST - FIRST), PRECISION,
                )  # fmt: skip
            found = found + (from_accumulator(accumulator),)
    else:
        sums = gathered_products(
            sources, weights, room, LAST - FIRST, V, 1, pre[FIRST].shape[0], pre[FIRST].shape[1],
            H, PRECISION, DTYPE,
        )  # fmt: skip
        for g in gl.static_range(LAST - FIRST):
            # Not before: what was loaded for this step may still be on its way.
            found = found + (widened(pre[FIRST + g], DTYPE) + sums[g],)
    return found + pre[LAST:]


@gluon.constexpr_function
def sums_of(gates):
    """The number of accumulators for the products of one gate, if a stage has this many gates.

    See ``gathered.accumulators_of``. Here two warps share a scheduler: three gates have enough
    products that do not wait.
    """
    return 4 if gates == 1 else 2 if gates == 2 else 1


@gluon.jit
def product(
    weight, source, accumulator, IS_HELD: gl.constexpr, SUMS: gl.constexpr, PRECISION: gl.constexpr
):  # fmt: skip
    """accumulator + R · sourceᵀ, of a source in shared memory."""
    LAYOUT: gl.constexpr = of_source(source.shape[1], source.dtype)
    operand = source.permute((1, 0)).load(LAYOUT)
    if not IS_HELD:
        OF_WEIGHT: gl.constexpr = of_weight(source.shape[1], source.dtype)
        weight = weight.load(OF_WEIGHT)
    return _in_sums(weight, operand, accumulator, SUMS, PRECISION)


@gluon.jit
def _in_sums(weight, operand, accumulator, SUMS: gl.constexpr, PRECISION: gl.constexpr):
    """accumulator + weight · operand, whose inner dimension is cut into SUMS that are added.

    Into fewer where it is short: Triton multiplies no fewer than 16 values of it.
    """
    if SUMS == 1 or operand.shape[0] < 32:
        return mma_v2(weight, operand, accumulator, input_precision=PRECISION)
    else:
        first_weight, last_weight = halves(weight, 1)
        first, last = halves(operand, 0)
        zero = gl.zeros_like(accumulator)
        accumulator = _in_sums(first_weight, first, accumulator, SUMS // 2, PRECISION)
        return accumulator + _in_sums(last_weight, last, zero, SUMS // 2, PRECISION)


@gluon.jit
def source_gradients(
    places, weights, room, FIRST: gl.constexpr, LAST: gl.constexpr, V: gl.constexpr, like,
    H: gl.constexpr, ALONE: gl.constexpr, HELD: gl.constexpr, PRECISION: gl.constexpr,
):  # fmt: skip
    """The gradients of the V vectors of a source, by those of gates FIRST to LAST in their places.

    room: of the stage, see ``rooms_of``.
    like: a block.
    """
    if ALONE:
        return _source_gradients(places, weights, FIRST, LAST, V, like, HELD, PRECISION)
    else:
        return gathered_products(
            places[FIRST:LAST], weights, room, V, 1, V, like.shape[0], like.shape[1], H, PRECISION,
            like.dtype,
        )  # fmt: skip


@gluon.jit
def _source_gradients(
    places, weights, FIRST: gl.constexpr, LAST: gl.constexpr, V: gl.constexpr, like,
    HELD: gl.constexpr, PRECISION: gl.constexpr,
):  # fmt: skip
    ROWS: gl.constexpr = like.shape[0]
    UNITS: gl.constexpr = like.shape[1]
    LAYOUT: gl.constexpr = of_product(UNITS)
    SUMS: gl.constexpr = sums_of(min(LAST - FIRST, 2))
    found = ()
    for v in gl.static_range(V):
        # In two sums, for the reason of ``sums_of``.
        even = gl.zeros([UNITS, ROWS], like.dtype, LAYOUT)
        odd = even
        for g in gl.static_range(LAST - FIRST):
            if g % 2 == 0:
                even = product(
                    weights[g * V + v], places[FIRST + g], even, g * V + v < HELD, SUMS, PRECISION
                )
            else:
                odd = product(
                    weights[g * V + v], places[FIRST + g], odd, g * V + v < HELD, SUMS, PRECISION
                )
        if LAST - FIRST > 1:
            even += odd
        found = found + (from_accumulator(even),)
    return found
