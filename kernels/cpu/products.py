"""Products over all rows of a sequence at once, by the functions of ``loop.cpp``."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from . import loop


class _Linear(ctypes.Structure):
    """As in loop.cpp."""

    _fields_ = [
        ("threads", ctypes.c_int64),
        ("parallel_for", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "inner", "columns", "by_row", "by_column")),
        *((name, ctypes.c_void_p) for name in ("a", "matrix", "out")),
    ]


class _Gradient(ctypes.Structure):
    """As in gradients.h."""

    _fields_ = [
        ("threads", ctypes.c_int64),
        ("parallel_for", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("steps", "gates", "vectors", "heads")),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "by_row", "by_source")),
        *((name, ctypes.c_void_p) for name in ("of_rows", "source", "out")),
    ]


def product(a: Tensor, matrix: Tensor) -> Tensor:
    """Multiply two matrices; the second may be transposed. float32 or float64.

    Raises:
        RuntimeError: they do not fit each other.
    """
    fit = a.dim() == matrix.dim() == 2 and a.shape[1] == matrix.shape[0]
    alike = a.dtype == matrix.dtype and a.is_cpu and matrix.is_cpu
    if not fit or not alike or a.dtype not in loop.REAL:
        raise RuntimeError(
            "product: expected two matrices that fit, on the CPU, both float32 or both float64, "
            f"got {tuple(a.shape)} {a.dtype} and {tuple(matrix.shape)} {matrix.dtype}"
        )
    a = a.resolve_neg().contiguous()
    matrix = matrix.resolve_neg()
    if 1 not in matrix.stride():
        matrix = matrix.contiguous()
    out = a.new_empty(a.shape[0], matrix.shape[1])
    asked = _Linear(
        torch.get_num_threads(),
        loop.parallel_for(),
        *a.shape,
        matrix.shape[1],
        *matrix.stride(),
        a.data_ptr(),
        matrix.data_ptr(),
        out.data_ptr(),
    )
    loop.function("linear", a.dtype)(ctypes.byref(asked))
    return out


def gradient(pairs: Sequence[tuple[Tensor, Tensor]], vectors: int, heads: int) -> Tensor:
    """Compute what ``cells.heads.gradient`` returns, in float32 or float64."""
    rows, source = pairs[0]
    hidden = source.shape[1] // vectors
    gates, size = rows.shape[1] // hidden, hidden // heads
    out = rows.new_zeros(rows.shape[1], vectors * size)
    # Without heads it is one product.
    split = (gates, vectors, heads, size, size) if heads > 1 else (1, 1, 1, *out.shape)
    for rows, source in pairs:
        rows, source = (_in_rows(tensor) for tensor in (rows, source))
        asked = _Gradient(
            torch.get_num_threads(),
            loop.parallel_for(),
            len(rows),
            *split,
            rows.stride(0),
            source.stride(0),
            rows.data_ptr(),
            source.data_ptr(),
            out.data_ptr(),
        )
        loop.function("gradient", rows.dtype)(ctypes.byref(asked))
    return out


def _in_rows(tensor):
    """A matrix of which the values of a row follow each other."""
    tensor = tensor.resolve_neg()
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()
