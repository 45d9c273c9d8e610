"""The GPUs that can be simulated: the limits of a launch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chip:
    """A GPU.

    Args:
        name: for reports.
        shared_memory: bytes that one CTA may use.
        shared_per_multiprocessor: bytes.
        multiprocessors: their number.
        threads: the maximum number resident on a multiprocessor.
    """

    name: str
    shared_memory: int
    shared_per_multiprocessor: int
    multiprocessors: int
    threads: int

    def resident(self, threads: int, shared_bytes: int) -> int:
        """The maximum number of resident CTAs; registers are not considered."""
        by_shared = self.shared_per_multiprocessor // (shared_bytes + 1024)
        return self.multiprocessors * max(0, min(by_shared, self.threads // threads, 32))


CHIPS = {
    80: Chip("A100", 163 * 1024, 164 * 1024, 108, 2048),
    86: Chip("A40", 99 * 1024, 100 * 1024, 84, 1536),
    89: Chip("L40", 99 * 1024, 100 * 1024, 142, 1536),
    90: Chip("H100", 227 * 1024, 228 * 1024, 132, 2048),
}
