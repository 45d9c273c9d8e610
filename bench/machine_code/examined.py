"""Compiled and examined kernels, kept on disk.

The key of a kernel holds everything that its machine code depends on, such as its sources and the
version of Triton. So a long examination can be stopped and resumed, and several processes can share
their results. Needs TRITON_INTERPRET=0 before Triton is imported.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from fused_rnn import cells
from fused_rnn.plan.chips import Launch

from . import kernels
from .kernels import Facts

FILE = Path(__file__).parents[1] / "results" / "compiled.jsonl"


class Examined:
    """A file of examined kernels.

    Args:
        file: of JSON lines, created if absent; None for ``FILE``.
        minutes: the time after which nothing more is compiled; None for no limit.
        inference: whether the forward for inference is examined too.
    """

    def __init__(
        self, file: Path | None = None, minutes: float | None = None, inference: bool = True
    ):
        self.file, self.inference = file or FILE, inference
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.known = {entry.pop("key"): Facts(**entry) for entry in map(json.loads, lines)}

    def look(
        self, cell: str, dtype: str, H: int, launch: Launch, chips: Iterable[int], more=True
    ) -> Iterator[tuple[int, Facts | None]]:
        """Yield the facts of each kernel of a launch, by chip: forward, backward, inference.

        Args:
            chips: compute capabilities, 90 for 9.0.
            more: False compiles nothing.

        Returns:
            Pairs (chip, facts); facts are None for a kernel that has not been compiled.
        """
        chips = sorted(chips)
        by_chip = [_kernels(cell, dtype, H, launch, self.inference, chip) for chip in chips]
        for same in zip(*by_chip, strict=True):
            for chip, kernel in zip(chips, same, strict=True):
                key = kernel.key(dtype, chip)
                if key not in self.known and more and not self.late():
                    ((_, facts),) = kernels.examine(kernel, [chip])
                    self._add(key, facts)
                yield chip, self.known.get(key)

    def late(self) -> bool:
        return self.end is not None and time.monotonic() > self.end

    def _add(self, key, facts):
        self.known[key] = facts
        with self.file.open("a") as out:
            out.write(json.dumps({"key": key} | dataclasses.asdict(facts)) + "\n")


@functools.lru_cache(maxsize=16)  # since a table asks again, once per chip
def _kernels(cell, dtype, H, launch, inference, chip):
    given = (cells.get(cell), dtype, H, launch)
    found = kernels.kernels(*given, capability=chip)
    more = kernels.kernels(*given, save=False, capability=chip) if inference else []
    return found + more
