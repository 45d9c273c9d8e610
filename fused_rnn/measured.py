"""Where torch.nn's own kernels were faster on the CPU: ``measured.json``, and what it means.

``python -m bench.measured`` writes it: rows of one machine, of which "auto" asks the nearest.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

import torch

FILE = Path(__file__).with_name("measured.json")


class Row(NamedTuple):
    """
    Args:
        mode: "inference" (nothing is kept for a backward) or "training" (forward and backward).
        aten_over_cpp: milliseconds of torch.nn's kernels by those of the C++ loop.
    """

    cell: str
    dtype: str
    mode: str
    T: int
    B: int
    H: int
    aten_over_cpp: float


def nearest(cell: str, dtype: torch.dtype, training: bool, T: int, B: int, H: int) -> Row | None:
    """The row that is nearest by the ratios of sizes, or None for what was not measured."""
    kind = (cell, str(dtype).removeprefix("torch."), "training" if training else "inference")
    return _nearest(kind, T, B, H)


@functools.lru_cache(maxsize=4096)
def _nearest(kind, *sizes):
    def distance(row):
        return sum(abs(math.log2(max(a, 1) / b)) for a, b in zip(sizes, row[3:6], strict=True))

    return min((row for row in table()[1] if row[:3] == kind), key=distance, default=None)


@functools.cache
def table() -> tuple[dict, tuple[Row, ...]]:
    """What the machine was, and the rows."""
    content = json.loads(FILE.read_text())
    return content["environment"], tuple(Row(*row) for row in content["rows"])


def write(environment: dict, rows: list[Row]) -> None:
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    head = json.dumps(environment)
    FILE.write_text(f'{{\n "environment": {head},\n "rows": [\n{lines}\n ]\n}}\n')
    table.cache_clear()
    _nearest.cache_clear()
