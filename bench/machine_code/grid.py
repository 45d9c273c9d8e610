"""The layers whose plans are compiled, to examine them or to search for better ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from fused_rnn.plan import chips

# Compute capabilities (90 for 9.0) of all chips that have a table.
CAPABILITIES = tuple(int(name) for name in chips.chips() if name != chips.INTERPRETER)
CELLS = ("lstm", "peephole_lstm", "gru", "gru_reset_before")
BATCHES = (1, 8, 16, 64, 256)
# In increasing order: the longer the unrolled inner dimension, the longer the compilation.
HIDDEN = (17, 32, 64, 100, 128, 256, 512, 768, 1000, 1024, 1536, 2048)

# By bytes of an element. "tf32" is float32 with products on tensor cores, "float32" is float32
# with exact products.
DTYPES = {2: ("bfloat16", "float16"), 4: ("tf32", "float32"), 8: ("float64",)}
# The dtypes that models are trained in.
CORE_DTYPES = DTYPES[2] + DTYPES[4]


@contextlib.contextmanager
def products_of(dtype: str) -> Iterator[None]:
    """Inside the ``with``, float32 products of RNNs are those of this dtype."""
    settings: Any = torch.backends.cudnn.rnn
    before = settings.fp32_precision
    settings.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def torch_dtype(name: str) -> torch.dtype:
    return torch.float32 if name == "tf32" else getattr(torch, name)
