"""What the launchers of the forward and the backward kernel share."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..cells import Cell
from ..plan import Launch
from ..sequence import accumulator
from . import interpreter

interpreter.repair_if_used()

_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}


def describe(
    cell: Cell,
    launch: Launch,
    batch: int,
    directions: int,
    hidden: int,
    dtype: torch.dtype,
    reverse: bool,
) -> tuple[tuple[int, int, int], dict]:
    """The grid (batch tiles, slices of the hidden units, directions) and the constants."""
    chunks = triton.cdiv(hidden, launch.block_h)
    resident = launch.strategy == "resident"
    constants = {
        "D": directions,
        "H": hidden,
        "BOUNDS": (0, *(end for _, end in cell.spans)),
        "X_INDEX": cell.x_index,
        "BIAS_INDEX": cell.bias_index,
        "REVERSE": reverse,
        "RESIDENT": resident,
        "OWN": chunks if resident else 1,
        "BLOCK_B": launch.block_b,
        "BLOCK_H": launch.block_h,
        "BLOCK_K": launch.block_k,
        "PRECISION": input_precision(dtype),
        "DTYPE": _DTYPES[accumulator(dtype)],
        "num_warps": launch.num_warps,
        "num_stages": 1,
    }
    return (triton.cdiv(batch, launch.block_b), 1 if resident else chunks, directions), constants


def prepare(*arguments) -> list:
    """Tensors, or lists of them, as a kernel takes them: contiguous, lists as tuples."""
    return [
        tuple(map(_contiguous, a)) if isinstance(a, list) else _contiguous(a) for a in arguments
    ]


def start(kernel, grid: tuple[int, int, int], arguments: list, constants: dict) -> None:
    """Launch a kernel; every launch of the package passes here."""
    kernel[grid](*arguments, **constants)


def _contiguous(tensor):
    return None if tensor is None else tensor.contiguous()


def input_precision(dtype: torch.dtype) -> str:
    """How float32 products are computed: "tf32" where torch.nn.LSTM would, otherwise "ieee"."""
    tf32 = torch.backends.cudnn.rnn.fp32_precision == "tf32"
    return "tf32" if tf32 and dtype == torch.float32 else "ieee"
