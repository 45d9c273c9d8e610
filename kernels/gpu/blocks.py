"""Reading and writing blocks, for the forward and the backward kernel.

A program owns a batch tile of BLOCK_B rows and OWN chunks of BLOCK_H hidden units. In every tensor
the hidden units are the last dim, and the dims before them are one flat row number. So a block is
given by its rows and its units (BLOCK_H,). The rows are a pair: the first row, a scalar in int64,
and the offset of each from it, (BLOCK_B,) in int32. So the part of an address that differs between
threads is small and the same for many tensors; the warp shares the rest. Padding is read as zero:
rows that ``mask_b`` excludes, and units beyond the last, H - 1.

Gates that are adjacent in a tensor are read, multiplied and written as one block, a *band*:
(BLOCK_B, gates · BLOCK_H), one gate's units after the other's. That makes one access and one change
of layout, with its barriers, instead of several. In that layout the warps split the units, so that
a band is split into its gates within registers. Blocks are powers of two, and so is the number of
gates of a band.

Three constants say where a program gets the source of its products and the weights. ALONE: it owns
all units, so the source is its own. KEEP: its weights are loaded once, before the loop over time. A
counter, if there is one: programs pass sources to each other within a launch.
"""

import triton
import triton.language as tl

from .interpreter import compiled


@triton.constexpr_function
def at(values, index):
    """``values[index]`` as a constant, which a subscript of a constant tuple is not."""
    return values[index]


@triton.constexpr_function
def index_of(values, value):
    """The first index at which a tuple has a value. In Triton 3.9 it has no ``index`` here."""
    return next(n for n, other in enumerate(values) if other == value)


@triton.constexpr_function
def first_gate(spans, s):
    """The first gate of stage s."""
    return spans[s][0]


@triton.constexpr_function
def gate_count(spans, s):
    """How many gates stage s has."""
    return spans[s][1] - spans[s][0]


@triton.constexpr_function
def band_bounds(first, last):
    """The bounds of the bands that gates ``first`` to ``last`` fall into: the widest first."""
    bounds = [first]
    while bounds[-1] < last:
        bounds.append(bounds[-1] + (1 << (last - bounds[-1]).bit_length() - 1))
    return tuple(bounds)


@triton.constexpr_function
def among_totals(totals, g):
    """Whether gate g is a sum of all units; ``totals``: see ``wiring.totals``, or () for none."""
    return len(totals) > g and totals[g] >= 0


@triton.constexpr_function
def bands_apart(first, last, totals):
    """The same, with a band of its own for each gate that is a total: see ``wiring.totals``."""
    bounds = [first]
    while bounds[-1] < last:
        begin, end = bounds[-1], bounds[-1]
        while end < last and not among_totals(totals, end):
            end += 1
        bounds += band_bounds(begin, end)[1:] if end > begin else [end + 1]
    return tuple(bounds)


@triton.constexpr_function
def gates_of(bounds, n):
    """How many gates band ``n`` has."""
    return bounds[n + 1] - bounds[n]


@triton.constexpr_function
def halvings(count):
    """How often a power of two can be halved."""
    return count.bit_length() - 1


@triton.constexpr_function
def takes_stage(parts, first, last, s):
    """Whether the parts from ``first`` to before ``last`` have stage s."""
    return parts[first] <= s < parts[last]


@triton.constexpr_function
def takes_gap(parts, first, last, s):
    """Whether they have the gates before stage s, which belong to the stage before it."""
    return first == 0 if s == 0 else parts[first] < s <= parts[last]


@triton.jit
def unknown_zero(hidden, H: tl.constexpr, factor=1):
    """A zero of which the compiler knows only that it is divisible by 16.

    A value that is live across a loop, or from one part of a step to another, holds registers all
    the while, and is spilled if these are few. With this zero added it is a new value, which is
    computed where it is used. To the compiler, zeros of different factors differ.
    """
    return (hidden - H) * factor // 16 * 16


