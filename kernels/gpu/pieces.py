"""The states that pieces of a sequence begin with, of cells that are linear in their states.

Over a piece of the steps such a cell maps the states s of a unit to A s + b. One kernel computes A
and b of all pieces at once, each by a walk over its steps: b is what the states become from zero,
and A the product of the steps' Jacobians. A second kernel composes the maps of all pieces before
each one, by an associative scan over pieces. Then the kernel of every cell runs, with each piece as
a sequence of its own.

The backward is the same on the way back. Gradients of states are linear in later ones, whatever
the cell is.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...cells import Cell, graphs
from ...numerics import accumulator, form
from ...plan import Launch
from . import registers, wiring
from .backward_arguments import arguments_of
from .blocks import (
    add_each,
    at,
    batch_tile,
    load_block,
    load_units,
    part_of,
    scaled,
    steps_of_piece,
    store_block,
    tile_and_piece,
)
from .draws import load_key, load_streams
from .emit import composition, emit
from .launch import describe, prepare, start

# Not a parameter's default: Triton 3.6 has no tuples there.
_NO_TOTALS = tl.constexpr(())


@triton.jit(do_not_specialize=["T", "B", "length"])
def _forward_maps_kernel(
    x_ptr,  # (T, B, D, X, H)
    param_ptrs,  # each (D, H)
    stream_ptrs,  # each (T, B, D, H)
    key_ptr,  # (2 + B,) of what the cell draws; else None
    map_ptrs,  # N², row by row, (pieces, D, B, H)
    offset_ptrs,  # N, (pieces, D, B, H)
    T,
    B,
    length,  # steps of a piece
    D: tl.constexpr,
    HEADS: tl.constexpr,
    H: tl.constexpr,
    X: tl.constexpr,
    X_INDEX: tl.constexpr,  # per gate its place in x
    STATES: tl.constexpr,
    CARRIED: tl.constexpr,  # the N states that a step reads
    ZEROS: tl.constexpr,  # of the entries of a Jacobian, those that are always zero
    DRAWN: tl.constexpr,  # see wiring.py
    STEP: tl.constexpr,  # the cell, see emit.Emitted
    JACOBIAN: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    DTYPE: tl.constexpr,  # of the arithmetic
):
    N: tl.constexpr = len(CARRIED)
    direction = tl.program_id(2)
    walks_back = (direction // HEADS == 1) != REVERSE
    tile, piece = tile_and_piece(B, BLOCK_B, True)
    first_b, offs_b, mask_b = batch_tile(tile, 0, B, BLOCK_B)
    key = load_key(key_ptr, first_b, mask_b, direction % HEADS * H, direction // HEADS)
    own_rows = ((piece * D + direction).to(tl.int64) * B + first_b, offs_b)  # of (pieces, D, B, H)
    offs_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    params = load_units(param_ptrs, direction, offs_h, H, DTYPE)
    maps = _identity(N, BLOCK_B, BLOCK_H, DTYPE)
    state = _zeros(STATES, BLOCK_B, BLOCK_H, DTYPE)
    begin, end = steps_of_piece(piece, T, length)
    for t in tl.range(begin, end, num_stages=1):
        time = tl.where(walks_back, T - 1 - t, t).to(tl.int64)
        rows = ((time * B + first_b) * D + direction, offs_b * D)  # of (T, B, D, H)
        pre = ()
        for g in tl.static_range(len(X_INDEX)):
            gate = load_block(x_ptr, part_of(rows, X, at(X_INDEX, g)), mask_b, offs_h, H)
            pre = pre + (gate.to(DTYPE),)
        streams = load_streams(stream_ptrs, rows, mask_b, offs_h, key, time, DRAWN, H, DTYPE)
        maps = _after(JACOBIAN(pre, state, params, streams, t), maps, N, ZEROS, False)
        state = STEP(pre, state, params, streams, t)
    _store(map_ptrs, offset_ptrs, own_rows, mask_b, offs_h, maps, state, CARRIED, H)


@triton.jit(do_not_specialize=["T", "B", "length"])
def _backward_maps_kernel(
    param_ptrs,  # each (D, H)
    stream_ptrs,  # each (T, B, D, H)
    key_ptr,  # (2 + B,) of what the cell draws; else None
    initial_ptrs,  # per state (D, B, H), in the dtype of its sequence
    sequence_ptrs,  # per state (T, B, D, H)
    pre_ptr,  # (T, B, D, G, H)
    dsequence_ptrs,  # per state (T, B, D, H) or None
    last_ptrs,  # per state (pieces, D, B, H), or None where it is carried
    map_ptrs,  # N², row by row, (pieces, D, B, H)
    offset_ptrs,  # N, (pieces, D, B, H)
    T,
    B,
    length,  # steps of a piece
    D: tl.constexpr,
    HEADS: tl.constexpr,
    H: tl.constexpr,
    G: tl.constexpr,
    STATES: tl.constexpr,
    CARRIED: tl.constexpr,  # the N states that a step reads
    ZEROS: tl.constexpr,  # of the entries of a Jacobian, those that are always zero
    DRAWN: tl.constexpr,  # see wiring.py
    STEP_VJP: tl.constexpr,  # the cell, see emit.Emitted
    JACOBIAN: tl.constexpr,
    REVERSE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    DTYPE: tl.constexpr,  # of the arithmetic
):
    N: tl.constexpr = len(CARRIED)
    direction = tl.program_id(2)
    walks_back = (direction // HEADS == 1) != REVERSE
    tile, piece = tile_and_piece(B, BLOCK_B, True)
    first_b, offs_b, mask_b = batch_tile(tile, 0, B, BLOCK_B)
    key = load_key(key_ptr, first_b, mask_b, direction % HEADS * H, direction // HEADS)
    unit_rows = (direction.to(tl.int64) * B + first_b, offs_b)  # of (D, B, H)
    own_rows = ((piece * D).to(tl.int64) * B + unit_rows[0], offs_b)  # of (pieces, D, B, H)
    first_unit = tl.program_id(1) * BLOCK_H
    offs_h = first_unit + tl.arange(0, BLOCK_H)
    params = load_units(param_ptrs, direction, offs_h, H, DTYPE)
    maps = _identity(N, BLOCK_B, BLOCK_H, DTYPE)
    dstate = ()  # from zero, but for what is given of states that no step reads
    for i in tl.static_range(STATES):
        if last_ptrs[i] is None:
            dstate = dstate + (tl.zeros((BLOCK_B, BLOCK_H), DTYPE),)
        else:
            dstate = dstate + (load_block(last_ptrs[i], own_rows, mask_b, offs_h, H).to(DTYPE),)
    begin, end = steps_of_piece(piece, T, length)
    for back in tl.range(begin, end, num_stages=1):
        t = T - 1 - back
        time = tl.where(walks_back, back, t).to(tl.int64)
        step = tl.where(walks_back, -1, 1).to(tl.int64)
        rows = ((time * B + first_b) * D + direction, offs_b * D)  # of (T, B, D, H)
        before = (rows[0] - step * B * D, rows[1])
        pre, state, streams = arguments_of(
            pre_ptr, sequence_ptrs, initial_ptrs, stream_ptrs, rows, before, unit_rows, mask_b, t,
            first_unit, offs_h, key, time, DRAWN, H, G, G, DTYPE, _NO_TOTALS,
        )
        total = ()
        for i in tl.static_range(STATES):
            d = dstate[i]
            if dsequence_ptrs[i] is not None:
                d += load_block(dsequence_ptrs[i], rows, mask_b, offs_h, H).to(DTYPE)
            total = total + (d,)
        maps = _after(JACOBIAN(pre, state, params, streams, t), maps, N, ZEROS, True)
        out = STEP_VJP(pre, state, params, streams, t, total)
        dstate = add_each(_zeros(STATES, BLOCK_B, BLOCK_H, DTYPE), out[G : G + STATES])
    _store(map_ptrs, offset_ptrs, own_rows, mask_b, offs_h, maps, dstate, CARRIED, H)


@triton.jit(do_not_specialize=["pieces", "size"])
def _compose_kernel(
    map_ptrs,  # N², row by row, (pieces, size)
    offset_ptrs,  # N, (pieces, size)
    start_ptrs,  # N, (pieces + 1, size); the first rows are given
    pieces,
    size,
    COMPOSE: tl.constexpr,
    PIECES: tl.constexpr,  # a power of two, at least ``pieces``
    BLOCK: tl.constexpr,
):
    N: tl.constexpr = len(offset_ptrs)
    offs_p = tl.arange(0, PIECES).to(tl.int64)
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = (offs_p < pieces)[:, None] & (offs < size)[None, :]
    places = offs_p[:, None] * size + offs[None, :]
    parts = ()
    for i in tl.static_range(len(map_ptrs)):
        parts = parts + (tl.load(map_ptrs[i] + places, mask=mask, other=0.0),)
    for i in tl.static_range(N):
        parts = parts + (tl.load(offset_ptrs[i] + places, mask=mask, other=0.0),)
    parts = COMPOSE(parts)
    for i in tl.static_range(N):
        value = parts[len(map_ptrs) + i]
        for k in tl.static_range(N):
            first = tl.load(start_ptrs[k] + offs, mask=offs < size, other=0.0)[None, :]
            value += scaled(parts[i * N + k], first)
        tl.store(start_ptrs[i] + size + places, value, mask=mask)


@triton.jit
def _identity(N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, DTYPE: tl.constexpr):
    entries = ()
    for i in tl.static_range(N * N):
        entry = tl.full((BLOCK_B, BLOCK_H), 1.0 if i % (N + 1) == 0 else 0.0, DTYPE)
        entries = entries + (entry,)
    return entries


@triton.jit
def _zeros(
    COUNT: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    blocks = ()
    for _ in tl.static_range(COUNT):
        blocks = blocks + (tl.zeros((BLOCK_B, BLOCK_H), DTYPE),)
    return blocks


@triton.constexpr_function
def _place(i, j, n, transposed):
    """The place of an entry of a matrix, or of the transposed one, stored row by row."""
    return j * n + i if transposed else i * n + j


@triton.jit
def _after(
    jacobian, maps, N: tl.constexpr, ZEROS: tl.constexpr, TRANSPOSED: tl.constexpr
):  # fmt: skip
    """The product of a Jacobian, or its transposed, with the map of the steps before."""
    entries = ()
    for i in tl.static_range(N):
        for k in tl.static_range(N):
            entry = tl.zeros_like(maps[0])
            for j in tl.static_range(N):
                if not at(ZEROS, _place(i, j, N, TRANSPOSED)):
                    entry += scaled(jacobian[_place(i, j, N, TRANSPOSED)], maps[j * N + k])
            entries = entries + (entry,)
    return entries


@triton.jit
def _store(
    map_ptrs, offset_ptrs, rows, mask_b, offs_h, maps, state, CARRIED: tl.constexpr,
    H: tl.constexpr,
):  # fmt: skip
    for i in tl.static_range(len(map_ptrs)):
        store_block(map_ptrs[i], rows, mask_b, offs_h, maps[i], H)
    for i in tl.static_range(len(CARRIED)):
        store_block(offset_ptrs[i], rows, mask_b, offs_h, state[at(CARRIED, i)], H)


def first_states(
    cell: Cell,
    launch: Launch,
    x: Tensor,
    params: list[Tensor],
    streams: list[Tensor],
    key: Tensor | None,
    initial: list[Tensor],
    reverse: bool,
    heads: int,
) -> list[Tensor]:
    """The states that each piece of a forward begins with.

    Args:
        x: (T, B, D, X, H).
        key: of what the cell draws, see ``wiring.apart``.
        initial: per state (D, B, H), in the dtype of the arithmetic.

    Returns:
        Per state (pieces, D, B, H). Of a launch with one piece, the initial states.
    """
    constants = {"X": len(cell.x_gates), "X_INDEX": cell.x_index}
    constants["STEP"] = emit(cell, form(x.dtype), accumulator(x.dtype)).step
    tensors = prepare(x, params, streams, key)
    return _starts(
        _forward_maps_kernel, cell, launch, tensors, x, initial, reverse, heads, constants
    )


def last_gradients(
    cell: Cell,
    launch: Launch,
    params: list[Tensor],
    streams: list[Tensor],
    key: Tensor | None,
    initial: list[Tensor],
    sequences: list[Tensor],
    pre: Tensor,
    dsequences: list[Tensor | None],
    dfinals: list[Tensor],
    reverse: bool,
    heads: int,
) -> list[Tensor]:
    """The gradients of the states after each piece of a backward, whose first piece is the last.

    Returns:
        Per state (pieces, D, B, H). Of a launch with one piece, ``dfinals``.
    """
    constants = {"G": len(cell.gates)}
    constants["STEP_VJP"] = emit(cell, form(pre.dtype), accumulator(pre.dtype)).step_vjp
    tensors = prepare(params, streams, key, initial, sequences, pre, dsequences)
    return _starts(
        _backward_maps_kernel, cell, launch, tensors, pre, dfinals, reverse, heads, constants
    )


# Of what ``describe`` has, what these kernels take.
_CONSTANTS = ("D", "HEADS", "H", "REVERSE", "BLOCK_B", "BLOCK_H", "DTYPE", "num_warps", "maxnreg")
# Values of one column that a program of the second kernel composes.
_BLOCK = 8


def _starts(kernel, cell, launch, tensors, like, given, reverse, heads, constants):
    """The values that each piece begins with, of which those of the first are given."""
    steps, batch, directions, hidden = *like.shape[:3], like.shape[-1]
    pieces, length = launch.cut(steps)
    if pieces == 1:
        return [value[None] for value in given]
    carried = graphs.carried(cell)
    count, wide = len(carried), given[0].dtype
    # Of the other states no step reads what a piece begins with.
    starts = [value.new_zeros(pieces, *value.shape) for value in given]
    for start_of, value in zip(starts, given, strict=True):
        start_of[0] = value
    shape = (pieces - 1, directions, batch, hidden)  # the last piece is followed by none
    maps = tuple(given[0].new_empty(shape) for _ in range(count**2))
    offsets = tuple(given[0].new_empty(shape) for _ in range(count))
    described = describe(cell, launch, directions, heads, hidden, like.dtype, reverse)
    constants = constants | {name: described[name] for name in _CONSTANTS}
    constants |= {
        "STATES": len(cell.states),
        "CARRIED": carried,
        "DRAWN": wiring.drawn(cell),
        "ZEROS": graphs.zeros(cell, "jacobian"),
        "JACOBIAN": emit(cell, form(like.dtype), wide).jacobian,
    }
    if kernel is _backward_maps_kernel:
        tensors.append(tuple(None if i in carried else s for i, s in enumerate(starts)))
    tiles, slices = (-(-n // m) for n, m in ((batch, launch.block_b), (hidden, launch.block_h)))
    grid = (tiles * (pieces - 1), slices, directions)
    with torch.cuda.device_of(like):  # Triton launches on the current device
        start(kernel, grid, [*tensors, maps, offsets, steps, batch, length], constants)
        size, block = directions * batch * hidden, _BLOCK >> (count - 1)
        constants = {
            "COMPOSE": composition(count),
            "PIECES": triton.next_power_of_2(launch.pieces),
            "BLOCK": block,
            **registers.limit(registers.MOST, 4),
        }
        own = tuple(starts[i] for i in carried)
        arguments = [maps, offsets, own, pieces - 1, size]
        start(_compose_kernel, (-(-size // block), 1, 1), arguments, constants)
    return starts
