"""How sources of products, or gradients of gates, get from the threads that compute them to those
that multiply.

A program that owns all units has places for them in shared memory. Programs that own slices have
them in global memory, as fragments, and meet at a counter. Each block has two places, in turns:
while the slowest still reads that of one step, the fastest may write that of the next.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..sync import arrive
from .gathered import in_fragments, padded
from .layouts import of_passed
from .memory import only_units


@gluon.jit
def places_of(
    ptr, B, direction, first_b, COUNT: gl.constexpr, D: gl.constexpr, H: gl.constexpr,
    DTYPE: gl.constexpr, ROWS: gl.constexpr, UNITS: gl.constexpr, ALONE: gl.constexpr,
):  # fmt: skip
    """The places of COUNT blocks: those of even steps, and those of odd ones.

    ptr: (COUNT, 2, D, rows, units) in fragments, with whole batch tiles.
    """
    even, odd = (), ()
    if ALONE:
        even = shared_places(COUNT, ROWS, UNITS, DTYPE)
        odd = shared_places(COUNT, ROWS, UNITS, DTYPE)
    else:
        WARPS: gl.constexpr = gl.num_warps()
        ALL: gl.constexpr = padded(H, WARPS)
        size = (B + ROWS - 1).to(gl.int64) // ROWS * (ROWS * ALL)
        for i in gl.static_range(COUNT):
            own = first_b * ALL + direction * size
            even = even + (ptr + 2 * i * D * size + own,)
            odd = odd + (ptr + (2 * i + 1) * D * size + own,)
    return even, odd


@gluon.jit
def offsets_in_place(rows, units, H: gl.constexpr, DTYPE: gl.constexpr, ALONE: gl.constexpr):
    """Where ``pass_on`` puts the values of a block."""
    if ALONE:
        return ()
    else:
        return in_fragments(rows, units, H, gl.num_warps(), DTYPE)


@gluon.jit
def shared_places(
    COUNT: gl.constexpr, ROWS: gl.constexpr, UNITS: gl.constexpr, DTYPE: gl.constexpr
):
    """COUNT places in shared memory for a block each."""
    LAYOUT: gl.constexpr = of_passed(DTYPE)
    found = ()
    for _ in gl.static_range(COUNT):
        found = found + (gl.allocate_shared_memory(DTYPE, [ROWS, UNITS], LAYOUT),)
    return found


@gluon.jit
def pass_on(place, block, offs, units, mask_b, H: gl.constexpr, ALONE: gl.constexpr):
    """Put a block into a place."""
    if ALONE:
        place.store(only_units(block, units, H).to(place.dtype))
    else:
        mask = mask_b[:, None] & (units < H)[None, :]
        gl.store(place + offs, block.to(place.dtype.element_ty), mask=mask)


@gluon.jit
def meet(counter_ptr, SOME: gl.constexpr, ALONE: gl.constexpr):
    """Let others read what this thread has passed on, if there is SOME."""
    if ALONE:
        tl.debug_barrier()
    elif SOME:
        arrive(counter_ptr)
