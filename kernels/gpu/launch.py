"""Launching the forward and the backward kernel: constants, grids and barriers."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import numerics, once
from ...cells import Cell
from ...numerics import accumulator
from ...plan import Launch
from . import interpreter, registers

_cdiv: Any = triton.cdiv  # declared for the language's constants; it takes ints as well

interpreter.repair_if_used()

_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
# Elements between two counters, so that each has a cache line of its own.
_COUNTER = 128 // 8


def describe(
    cell: Cell,
    launch: Launch,
    directions: int,
    heads: int,
    hidden: int,
    dtype: torch.dtype,
    reverse: bool,
) -> dict:
    """Compute the constants that both kernels take.

    Args:
        directions: those of the layer times its heads.
        heads: of each direction of the layer.
    """
    precision, warps = input_precision(dtype), launch.num_warps
    if dtype == torch.float32 and precision == "ieee":
        warps = launch.exact_warps or warps
    most = launch.explicit or not launch.keeps_weights
    return {
        "D": directions,
        "HEADS": heads,
        "H": hidden,
        "REVERSE": reverse,
        "PIECES": launch.pieces is not None,
        "ALONE": launch.alone,
        "KEEP": launch.keeps_weights,
        "OWN": launch.own,
        "BLOCK_B": launch.block_b,
        "BLOCK_H": launch.block_h,
        "BLOCK_K": launch.block_k,
        "COUNTER": _COUNTER,
        "PRECISION": precision,
        "DTYPE": _DTYPES[accumulator(dtype)],
        "num_warps": warps,
        "num_stages": 1,
        # With all registers these kernels seldom spill; for the others see ``registers``. To save
        # registers for more programs, the assembler would load operands one by one.
        **(registers.limit(registers.MOST, warps) if most else {}),
    }


def prepare(*arguments: Tensor | list[Tensor] | None) -> list:
    """Prepare tensors, or lists of them, for a kernel: contiguous, lists as tuples."""
    return [
        tuple(map(_contiguous, a)) if isinstance(a, list) else _contiguous(a) for a in arguments
    ]


def launch_all(
    kernel: Any, launch: Launch, tensors: list, like: Tensor, parts: int, constants: dict
) -> None:
    """Run a kernel over a whole sequence, in one launch or in several as the strategy needs.

    Args:
        like: a tensor (T, B, D, ..., H) of the problem.
        parts: the number of parts of a step: stages of the forward, phases of the backward.

    Raises:
        RuntimeError: programs would wait for each other in an interpreter that runs them one
            after the other.
    """
    steps, batch, directions, hidden = *like.shape[:3], like.shape[-1]
    tiles = _cdiv(batch, launch.block_b)
    slices = launch.programs(hidden)
    at_once, counters, cooperative = tiles, None, {}
    if launch.waits:
        if interpreter.one_by_one() and slices > 1:
            raise RuntimeError(
                f'strategy "{launch.strategy}": {slices} programs wait for each other, but '
                "Triton's interpreter runs one after the other"
            )
        if not launch.explicit:
            # Zeroed on the stream, so that a captured graph zeroes them at every replay.
            counters = like.new_zeros(tiles, directions, _COUNTER, dtype=torch.int64)
        at_once = min(tiles, launch.tiles)
        # The driver rejects a grid that cannot be resident at once, which would never end.
        cooperative = {"launch_cooperative_grid": True}
    # A launch runs the whole sequence, or with the strategy "step" one part of one step. The end of
    # the launch is then the barrier between programs that own different units.
    pieces, length = launch.cut(steps)
    ranges = [(0, length, 0, parts)]
    if launch.strategy == "step":
        ranges = [(t, t + 1, part, part + 1) for t in range(steps) for part in range(parts)]
    with torch.cuda.device_of(like):  # Triton launches on the current device
        for first_tile in range(0, tiles, at_once):
            grid = (min(at_once, tiles - first_tile) * pieces, slices, directions)
            sizes = (counters, steps, batch, first_tile * launch.block_b, hidden)
            for begin, end, first, last in ranges:
                arguments = [*tensors, *sizes, begin, end]
                parts_of_step = {"FIRST": first, "LAST": last}
                start(kernel, grid, arguments, constants | cooperative | parts_of_step)


def start(kernel: Any, grid: tuple[int, int, int], arguments: list, constants: dict) -> None:
    """Launch a kernel; every launch of the package goes through this function."""
    if not isinstance(kernel, triton.JITFunction):
        # While it runs, the interpreter replaces the functions of Triton's language.
        with once.making():
            kernel[grid](*arguments, **constants)
        return
    constants = constants | registers.fewest_spills(kernel, grid, arguments, constants)
    kernel[grid](*arguments, **constants)


def _contiguous(tensor):
    return None if tensor is None else tensor.contiguous()


def input_precision(dtype: torch.dtype) -> str:
    """How float32 products are computed: "tf32" where torch.nn.LSTM would, otherwise "ieee"."""
    tf32 = numerics.rnn_precision() == "tf32"
    return "tf32" if tf32 and dtype == torch.float32 else "ieee"
