"""The functions of ``loop.cpp``, built at their first use, one library for each dtype."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch

from ... import once
from . import compiler

FOLDER = Path(__file__).parent  # of the sources
REAL = {torch.float32: "float", torch.float64: "double"}


@once.once
def function(kind: str, dtype: torch.dtype) -> Callable:
    """The function of this name, which takes a structure by reference and returns nothing."""
    found = getattr(library(dtype), kind)
    found.restype = None
    return found


@once.once
def library(dtype: torch.dtype = torch.float32) -> ctypes.CDLL:
    """``loop.cpp``, compiled.

    Raises:
        BuildError, RuntimeError: as ``compiler.library``.
    """
    text = f"#define REAL {REAL[dtype]}\n{(FOLDER / 'loop.cpp').read_text()}"
    return compiler.library(f"loop-{REAL[dtype]}", text, FOLDER)


@once.once
def parallel_for() -> int | None:
    """The address of PyTorch's parallel loop, which obeys ``torch.set_num_threads``; or None."""
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        file = Path(torch.__file__).parent / "lib" / name
        if file.exists():
            return address(ctypes.CDLL(str(file)), "torch_parallel_for")
    return None


def address(library: ctypes.CDLL, name: str) -> int:
    """The address of a function."""
    found = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert found is not None
    return found
