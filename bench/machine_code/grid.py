"""The layers whose plans are compiled, to be looked through or to be searched."""

from __future__ import annotations

import torch

from fused_rnn.plan import chips

# Compute capabilities, 90 for 9.0: of every chip that has a table.
CAPABILITIES = tuple(int(name) for name in chips.chips() if name != chips.INTERPRETER)
CELLS = ("lstm", "peephole_lstm", "gru", "gru_reset_before")
BATCHES = (1, 8, 16, 64, 256)
# From small to large, since a kernel takes longer the more of its inner dimension is unrolled.
HIDDEN = (17, 32, 64, 100, 128, 256, 512, 768, 1000, 1024, 1536, 2048)

# By bytes of an element. "tf32" is float32 whose products take tensor cores, "float32" that whose
# products are exact.
DTYPES = {2: ("bfloat16", "float16"), 4: ("tf32", "float32"), 8: ("float64",)}
# Those that people train in.
CORE_DTYPES = DTYPES[2] + DTYPES[4]


def torch_dtype(name: str) -> torch.dtype:
    return torch.float32 if name == "tf32" else getattr(torch, name)
