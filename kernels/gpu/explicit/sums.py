"""Stages with a fixed matrix, of a program that owns all units: see ``sums`` of the first pair.

The sum or mean of all units is one number per row, (ROWS, 1). A warp has 16 units of all rows. Its
lanes add these up by shuffles, each for one of the rows and sums in the end; then the warps pass on
what they have in shared memory, for all sums of a stage at once, and every thread adds it up.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..blocks import at, gate_count
from ..sums import is_total
from .exchange import meet
from .layouts import of_block, of_parts_by_lane, of_parts_of_warps, of_totals
from .memory import only_units


@gluon.jit
def rooms_of_sums(
    SPANS: gl.constexpr, MATRICES: gl.constexpr, ROWS: gl.constexpr, UNITS: gl.constexpr,
    DTYPE: gl.constexpr,
):  # fmt: skip
    """Per stage a tuple of the shared memory in which warps pass on their parts of its sums.

    Between two uses of the same, which are a step apart, the program meets at the step's end.
    """
    rooms = ()
    for s in gl.static_range(len(SPANS)):
        room = ()
        if is_total(MATRICES, s) and UNITS > 16:
            room = (_room(UNITS // 16, ROWS, padded(gate_count(SPANS, s)), DTYPE),)
        rooms = rooms + (room,)
    return rooms


@gluon.jit
def _room(WARPS: gl.constexpr, ROWS: gl.constexpr, COUNT: gl.constexpr, DTYPE: gl.constexpr):
    LAYOUT: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, order=[2, 1, 0])
    return gl.allocate_shared_memory(DTYPE, [WARPS, ROWS, COUNT], LAYOUT)


@gluon.jit
def fixed_products(vectors, MATRIX: gl.constexpr, room, units, H: gl.constexpr):
    """The products of a fixed matrix with each of ``vectors``.

    room: see ``rooms_of_sums``.
    """
    if MATRIX == "identity":
        return vectors
    else:
        parts = ()
        for v in gl.static_range(len(vectors)):
            parts = parts + (part_of_total(vectors[v], units, H),)
        return scaled(totals_of(parts, room), MATRIX, H)


@gluon.jit
def scaled(totals, MATRIX: gl.constexpr, H: gl.constexpr):
    """The products of a fixed matrix by the sums of all units."""
    if MATRIX == "mean":
        means = ()
        for v in gl.static_range(len(totals)):
            means = means + (totals[v] / H,)
        return means
    else:
        return totals


@gluon.jit
def part_of_total(block, units, H: gl.constexpr):
    """What a thread has of the sum of all units: its sums of two neighbours, (ROWS, UNITS // 2)."""
    block = only_units(block, units, H)
    return gl.sum(block.reshape(block.shape[0], block.shape[1] // 2, 2), 2)


@gluon.jit
def totals_of(pairs, room):
    """The sum of all units of each ``part_of_total``, (ROWS, 1)."""
    ROWS: gl.constexpr = pairs[0].shape[0]
    UNITS: gl.constexpr = pairs[0].shape[1] * 2
    COUNT: gl.constexpr = padded(len(pairs))
    BY_LANE: gl.constexpr = of_parts_by_lane(ROWS, UNITS, COUNT)
    BLOCK: gl.constexpr = of_block(ROWS, UNITS)
    for _ in gl.static_range(COUNT - len(pairs)):
        pairs = pairs + (gl.zeros_like(pairs[0]),)
    parts = side_by_side(pairs).reshape(ROWS, UNITS // 16, 8, COUNT)
    parts = gl.sum(gl.convert_layout(parts, BY_LANE), 2)
    if UNITS > 16:
        ALL: gl.constexpr = of_parts_of_warps(ROWS, UNITS, COUNT)
        room[0].store(parts.permute(1, 0, 2))
        meet(True)
        parts = gl.sum(room[0].load(ALL), 0)
    else:
        ROW: gl.constexpr = gl.SliceLayout(0, of_parts_of_warps(ROWS, UNITS, COUNT))
        parts = gl.convert_layout(parts.reshape(ROWS, COUNT), ROW)
    found = ()
    apart = each_of(parts)
    for i in gl.static_range(len(apart)):
        total = gl.convert_layout(apart[i], gl.SliceLayout(1, BLOCK), assert_trivial=True)
        found = found + (total[:, None],)
    return found


@gluon.jit
def of_gates(d, TOTALS: gl.constexpr, units, H: gl.constexpr, ROWS: gl.constexpr):
    """The gradients of gates from those of all units; of a total each thread's part of the sum."""
    gates = ()
    for g in gl.static_range(len(d)):
        gate = tl.broadcast_to(d[g], (ROWS, units.shape[0]))
        if at(TOTALS, g) >= 0:
            gates = gates + (part_of_total(gate, units, H),)
        else:
            gates = gates + (gate,)
    return gates


@gluon.jit
def shares(totals, H: gl.constexpr):
    """The gradients of totals, as each unit has an equal share of them."""
    found = ()
    for v in gl.static_range(len(totals)):
        found = found + (totals[v] / H,)
    return found


@gluon.jit
def offsets_of_totals(
    offs_b, TOTALS: gl.constexpr, STRIDE: gl.constexpr, H: gl.constexpr, UNITS: gl.constexpr
):  # fmt: skip
    """The offsets of saved totals, (ROWS, totals): a lane has one or few of them; () if none is."""
    if total_count(TOTALS) == 0:
        return ()
    else:
        ROWS: gl.constexpr = offs_b.shape[0]
        LAYOUT: gl.constexpr = of_totals(ROWS, padded(total_count(TOTALS)), UNITS, True)
        number = gl.arange(0, padded(total_count(TOTALS)), layout=gl.SliceLayout(0, LAYOUT))
        gate = number * 0
        for g in gl.static_range(len(TOTALS)):
            gate = gl.where(number == at(TOTALS, g), g, gate)
        rows = gl.convert_layout(offs_b, gl.SliceLayout(1, LAYOUT), assert_trivial=True)
        return (((rows * STRIDE)[:, None] + (gate * H)[None, :]).to(gl.uint32),)


@gluon.jit
def with_saved_totals(gates, packed, TOTALS: gl.constexpr, UNITS: gl.constexpr):
    """The gates with their totals, each (ROWS, 1), of those that were loaded side by side."""
    ROWS: gl.constexpr = packed.shape[0]
    LAYOUT: gl.constexpr = of_totals(ROWS, packed.shape[1], UNITS, False)
    BLOCK: gl.constexpr = of_block(ROWS, UNITS)
    totals = each_of(gl.convert_layout(packed, LAYOUT))
    found = ()
    for g in gl.static_range(len(TOTALS)):
        if at(TOTALS, g) >= 0:
            total = totals[at(TOTALS, g)]
            total = gl.convert_layout(total, gl.SliceLayout(1, BLOCK), assert_trivial=True)
            found = found + (total[:, None],)
        else:
            found = found + (gates[g],)
    return found


@gluon.constexpr_function
def total_count(totals):
    """How many gates are totals."""
    return 1 + max(totals)


@gluon.jit
def side_by_side(blocks):
    """Blocks (ROWS, N), as many as a power of two, as one with a last dim of them."""
    if len(blocks) == 1:
        return blocks[0].expand_dims(2)
    else:
        ROWS: gl.constexpr = blocks[0].shape[0]
        N: gl.constexpr = blocks[0].shape[1]
        left = side_by_side(blocks[: len(blocks) // 2])
        right = side_by_side(blocks[len(blocks) // 2 :])
        return gl.join(left, right).permute(0, 1, 3, 2).reshape(ROWS, N, len(blocks))


@gluon.jit
def each_of(block):
    """The columns of a block, (ROWS,)."""
    ROWS: gl.constexpr = block.shape[0]
    COUNT: gl.constexpr = block.shape[1]
    if COUNT == 1:
        return (block.reshape(ROWS),)
    else:
        left, right = gl.split(block.reshape(ROWS, 2, COUNT // 2).permute(0, 2, 1))
        return each_of(left) + each_of(right)


@gluon.constexpr_function
def padded(count):
    """The power of two from ``count`` on."""
    return 1 << (count - 1).bit_length()
