"""How sources of products, or gradients of gates, get from the threads that compute them to those
that multiply.

A program that owns all units has places for them in shared memory: two for each block, in turns,
since the slowest warp may still read that of one step while the fastest writes that of the next.

Programs that own slices have them in global memory, as fragments, in places of its own for each
step. They need no barrier, since each value says itself that it is there; see published.py.
"""

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .gathered import in_fragments, padded
from .layouts import of_passed
from .memory import only_units
from .published import publish


@gluon.jit
def places_of(
    ptr, B, direction, first_b, COUNT: gl.constexpr, D: gl.constexpr, H: gl.constexpr,
    DTYPE: gl.constexpr, ROWS: gl.constexpr, UNITS: gl.constexpr, ALONE: gl.constexpr,
):  # fmt: skip
    """The places of COUNT blocks, for ``places_at``.

    ptr: (steps, COUNT, D, rows, units) in fragments, with whole batch tiles; see ``passed_on``.
    """
    if ALONE:
        return shared_places(COUNT, ROWS, UNITS, DTYPE), shared_places(COUNT, ROWS, UNITS, DTYPE)
    else:
        ALL: gl.constexpr = padded(H, gl.num_warps())
        size = (B + ROWS - 1).to(gl.int64) // ROWS * (ROWS * ALL)
        return ptr + first_b * ALL + direction * size, D * size


@gluon.jit
def places_at(places, STEP: gl.constexpr, COUNT: gl.constexpr, ALONE: gl.constexpr):
    """The places of COUNT blocks at STEP, counted from that which ``places`` begin with."""
    if ALONE:
        return places[STEP % 2]
    else:
        ptr, size = places
        found = ()
        for i in gl.static_range(COUNT):
            found = found + (ptr + (STEP * COUNT + i) * size,)
        return found


@gluon.jit
def places_after(places, STEPS: gl.constexpr, COUNT: gl.constexpr, ALONE: gl.constexpr):
    """``places`` that begin STEPS steps later."""
    if ALONE:
        return places
    else:
        return places[0] + STEPS * COUNT * places[1], places[1]


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
def pass_on(place, block, offs, units, H: gl.constexpr, ALONE: gl.constexpr):
    """Put a block into a place, padded rows and units included."""
    block = only_units(block, units, H)
    if ALONE:
        place.store(block.to(place.dtype))
    else:
        publish(place, block, offs)


@gluon.jit
def meet(ALONE: gl.constexpr):
    """Let the other warps read what this one has passed on, if they have no way to see it."""
    if ALONE:
        tl.debug_barrier()
