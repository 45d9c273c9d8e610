"""An address space: its bytes, and whether each of them is allocated and was written.

All accesses are arrays of byte offsets, one element per active lane, so that one call serves many
warps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import MemoryFault

# The status of a byte. Reading requires both bits, writing the first.
_ALLOCATED, _INITIALISED = 1, 2
_BOTH = _ALLOCATED | _INITIALISED
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
# The same status for each byte of a word.
_REPEATED = {
    size: {status: dtype(int.from_bytes([status] * size, "little")) for status in (1, 3)}
    for size, dtype in _WORDS.items()
}


@dataclass(frozen=True)
class Region:
    """A tensor, or the shared memory of a CTA, in its space.

    Args:
        name: of the argument.
        begin, end: byte offsets.
        itemsize: bytes of an element.
        written: whether the kernel may store to it.
    """

    name: str
    begin: int
    end: int
    itemsize: int = 1
    written: bool = True


class Memory:
    """One address space.

    Args:
        space: "global" or "shared", for reports.
        size: in bytes.
        base: the address of the first byte.
    """

    def __init__(self, space: str, size: int, base: int):
        size = -(-size // 64) * 64
        self.space, self.base, self.size = space, base, size
        self.bytes = np.zeros(size, np.uint8)
        self.status = np.zeros(size, np.uint8)
        self.words = {n: self.bytes.view(dtype) for n, dtype in _WORDS.items()}
        self._statuses = {n: self.status.view(dtype) for n, dtype in _WORDS.items()}
        self.regions: list[Region] = []

    def add(self, region: Region, content: np.ndarray | None = None) -> None:
        """Allocate a region, uninitialised or with bytes."""
        self.regions.append(region)
        self.status[region.begin : region.end] = _ALLOCATED
        if content is not None:
            self.bytes[region.begin : region.end] = content
            self.status[region.begin : region.end] = _BOTH

    def forget(self, begin: int, end: int) -> None:
        """Reset bytes to their state after an allocation."""
        self.status[begin:end] = _ALLOCATED

    def check(self, offsets: np.ndarray, size: int, instruction) -> None:
        """Check that every access is inside a region and aligned to its size.

        Raises:
            MemoryFault: one is not.
        """
        if offsets.size == 0:
            return
        if (offsets & (size - 1)).any():
            bad = offsets[(offsets & (size - 1)) != 0][0]
            raise MemoryFault(
                f"{instruction}: misaligned by {bad % size} of {size} bytes, {self.where(bad)}"
            )
        inside = (offsets >= 0) & (offsets <= self.size - size)
        if inside.all():
            allocated = _REPEATED[min(size, 8)][1]
            for part in range(0, size, 8):
                inside &= self._status_of(offsets + part, size) & allocated == allocated
        if not inside.all():
            bad = int(offsets[~inside][0])
            raise MemoryFault(f"{instruction}: {size} bytes out of bounds, {self.where(bad)}")

    def initialised(self, offsets: np.ndarray, size: int) -> np.ndarray:
        """Per access, whether all its bytes were written."""
        both = _REPEATED[min(size, 8)][3]
        result = self._status_of(offsets, size) == both
        for part in range(8, size, 8):
            result &= self._status_of(offsets + part, size) == both
        return result

    def read(self, offsets: np.ndarray, size: int) -> np.ndarray:
        """Read words of up to 8 bytes."""
        return self.words[size][offsets // size]

    def write(self, offsets: np.ndarray, size: int, values: np.ndarray) -> None:
        at = offsets // size
        self.words[size][at] = values
        self._statuses[size][at] = _REPEATED[size][3]

    def read_bytes(self, offsets: np.ndarray, size: int) -> np.ndarray:
        """Read (accesses, size) bytes, of any size."""
        return self.bytes[offsets[:, None] + np.arange(size)]

    def write_bytes(self, offsets: np.ndarray, values: np.ndarray) -> None:
        places = offsets[:, None] + np.arange(values.shape[1])
        self.bytes[places] = values
        self.status[places] = _BOTH

    def shares(self, offsets: np.ndarray) -> list[tuple[Region, int]]:
        """Count the accesses to each region."""
        first = self.region(int(offsets[0]))
        if first is not None and first.begin <= offsets.min() and offsets.max() < first.end:
            return [(first, offsets.size)]
        begins = np.sort([region.begin for region in self.regions])
        counts = np.bincount(np.searchsorted(begins, offsets, "right") - 1, minlength=begins.size)
        return [
            (self.region(int(begin)), count)
            for begin, count in zip(begins, counts.tolist(), strict=True)
            if count
        ]

    def region(self, offset: int) -> Region | None:
        """The region that a byte lies in."""
        return next((r for r in self.regions if r.begin <= offset < r.end), None)

    def where(self, offset: int) -> str:
        """Describe a byte: the argument and the element, or the distance to the nearest one."""
        offset = int(offset)
        region = self.region(offset)
        if region is None:
            if not self.regions:
                return f"{self.space} memory at {offset:#x}"
            near = min(self.regions, key=lambda r: min(abs(offset - r.begin), abs(offset - r.end)))
            if offset < near.begin:
                return f"{near.begin - offset} bytes before {near.name} in {self.space} memory"
            return f"{offset - near.end} bytes after the end of {near.name} in {self.space} memory"
        if self.space == "shared":
            return f"{region.name}, byte {offset - region.begin}"
        return f"{region.name}[{(offset - region.begin) // region.itemsize}] in {self.space} memory"

    def _status_of(self, offsets, size):
        size = min(size, 8)
        return self._statuses[size][offsets // size]
