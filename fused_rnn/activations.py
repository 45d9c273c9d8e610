"""How exact the kernels' sigmoid and tanh are: by the dtype, and a switch."""

from __future__ import annotations

import contextlib

import torch

# "exact": to float32 (or float64) rounding. "half": to the rounding of 16-bit values. "fast": one
# instruction of the GPU.
FORMS = ("exact", "half", "fast")

# A plain global: the backward of a CUDA tensor runs in a thread of autograd's.
_fast = False


@contextlib.contextmanager
def fast_activations(enabled: bool = True):
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
