"""In which dtypes the engines compute and keep states, and how exact sigmoid and tanh are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from .cells import Cell

# "exact": to float32 (or float64) rounding. "half": to the rounding of 16-bit values. "fast": one
# instruction of the GPU.
FORMS = ("exact", "half", "fast")

# A plain global: the backward of a CUDA tensor runs in a thread of autograd's.
_fast = False


@contextlib.contextmanager
def fast_activations(enabled: bool = True) -> Iterator[None]:
    """Inside the ``with``, sigmoid and tanh of 16-bit tensors are the GPU's ``tanh.approx``.

    Fewer instructions, and an absolute error of up to 5e-4 (2^-11), below the rounding of bfloat16
    and about that of float16; without it the error is about 1e-7. docs/numerics.md has the tables.
    For the kernels, in all threads; float32 and float64 stay exact.

    Args:
        enabled: False switches it off inside a ``with`` that has it on.
    """
    global _fast
    before, _fast = _fast, bool(enabled)
    try:
        yield
    finally:
        _fast = before


def form(dtype: torch.dtype) -> str:
    """Which of FORMS the kernels use for tensors of ``dtype``."""
    if dtype.itemsize > 2:
        return "exact"
    return "fast" if _fast else "half"


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which gates and states are computed: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def state_dtypes(cell: Cell, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """In which dtype the sequence of each state is kept.

    The output, and what a product reads, in that of the input; a state that only ``step`` reads
    (the LSTM's c) in the accumulator's.
    """
    read = {name for stage in cell.stages if not callable(stage.source) for name in stage.source}
    return tuple(
        dtype if i == 0 or name in read else accumulator(dtype)
        for i, name in enumerate(cell.states)
    )


def uses_tf32(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products of the kernels round float32 to TF32; Triton's interpreter does not."""
    if dtype != torch.float32 or device.type != "cuda":
        return False
    return rnn_precision() == "tf32"


def rnn_precision() -> str:
    """The setting of PyTorch for the float32 products of recurrent layers: "tf32" or another."""
    settings: Any = torch.backends.cudnn.rnn  # an object, not the module of that name
    return settings.fp32_precision
