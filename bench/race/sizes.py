"""The problem sizes of all benchmarks."""

from __future__ import annotations

from typing import NamedTuple


class Size(NamedTuple):
    """T time steps, B batch rows, I input features, H hidden units."""

    T: int
    B: int
    I: int  # noqa: E741 - the name of this dim in the whole project
    H: int

    def __str__(self):
        parts = (self.T, self.B, self.H) if self.I == self.H else self
        return "x".join(map(str, parts))


TABLE = {
    "tiny": (Size(7, 3, 12, 20),),
    "cpu": (
        Size(50, 1, 128, 128),
        Size(100, 8, 128, 128),
        Size(100, 32, 256, 256),
        Size(100, 32, 512, 512),
    ),
    "cuda": tuple(Size(512, B, H, H) for B in (16, 64) for H in (128, 256, 512, 1024)),
}


def parse(text: str) -> tuple[Size, ...]:
    """Parse a comma-separated list of names in the table, TxBxH (I = H) and TxBxIxH.

    Raises:
        ValueError: a part of the list is none of these.
    """
    sizes = []
    for part in text.split(","):
        if part in TABLE:
            sizes.extend(TABLE[part])
            continue
        numbers = part.split("x")
        if len(numbers) not in (3, 4) or not all(n.isdigit() and int(n) > 0 for n in numbers):
            raise ValueError(f"size: expected {', '.join(TABLE)}, TxBxH or TxBxIxH, got {part!r}")
        steps, batch, *rest = map(int, numbers)
        sizes.append(Size(steps, batch, rest[0], rest[-1]))
    return tuple(dict.fromkeys(sizes))
