"""Reading and writing blocks (rows, units) in global memory.

An address is a base, which all threads share, and an offset of 32 bits, which is the same at every
step. Padded rows read what the last row does; so no row needs a mask, and only stores have one.
Padded units read zeros.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..blocks import at, index_of, unknown_zero, widened


@gluon.jit
def batch_tile(first_row, B, ROWS: gl.constexpr, LAYOUT: gl.constexpr):
    """The batch tile of a program: its first row, the numbers of its rows, and how many exist."""
    first = first_row + gl.program_id(0).to(gl.int64) * ROWS
    return first, gl.arange(0, ROWS, layout=gl.SliceLayout(1, LAYOUT)), (B - first).to(gl.int32)


@gluon.jit
def unit_tile(UNITS: gl.constexpr, LAYOUT: gl.constexpr):
    """The numbers of the units of a program."""
    return gl.program_id(1) * UNITS + gl.arange(0, UNITS, layout=gl.SliceLayout(0, LAYOUT))


@gluon.jit
def offsets(offs_b, units, STRIDE: gl.constexpr):
    """The offsets of a block whose rows are STRIDE values apart."""
    # Unsigned, an offset of 32 bits is an operand of the load; a signed one would be widened first.
    return (offs_b[:, None] * STRIDE + units[None, :]).to(gl.uint32)


@gluon.jit
def carried_block(
    first_row, B, direction, hidden, H: gl.constexpr, ROWS: gl.constexpr, UNITS: gl.constexpr,
    LAYOUT: gl.constexpr,
):  # fmt: skip
    """Where a program stores its block of a tensor (D, B, H) after the loop over time.

    Computed again, with a zero that the compiler does not know: else it would hold registers.

    Returns:
        The place of its first row, the offsets, which rows exist, and the numbers of its units.
    """
    zero = unknown_zero(hidden, H)
    first_b, tile, left = batch_tile(first_row, B + zero, ROWS, LAYOUT)
    units = unit_tile(UNITS, LAYOUT) + zero
    offs = offsets(gl.minimum(tile + zero, left - 1), units, H)
    own = (direction.to(gl.int64) * (B + zero) + first_b) * H
    return own, offs, tile + zero < left, units


@gluon.jit
def load(ptr, offs, units, H: gl.constexpr):
    """A block, as it is stored."""
    if H % units.shape[0] != 0:
        return gl.load(ptr + offs, mask=(units < H)[None, :], other=0.0)
    else:
        return gl.load(ptr + offs)


@gluon.jit
def load_each(ptrs, base, offs, units, H: gl.constexpr):
    """The block at ``base`` of every tensor of a tuple, as it is stored."""
    blocks = ()
    for i in gl.static_range(len(ptrs)):
        blocks = blocks + (load(ptrs[i] + base, offs, units, H),)
    return blocks


@gluon.jit
def load_gates(ptr, row, offs, units, COUNT: gl.constexpr, H: gl.constexpr):
    """The blocks of all COUNT gates of a row."""
    blocks = ()
    for g in gl.static_range(COUNT):
        blocks = blocks + (load(ptr + (row * COUNT + g) * H, offs, units, H),)
    return blocks


@gluon.jit
def load_others(
    ptr, row, offs, units, COUNT: gl.constexpr, TOTALS: gl.constexpr, H: gl.constexpr
):  # fmt: skip
    """The same of gates that are no totals; in the place of a total is the first of these."""
    FIRST: gl.constexpr = index_of(TOTALS, -1)
    one = load(ptr + (row * COUNT + FIRST) * H, offs, units, H)
    blocks = ()
    for g in gl.static_range(COUNT):
        if at(TOTALS, g) >= 0 or g == FIRST:
            blocks = blocks + (one,)
        else:
            blocks = blocks + (load(ptr + (row * COUNT + g) * H, offs, units, H),)
    return blocks


@gluon.jit
def load_units(ptr, units, H: gl.constexpr, DTYPE: gl.constexpr):
    """The values of a vector of all units, (1, UNITS)."""
    return gl.load(ptr + units, mask=units < H, other=0.0).to(DTYPE)[None, :]


@gluon.jit
def store(ptr, offs, value, mask_b, units, H: gl.constexpr):
    mask = mask_b[:, None] & (units < H)[None, :]
    gl.store(ptr + offs, value.to(ptr.dtype.element_ty), mask=mask)


@gluon.jit
def widen_each(blocks, DTYPE: gl.constexpr):
    """The blocks of a tuple in DTYPE."""
    wide = ()
    for i in gl.static_range(len(blocks)):
        wide = wide + (widened(blocks[i], DTYPE),)
    return wide


@gluon.jit
def only_units(block, units, H: gl.constexpr):
    """A block with zeros in its padded units, for an operand; see ``blocks.only_units``."""
    if H % units.shape[0] != 0:
        return gl.where((units < H)[None, :], block, 0.0)
    else:
        return block