@triton.jit
def columns(first_unit, GATES: tl.constexpr, BLOCK_H: tl.constexpr, H: tl.constexpr):
    """The offsets of a band's columns from the first gate's first unit, and which of them exist."""
    offs = tl.arange(0, GATES * BLOCK_H)
    units = first_unit + offs % BLOCK_H
    return offs // BLOCK_H * H + units, units < H


@triton.jit
def split_band(band, GATES: tl.constexpr):
    """A tuple of the gates of a band, each (BLOCK_B, BLOCK_H)."""
    parts = (band,)
    for _ in tl.static_range(halvings(GATES)):
        halves = ()
        for i in tl.static_range(len(parts)):
            halves = halves + _halve(parts[i])
        parts = halves
    return parts


@triton.jit
def join_band(gates):
    """The band of a tuple of gates, whose number is a power of two."""
    parts = gates
    for _ in tl.static_range(halvings(len(gates))):
        pairs = ()
        for i in tl.static_range(0, len(parts), 2):
            pairs = pairs + (_pair(parts[i], parts[i + 1]),)
        parts = pairs
    return parts[0]


@triton.jit
def _halve(block):
    rows: tl.constexpr = block.shape[0]
    width: tl.constexpr = block.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(block, (rows, 2, width)), (0, 2, 1)))


@triton.jit
def _pair(left, right):
    rows: tl.constexpr = left.shape[0]
    width: tl.constexpr = left.shape[1] * 2
    return tl.reshape(tl.permute(tl.join(left, right), (0, 2, 1)), (rows, width))


@triton.jit
def tile_and_piece(B, BLOCK_B: tl.constexpr, PIECES: tl.constexpr):
    """The number of a program's batch tile in its launch, and of its piece of the steps."""
    if PIECES:
        tiles = tl.cdiv(B, BLOCK_B)
        return tl.program_id(0) % tiles, tl.program_id(0) // tiles
    else:
        return tl.program_id(0), tl.program_id(0) * 0


@triton.jit
def steps_of_piece(piece, T, length):
    """The steps of a piece, from the first to before the last."""
    return piece * length, tl.minimum((piece + 1) * length, T)


@triton.jit
def batch_tile(tile, first_row, B, BLOCK_B: tl.constexpr):
    """A batch tile: its first row, the offsets of its rows, and which exist."""
    first = first_row + tile.to(tl.int64) * BLOCK_B
    offs_b = tl.arange(0, BLOCK_B)
    return first, offs_b, offs_b < tl.minimum(B - first, BLOCK_B).to(tl.int32)


@triton.jit
def part_of(rows, PARTS: tl.constexpr, part: tl.constexpr):
    """The rows with number ``part`` of a tensor that has PARTS rows for each of these."""
    return rows[0] * PARTS + part, rows[1] * PARTS


@triton.jit
def place(ptr, rows, offs, H: tl.constexpr):
    """The addresses (rows, columns)."""
    return ptr + rows[0] * H + ((rows[1] * H)[:, None] + offs[None, :])


@triton.jit
def widened(block, DTYPE: tl.constexpr):
    """The block in DTYPE. Of a pair of bfloat16 values a shift and a mask make two of float32.

    The compiler takes a pair apart first, which is an instruction more. But the loads of the block
    are waited for where this stands; so it is for blocks that are there already.
    """
    if compiled() and block.dtype == tl.bfloat16:  # which is computed with in float32
        return tl.inline_asm_elementwise(
            "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=r,=r,r", [block],
            dtype=tl.float32, is_pure=True, pack=2,
        )  # fmt: skip
    else:
        return block.to(DTYPE)


@triton.jit
def load_block(ptr, rows, mask_b, units, H: tl.constexpr):
    """(rows, units)."""
    mask = mask_b[:, None] & (units < H)[None, :]
    return tl.load(place(ptr, rows, units, H), mask=mask, other=0.0)


