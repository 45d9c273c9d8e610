"""The streams of a cell in the kernels: those given are loaded, those drawn are computed.

``fused_rnn.cells.draws`` has the generator, and the places of the streams in it.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...cells.draws import Block
from . import registers
from .blocks import at, load_each
from .launch import start


@triton.jit
def load_key(key_ptr, first_b, mask_b, first_unit, direction):
    """What the draws of a program depend on besides the step and the unit, loaded once.

    Args:
        key_ptr: (2 + B,), see ``fused_rnn.cells.draws``; None where nothing is drawn.
        first_b: the first row of the batch tile.
        first_unit, direction: of the layer, those of the program's head.
    """
    if key_ptr is None:
        return ()
    else:
        numbers = key_ptr + 2 + first_b + tl.arange(0, mask_b.shape[0])
        row = tl.load(numbers, mask=mask_b, other=0).to(tl.uint32)[:, None]
        return tl.load(key_ptr), tl.load(key_ptr + 1), row, first_unit, direction


@triton.jit
def load_streams(
    stream_ptrs, rows, mask_b, units, key, time, DRAWN: tl.constexpr, H: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """The block of every stream of a step, in DTYPE.

    Args:
        rows: of (T, B, D, H).
        key: by ``load_key``.
        time: the index of the step.
        DRAWN: see ``wiring.drawn``.
    """
    streams = load_each(stream_ptrs, rows, mask_b, units, H, DTYPE)
    if len(DRAWN) == 0:
        return streams
    else:
        seed, first_step, row, first_unit, direction = key
        unit = (first_unit + units)[None, :]
        return streams + drawn(seed, first_step, row, unit, direction, time, DRAWN, DTYPE)


@triton.jit
def drawn(
    seed, first_step, row, unit, direction, time, DRAWN: tl.constexpr, DTYPE: tl.constexpr
):  # fmt: skip
    """The block of every stream that is drawn, of rows (rows, 1) and units (1, units)."""
    streams = ()
    now = (first_step + time).to(tl.uint32)
    for n in tl.static_range(len(DRAWN)):
        step = now * at(at(DRAWN, n), 1)
        place = (direction + at(at(DRAWN, n), 0)).to(tl.uint32)
        words = tl.philox(seed, unit.to(tl.uint32), row.to(tl.uint32), step, place)
        for i in tl.static_range(len(at(at(DRAWN, n), 2))):
            ones = (words[i] >> 8).to(tl.int32) < at(at(at(DRAWN, n), 2), i)
            streams = streams + (ones.to(DTYPE),)
    return streams


@triton.jit(do_not_specialize=["B"])
def _values_kernel(
    key_ptr,  # (2 + B,)
    times_ptr,  # (N,)
    out_ptr,  # per stream (N, B, D, H)
    B,
    size,  # N * B * D * H
    D: tl.constexpr,
    HEADS: tl.constexpr,
    H: tl.constexpr,
    DRAWN: tl.constexpr,  # one block
    BLOCK_H: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64)
    direction = place % D
    row = tl.load(key_ptr + 2 + place // D % B)
    units = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    step = (tl.load(key_ptr + 1) + tl.load(times_ptr + place // D // B)) * at(DRAWN, 1)
    words = tl.philox(
        tl.load(key_ptr),
        (direction % HEADS * H + units).to(tl.uint32),
        row.to(tl.uint32),
        step.to(tl.uint32),
        (direction // HEADS + at(DRAWN, 0)).to(tl.uint32),
    )
    for i in tl.static_range(len(at(DRAWN, 2))):
        ones = (words[i] >> 8).to(tl.int32) < at(at(DRAWN, 2), i)
        tl.store(out_ptr + i * size + place * H + units, ones.to(tl.int8), mask=units < H)


def values_of(
    block: Block, key: Tensor, times: Tensor, directions: int, hidden: int, heads: int
) -> list[Tensor]:
    """Per stream of a block its values, (N, B, D, H) in int8, in one launch.

    The arguments are those of ``cells.draws.values``.
    """
    shape = (len(times), len(key) - 2, directions, hidden)
    out = torch.empty(len(block.thresholds), *shape, dtype=torch.int8, device=key.device)
    size = out[0].numel()
    if size:
        cdiv: Any = triton.cdiv
        width = min(triton.next_power_of_2(hidden), 1024)
        constants = {
            "D": directions,
            "HEADS": heads,
            "H": hidden,
            "DRAWN": (block.number, int(not block.of_sequence), block.thresholds),
            "BLOCK_H": width,
            "num_warps": 4,
            **registers.limit(registers.MOST, 4),
        }
        with torch.cuda.device_of(key):
            grid = (size // hidden, cdiv(hidden, width), 1)
            start(_values_kernel, grid, [key, times, out, shape[1], size], constants)
    return list(out.unbind())
