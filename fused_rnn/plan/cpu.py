"""Times of torch.nn's kernels against the C++ loop on one CPU, in ``cpu.json``.

``python -m bench.tune.cpu`` writes the file; ``engines.cpu_race`` looks up the nearest row.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("cpu.json")


class Row(NamedTuple):
    """A measured layer.

    Args:
        mode: "inference" (nothing is kept for a backward) or "training" (forward and backward).
        aten_over_cpp: time of torch.nn's kernels divided by that of the C++ loop.
    """

    cell: str
    dtype: str
    mode: str
    T: int
    B: int
    H: int
    aten_over_cpp: float


def nearest(cell: str, dtype: str, mode: str, T: int, B: int, H: int) -> Row | None:
    """The nearest row by the ratios of sizes, or None if no such cell was measured."""
    return _nearest((cell, dtype, mode), T, B, H)


@functools.lru_cache(maxsize=4096)
def _nearest(kind, *sizes):
    rows = (row for row in table()[1] if row[:3] == kind)
    return min(rows, key=lambda row: distance(row, *sizes), default=None)


def distance(row: Row, T: int, B: int, H: int) -> float:
    """The distance to a row: the sum over sizes of the absolute log2 of their ratio."""
    pairs = zip((T, B, H), row[3:6], strict=True)
    return sum(abs(math.log2(max(size, 1) / other)) for size, other in pairs)


@functools.cache
def table() -> tuple[dict, tuple[Row, ...]]:
    """Read the file: a description of the machine, and the rows."""
    content = json.loads(FILE.read_text())
    return content["environment"], tuple(Row(*row) for row in content["rows"])


def write(environment: dict, rows: list[Row]) -> None:
    lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
    head = json.dumps(environment)
    FILE.write_text(f'{{\n "environment": {head},\n "rows": [\n{lines}\n ]\n}}\n')
    table.cache_clear()
    _nearest.cache_clear()