@triton.jit
def load_band(
    ptr, rows, mask_b, first_unit, GATES: tl.constexpr, BLOCK_H: tl.constexpr, H: tl.constexpr
):  # fmt: skip
    """(rows, GATES · BLOCK_H), from the gate that the rows belong to."""
    offs, inside = columns(first_unit, GATES, BLOCK_H, H)
    mask = mask_b[:, None] & inside[None, :]
    return tl.load(place(ptr, rows, offs, H), mask=mask, other=0.0)


@triton.jit
def load_passed(ptr, rows, mask_b, offs, WIDTH: tl.constexpr, H: tl.constexpr):
    """Load columns of rows of WIDTH values that other programs store.

    Bypasses the L1 cache, which may hold older values.
    """
    mask = mask_b[:, None] & (offs < WIDTH)[None, :]
    return tl.load(place(ptr, rows, offs, H), mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def store_block(ptr, rows, mask_b, units, value, H: tl.constexpr):
    value = value.to(ptr.dtype.element_ty)
    mask = mask_b[:, None] & (units < H)[None, :]
    tl.store(place(ptr, rows, units, H), value, mask=mask)


@triton.jit
def store_band(ptr, rows, mask_b, first_unit, band, BLOCK_H: tl.constexpr, H: tl.constexpr):
    band = band.to(ptr.dtype.element_ty)
    offs, inside = columns(first_unit, band.shape[1] // BLOCK_H, BLOCK_H, H)
    mask = mask_b[:, None] & inside[None, :]
    tl.store(place(ptr, rows, offs, H), band, mask=mask)


@triton.jit
def store_bands(
    pre_ptr, rows, mask_b, products, firsts, G: tl.constexpr, H: tl.constexpr,
    BANDS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Store the bands of each chunk, which lie between BANDS."""
    for j in tl.static_range(len(firsts)):
        for n in tl.static_range(len(BANDS) - 1):
            gates = part_of(rows, G, at(BANDS, n))
            store_band(pre_ptr, gates, mask_b, firsts[j], products[j][n], BLOCK_H, H)


@triton.jit
def store_gates(
    ptr, rows, mask_b, gates, firsts, chunks, G: tl.constexpr, H: tl.constexpr,
    TOTALS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Store all G gates of each chunk, by bands; a total once per unit."""
    BANDS: tl.constexpr = bands_apart(0, G, TOTALS)
    for j in tl.static_range(len(firsts)):
        for n in tl.static_range(len(BANDS) - 1):
            place = part_of(rows, G, at(BANDS, n))
            if among_totals(TOTALS, at(BANDS, n)):
                store_block(ptr, place, mask_b, chunks[j], gates[j][at(BANDS, n)], H)
            else:
                parts = ()
                for g in tl.static_range(at(BANDS, n), at(BANDS, n + 1)):
                    parts = parts + (gates[j][g],)
                store_band(ptr, place, mask_b, firsts[j], join_band(parts), BLOCK_H, H)


@triton.jit
def store_states(ptrs, rows, mask_b, chunks, states, H: tl.constexpr, ALL: tl.constexpr):
    """Store the states of each chunk, or only the first."""
    for j in tl.static_range(len(chunks)):
        for i in tl.static_range(len(ptrs)):
            if ALL or i == 0:
                store_block(ptrs[i], rows, mask_b, chunks[j], states[j][i], H)


@triton.jit
def load_each(ptrs, rows, mask_b, units, H: tl.constexpr, DTYPE: tl.constexpr):
    """The block of every tensor of a tuple, in DTYPE."""
    blocks = ()
    for i in tl.static_range(len(ptrs)):
        blocks = blocks + (load_block(ptrs[i], rows, mask_b, units, H).to(DTYPE),)
    return blocks


@triton.jit
def load_units(ptrs, direction, units, H: tl.constexpr, DTYPE: tl.constexpr):
    """The (1, BLOCK_H) of every (D, H) tensor of a tuple, in DTYPE."""
    blocks = ()
    for i in tl.static_range(len(ptrs)):
        value = tl.load(ptrs[i] + direction * H + units, mask=units < H, other=0.0)
        blocks = blocks + (value.to(DTYPE)[None, :],)
    return blocks


@triton.constexpr_function
def keeps_params(count):
    """Whether a program keeps this many params, and the sums of their gradients, in registers.

    More are loaded at each use, and their gradients are added up in memory.
    """
    return count <= 4


@triton.jit
def kept_params(ptrs, direction, units, H: tl.constexpr, DTYPE: tl.constexpr):
    """The params to keep for the whole sequence: all or none."""
    if keeps_params(len(ptrs)):
        return load_units(ptrs, direction, units, H, DTYPE)
    else:
        return ()


@triton.jit
def params_of(kept, ptrs, direction, units, H: tl.constexpr, DTYPE: tl.constexpr):
    """All params, (1, BLOCK_H) each, of what ``kept_params`` has returned."""
    if keeps_params(len(ptrs)):
        return kept
    else:
        return load_units(ptrs, direction, units, H, DTYPE)


@triton.jit
def load_gate(ptr, rows, mask_b, units, TOTAL: tl.constexpr, H: tl.constexpr):
    """A gate (BLOCK_B, BLOCK_H); one that is a sum of all units from its first, (BLOCK_B, 1)."""
    if TOTAL:
        first = ptr + rows[0] * H + (rows[1] * H)[:, None]
        return tl.load(first, mask=mask_b[:, None], other=0.0)
    else:
        return load_block(ptr, rows, mask_b, units, H)


@triton.jit
def as_blocks(values, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """The values of a tuple, some of which may be one per row or per unit, as whole blocks."""
    blocks = ()
    for i in tl.static_range(len(values)):
        blocks = blocks + (tl.broadcast_to(values[i], (BLOCK_B, BLOCK_H)),)
    return blocks


@triton.constexpr_function
def program_count(H, own, block_h):
    """How many programs a row has."""
    return -(-H // (own * block_h))


@triton.constexpr_function
def end_of_chunk(j, H, own, block_h):
    """One past the last unit of chunk j, padded ones too, of the last program of a row."""
    return ((program_count(H, own, block_h) - 1) * own + j + 1) * block_h


@triton.jit
def only_units(block, units, END: tl.constexpr, H: tl.constexpr):
    """A block (rows, units) with zeros in its padded units; END: one past its last unit.

    For operands of a product. In padded units a cell computes with zeros, and the results may be
    infinite or NaN. Multiplied by the zeros of a weight's tile, they would make every unit NaN.
    Padded rows need no mask, since no product or sum mixes rows.
    """
    if END > H:
        return tl.where((units < H)[None, :], block, 0.0)
    else:
        return block


@triton.jit
def load_weight(ptr, outputs, inputs, mask, H: tl.constexpr):
    """A tile of a matrix (n, H), transposed if ``outputs`` is (1, n) and ``inputs`` (m, 1)."""
    return tl.load(ptr + outputs.to(tl.int64) * H + inputs, mask=mask, other=0.0)


@triton.jit
def add_each(a, b):
    """The elementwise sum of two tuples; elements of ``a`` beyond the end of ``b`` stay."""
    total = ()
    for i in tl.static_range(len(a)):
        if i < len(b):
            total = total + (a[i] + b[i],)
        else:
            total = total + (a[i],)
    return total


@triton.jit
def scaled(a, b):
    """a · b, and zero if either is, where the other has grown beyond all numbers."""
    return tl.where((a == 0) | (b == 0), 0.0, a * b)


@triton.jit
def replace(blocks, index: tl.constexpr, value):
    """The tuple with another element at ``index``."""
    return blocks[:index] + (value,) + blocks[index + 1 :]
