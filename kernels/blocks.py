"""Reading and writing blocks: what the forward and the backward kernel share.

A program owns a batch tile of BLOCK_B rows and OWN chunks of BLOCK_H hidden units. In every tensor
the hidden units are last; what stands before them is one flat row number, so a block is named by
its rows (BLOCK_B,), in int64, and its units (BLOCK_H,).

How a program comes by the source of its products, and by the weights, is three constants: ALONE, it
owns all units, so the source is its own; KEEP, its weights are loaded once, before the loop over
time; and whether there is a counter, for programs that pass sources to each other in one launch.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def at(values, index):
    """``values[index]`` as a constant, which a subscript of a constant tuple is not."""
    return values[index]


@triton.jit
def load_block(ptr, rows, units, mask, H: tl.constexpr):
    """(BLOCK_B, BLOCK_H), zero outside the mask."""
    return tl.load(ptr + rows[:, None] * H + units[None, :], mask=mask, other=0.0)


@triton.jit
def load_passed(ptr, rows, units, mask, H: tl.constexpr):
    """The same of what other programs store: past the L1 cache, which may have older values."""
    place = ptr + rows[:, None] * H + units[None, :]
    return tl.load(place, mask=mask, other=0.0, cache_modifier=".cg")


@triton.jit
def store_block(ptr, rows, units, mask, value, H: tl.constexpr):
    value = value.to(ptr.dtype.element_ty)
    tl.store(ptr + rows[:, None] * H + units[None, :], value, mask=mask)


@triton.jit
def load_each(ptrs, rows, units, mask, H: tl.constexpr, DTYPE: tl.constexpr):
    """The block of every tensor of a tuple, in DTYPE."""
    blocks = ()
    for i in tl.static_range(len(ptrs)):
        blocks = blocks + (load_block(ptrs[i], rows, units, mask, H).to(DTYPE),)
    return blocks


@triton.jit
def load_units(ptrs, direction, units, H: tl.constexpr, DTYPE: tl.constexpr):
    """The (1, BLOCK_H) of every (D, H) tensor of a tuple, in DTYPE."""
    blocks = ()
    for i in tl.static_range(len(ptrs)):
        value = tl.load(ptrs[i] + direction * H + units, mask=units < H, other=0.0)
        blocks = blocks + (value.to(DTYPE)[None, :],)
    return blocks


@triton.jit
def weight_blocks(chunks, ALONE: tl.constexpr, H: tl.constexpr, BLOCK_K: tl.constexpr):
    """The inner dimension of a product with kept weights, as a tuple of units (n,)."""
    if ALONE:
        return chunks
    else:
        blocks = ()
        for k in tl.static_range((H + BLOCK_K - 1) // BLOCK_K):
            blocks = blocks + (k * BLOCK_K + tl.arange(0, BLOCK_K),)
        return blocks


@triton.jit
def load_weight(ptr, outputs, inputs, H: tl.constexpr, first):
    """A tile of an (H, H) matrix whose first row is row number ``first`` of ``ptr``.

    ``outputs`` and ``inputs`` are (n, 1) and (1, m) or the other way round; the tile's shape, and
    so whether it is transposed, follows from that.
    """
    offsets = (first + outputs).to(tl.int64) * H + inputs
    return tl.load(ptr + offsets, mask=(outputs < H) & (inputs < H), other=0.0)


@triton.jit
def add_each(a, b):
    """Two tuples, element by element; those of ``a`` beyond the end of ``b`` stay."""
    total = ()
    for i in tl.static_range(len(a)):
        if i < len(b):
            total = total + (a[i] + b[i],)
        else:
            total = total + (a[i],)
    return total
