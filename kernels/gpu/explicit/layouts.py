"""Where the values of a block lie: in which thread, and in which of its registers.

Products are computed as R · hᵀ, the units along M and the batch along N, so that a tile may have as
few as 8 rows of the batch. A tensor core's accumulator gives a thread the rows m and m + 8 of M.
The rows of R are permuted as they are loaded, so that these two are neighbouring units. So a block
(rows, units) is read and written by whole sectors of memory, and it goes into an accumulator and
out of it without a move: the ``convert_layout`` here only name the registers anew.

ROWS: rows of a batch tile, a multiple of 8. UNITS: 16 for each warp. Both are powers of two.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.constexpr_function
def of_block(ROWS, UNITS):
    """A block (ROWS, UNITS): a thread has two neighbouring units of two rows, or of more."""
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 1], [1, 0], *([n, 0] for n in _powers(8, ROWS))],
        lane_bases=[[2, 0], [4, 0], [0, 2], [0, 4], [0, 8]],
        warp_bases=[[0, n] for n in _powers(16, UNITS)],
        block_bases=[],
        shape=[ROWS, UNITS],
    )


@gluon.constexpr_function
def of_program(ALONE, ROWS, UNITS, WARPS):
    """The blocks of a program that owns all units, or a slice of them."""
    return of_block(ROWS, UNITS) if ALONE else of_slice(ROWS, UNITS, WARPS)


@gluon.constexpr_function
def of_product(UNITS):
    """An accumulator (UNITS, ROWS) of a product; a warp has all rows of 16 units."""
    return gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[UNITS // 16, 1], instr_shape=[16, 8]
    )


@gluon.constexpr_function
def of_weight(UNITS, dtype):
    """A matrix as the left operand of a product, (UNITS, K)."""
    return gl.DotOperandLayout(0, of_product(UNITS), 32 // dtype.primitive_bitwidth)


@gluon.constexpr_function
def of_source(UNITS, dtype):
    """What it is multiplied with, (K, ROWS)."""
    return gl.DotOperandLayout(1, of_product(UNITS), 32 // dtype.primitive_bitwidth)


@gluon.constexpr_function
def of_passed(dtype):
    """A block in shared memory, between the threads that compute it and the product."""
    return gl.SwizzledSharedLayout(128 // dtype.primitive_bitwidth, 1, 8, order=[1, 0])


@gluon.constexpr_function
def of_parts_by_lane(ROWS, UNITS, COUNT):
    """Parts (ROWS, warps, 8, COUNT) of sums: a lane has all 8 of as few as there can be."""
    free = [[0, 0, 0, n] for n in _powers(1, COUNT)] + [[1, 0, 0, 0]]
    summed = [[0, 0, n, 0] for n in _powers(1, 8)]
    lanes = (free + summed)[:3]
    return gl.DistributedLinearLayout(
        reg_bases=[basis for basis in summed + free if basis not in lanes]
        + [[n, 0, 0, 0] for n in _powers(8, ROWS)],
        lane_bases=[[2, 0, 0, 0], [4, 0, 0, 0], *lanes],
        warp_bases=[[0, n, 0, 0] for n in _powers(1, UNITS // 16)],
        block_bases=[],
        shape=[ROWS, UNITS // 16, 8, COUNT],
    )


@gluon.constexpr_function
def of_parts_of_warps(ROWS, UNITS, COUNT):
    """Parts (warps, ROWS, COUNT) of sums: each thread has all of those of its rows in a block."""
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 0, n] for n in _powers(1, COUNT)]
        + [[0, 1, 0], *([0, n, 0] for n in _powers(8, ROWS))]
        + [[n, 0, 0] for n in _powers(1, UNITS // 16)],
        lane_bases=[[0, 2, 0], [0, 4, 0], *([[0, 0, 0]] * 3)],
        warp_bases=[[0, 0, 0] for _ in _powers(16, UNITS)],
        block_bases=[],
        shape=[UNITS // 16, ROWS, COUNT],
    )


@gluon.constexpr_function
def of_totals(ROWS, COUNT, UNITS, APART):
    """Numbers per row (ROWS, COUNT), the same in all warps: APART over the lanes, or together."""
    numbers = [[0, n] for n in _powers(1, COUNT)]
    lanes = numbers[:3] if APART else []
    return gl.DistributedLinearLayout(
        reg_bases=[n for n in numbers if n not in lanes]
        + [[1, 0]]
        + [[n, 0] for n in _powers(8, ROWS)],
        lane_bases=[[2, 0], [4, 0], *lanes, *([[0, 0]] * (3 - len(lanes)))],
        warp_bases=[[0, 0] for _ in _powers(16, UNITS)],
        block_bases=[],
        shape=[ROWS, COUNT],
    )


@gluon.constexpr_function
def of_slice(ROWS, UNITS, WARPS):
    """A block (ROWS, UNITS) of a program that owns few units: spread over the threads.

    Where there are more threads than values, several have the same one.
    """
    # First what ``publish`` puts together, of two units and two rows.
    bases = [[0, 1], [1, 0]]
    bases += [[0, n] for n in _powers(2, UNITS)] + [[n, 0] for n in _powers(2, ROWS)]
    threads = 5 + len(_powers(1, WARPS))
    free = [[0, 0]] * max(0, threads - len(bases))
    # The first free bit is one of the lanes', so that ``of_halves`` can use it.
    bases = bases[:4] + free[:1] + bases[4:] + free[1:]
    return gl.DistributedLinearLayout(
        reg_bases=bases[threads:],
        lane_bases=bases[:5],
        warp_bases=bases[5:threads],
        block_bases=[],
        shape=[ROWS, UNITS],
    )


@gluon.constexpr_function
def of_partial(WARPS):
    """Partial sums (WARPS, ROWS, UNITS) of a product whose inner dimension the warps split."""
    return gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[WARPS, 1, 1], instr_shape=[1, 16, 8]
    )


@gluon.constexpr_function
def of_halves(ROWS, UNITS, WARPS):
    """Sums before the last addition, both halves of a value in one warp.

    They are (2, ROWS / 8, 8 UNITS), in the order of a product: as the batch has rows 2m and 2m + 1
    next to each other, rows m and m + 8. Made of ``of_slice``: where that has a value in two
    threads, each has a half here.
    """
    parts = of_slice(ROWS, UNITS, WARPS)

    def in_product(basis):
        row, unit = basis
        if row == 1:
            return [0, 1, 0]
        return [0, row // 16 * 2, unit] if row > 8 else [0, 0, row // 2 * UNITS + unit]

    lanes = [in_product(basis) for basis in parts.lane_bases]
    warps = [in_product(basis) for basis in parts.warp_bases]
    registers = [in_product(basis) for basis in parts.reg_bases]
    if [0, 0, 0] in lanes:
        lanes[lanes.index([0, 0, 0])] = [1, 0, 0]
    else:
        registers.append([1, 0, 0])
    return gl.DistributedLinearLayout(
        reg_bases=registers, lane_bases=lanes, warp_bases=warps, block_bases=[],
        shape=[2, ROWS // 8, 8 * UNITS],
    )  # fmt: skip


@gluon.constexpr_function
def of_fragments(TILES, WARPS, dtype):
    """Fragments (TILES, values) as they are read: 16 bytes a thread, of each tile of 16 rows."""
    each = 128 // dtype.primitive_bitwidth
    return gl.DistributedLinearLayout(
        reg_bases=[[0, n] for n in (*_powers(1, each), *_powers(32 * each, 256))]
        + [[n, 0] for n in _powers(1, TILES)],
        lane_bases=[[0, n] for n in _powers(each, 32 * each)],
        warp_bases=[[0, n] for n in _powers(256, 256 * WARPS)],
        block_bases=[],
        shape=[TILES, 256 * WARPS],
    )


@gluon.constexpr_function
def _powers(first, end):
    """``first`` times 1, 2, 4, ... below ``end``."""
    powers = []
    while first < end:
        powers.append(first)
        first *= 2
    return powers


@gluon.jit
def unit_of(m):
    """The unit of row ``m`` of an accumulator: m and m + 8 are neighbours."""
    return m // 16 * 16 + m % 8 * 2 + m // 8 % 2


@gluon.jit
def to_accumulator(block):
    """A block (ROWS, UNITS) as an accumulator, (UNITS, ROWS) in the order of ``unit_of``."""
    ROWS: gl.constexpr = block.shape[0]
    UNITS: gl.constexpr = block.shape[1]
    LAYOUT: gl.constexpr = of_product(UNITS)
    parts = block.reshape(ROWS, UNITS // 16, 8, 2).permute(1, 3, 2, 0).reshape(UNITS, ROWS)
    return gl.convert_layout(parts, LAYOUT, assert_trivial=True)


@gluon.jit
def from_accumulator(accumulator):
    """The reverse of ``to_accumulator``."""
    UNITS: gl.constexpr = accumulator.shape[0]
    ROWS: gl.constexpr = accumulator.shape[1]
    LAYOUT: gl.constexpr = of_block(ROWS, UNITS)
    parts = accumulator.reshape(UNITS // 16, 2, 8, ROWS).permute(3, 0, 2, 1).reshape(ROWS, UNITS)
    return gl.convert_layout(parts, LAYOUT, assert_trivial=True)


@gluon.jit
def halves(operand, AXIS: gl.constexpr):
    """Both halves of an operand along AXIS, its inner dimension: registers of each thread."""
    LAYOUT: gl.constexpr = operand.type.layout
    M: gl.constexpr = operand.shape[0]
    N: gl.constexpr = operand.shape[1]
    if AXIS == 0:
        first, last = operand.reshape(2, M // 2, N).permute(1, 2, 0).split()
    else:
        first, last = operand.reshape(M, 2, N // 2).permute(0, 2, 1).split()
    return (
        gl.convert_layout(first, LAYOUT, assert_trivial=True),
        gl.convert_layout(last, LAYOUT, assert_trivial=True),
    )
