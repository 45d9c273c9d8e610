"""Count bytes, transactions, tensor-core and special-function operations of a kernel."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

_SPECIAL_FUNCTIONS = ("ex2", "lg2", "rcp", "rsqrt", "sqrt", "sin", "cos", "tanh", "div")


@dataclass
class Traffic:
    """Accesses to a space, or to one tensor, in bytes."""

    read: int = 0
    written: int = 0


@dataclass
class Counters:
    """The counts of one launch or several; counters can be added and subtracted.

    Args:
        totals: by name: "instructions" (per warp), "special functions" and "divisions" of floats,
            "barriers" (per warp), "atomics", "mma.<shape>.<types>", "global sectors" (of 32
            bytes), "global requests", "shared wavefronts", "bank conflicts" (wavefronts beyond the
            minimum), "launches".
        spaces: bytes in "global" and "shared" memory.
        arguments: bytes of global memory by the argument they belong to.
        transactions: sectors of global memory and wavefronts of shared memory, by space, kind
            ("read", "write" or "atomic") and bytes of a lane.
    """

    totals: Counter = field(default_factory=Counter)
    spaces: dict[str, Traffic] = field(
        default_factory=lambda: {"global": Traffic(), "shared": Traffic()}
    )
    arguments: dict[str, Traffic] = field(default_factory=dict)
    transactions: Counter = field(default_factory=Counter)

    def __getitem__(self, name: str) -> int:
        return self.totals[name]

    def __add__(self, other: Counters) -> Counters:
        return self._combined(other, 1)

    def __sub__(self, other: Counters) -> Counters:
        return self._combined(other, -1)

    def __floordiv__(self, count: int) -> Counters:
        """The mean of ``count`` equal parts."""
        traffic = [
            {name: Traffic(t.read // count, t.written // count) for name, t in group.items()}
            for group in (self.spaces, self.arguments)
        ]
        totals, transactions = (
            Counter({name: n // count for name, n in group.items()})
            for group in (self.totals, self.transactions)
        )
        return Counters(totals, *traffic, transactions)

    def read_of(self, prefix: str) -> int:
        """Bytes read from arguments with this prefix; "weight_ptrs" covers the whole tuple."""
        return sum(t.read for name, t in self.arguments.items() if name.startswith(prefix))

    def written_of(self, prefix: str) -> int:
        """Bytes written to arguments with this prefix."""
        return sum(t.written for name, t in self.arguments.items() if name.startswith(prefix))

    def mma(self) -> int:
        """Tensor-core instructions of any shape, per warp."""
        return sum(
            count for name, count in self.totals.items() if name.startswith(("mma", "wgmma"))
        )

    def access(self, memory, offsets, size, warps, write: bool, atomic: bool = False) -> None:
        """Count an access of ``size`` bytes per lane; ``warps`` has the warp of each lane."""
        if offsets.size == 0:
            return
        _add(self.spaces[memory.space], offsets.size * size, write)
        key = (memory.space, "atomic" if atomic else "write" if write else "read", size)
        if memory.space == "shared":
            wavefronts, conflicts = self._banks(offsets, size, warps)
            self.totals["shared wavefronts"] += wavefronts
            self.totals["bank conflicts"] += conflicts
            self.transactions[key] += wavefronts
            return
        for region, count in memory.shares(offsets):
            _add(self.arguments.setdefault(region.name, Traffic()), count * size, write)
        places = np.sort(warps.astype(np.int64) << 40 | offsets >> 5)
        sectors = _distinct(places) * max(1, size // 32)
        self.totals["global sectors"] += sectors
        self.totals["global requests"] += _distinct(warps)  # lanes of a warp are adjacent
        self.transactions[key] += sectors

    def _banks(self, offsets, size, warps):
        """Wavefronts, and those beyond the minimum.

        32 banks of 4 bytes serve a warp; a wide access takes 2 or 4 parts.
        """
        parts = max(1, size // 4)
        lane = _rank_within(warps)
        # Requests of 8 bytes per lane are served by half warps, those of 16 by quarters.
        group = np.repeat(warps.astype(np.int64) * parts + lane * parts // 32, parts)
        words = ((offsets >> 2)[:, None] + np.arange(parts)).ravel()
        # Sorting makes the words of a bank adjacent; a word that lanes share counts once.
        key = np.sort((group * 32 + (words & 31)) << 32 | words >> 5)
        bank = key[np.flatnonzero(np.diff(key, prepend=-1))] >> 32
        first = np.flatnonzero(np.diff(bank, prepend=-1))
        depth = np.diff(np.append(first, bank.size))
        groups = np.flatnonzero(np.diff(bank[first] >> 5, prepend=-1))
        wavefronts = int(np.maximum.reduceat(depth, groups).sum())
        return wavefronts, wavefronts - groups.size

    def _combined(self, other, sign):
        return Counters(
            _sum(self.totals, other.totals, sign),
            _combine(self.spaces, other.spaces, sign),
            _combine(self.arguments, other.arguments, sign),
            _sum(self.transactions, other.transactions, sign),
        )


def static_counts(instructions) -> Counter:
    """Count straight-line code statically, per warp that runs it."""
    counts = Counter(instructions=len(instructions))
    for instruction in instructions:
        kinds = instruction.modifiers
        if instruction.opcode in _SPECIAL_FUNCTIONS and any(
            k in kinds for k in ("f32", "f64", "f16")
        ):
            counts["divisions" if instruction.opcode == "div" else "special functions"] += 1
        elif instruction.opcode == "tanh":
            counts["special functions"] += 1
        elif instruction.is_barrier():
            counts["barriers"] += 1
        elif instruction.opcode in ("atom", "red"):
            counts["atomics"] += 1
        elif instruction.opcode == "mma":
            counts[f"mma.{kinds[2]}.{kinds[-2]}"] += 1
        elif instruction.opcode == "wgmma" and kinds[0] == "mma_async":
            counts[f"wgmma.{kinds[3]}.{kinds[5]}"] += 1
    return counts


def _add(traffic, count, write):
    if write:
        traffic.written += count
    else:
        traffic.read += count


def _sum(ours, theirs, sign) -> Counter:
    result = Counter(ours)
    for name, count in theirs.items():
        result[name] += sign * count
    return result


def _combine(ours, theirs, sign):
    result = {}
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        a, b = ours.get(name, Traffic()), theirs.get(name, Traffic())
        result[name] = Traffic(a.read + sign * b.read, a.written + sign * b.written)
    return result


def _distinct(neighbours) -> int:
    """The number of distinct values, where equal ones are adjacent."""
    return 1 + int(np.count_nonzero(neighbours[1:] != neighbours[:-1]))


def _rank_within(warps):
    """For each element, how many before it are of its warp; a warp's elements are adjacent."""
    starts = np.flatnonzero(np.diff(warps, prepend=-1))
    lengths = np.diff(np.append(starts, warps.size))
    return np.arange(warps.size) - np.repeat(starts, lengths)
