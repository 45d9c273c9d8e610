"""Strong operations: the order they establish, and the values they may return.

After the PTX ISA's chapter "Memory Consistency Model"; the names are those of its sections.

- "Morally strong operations": scopes include each other's threads, and accesses have one size.
- "Observation order": a read observes the write whose value it returns, and through a chain of
  atomic read-modify-writes those before it; each link is of morally strong operations.
- "Release and acquire patterns": a release pattern is a release; or a release or a fence, and later
  a strong write by the same thread. An acquire pattern is an acquire; or a strong read, and later a
  fence or an acquire of the same location. A ``red`` reads, but begins no acquire pattern. Two
  patterns synchronize when the read observes the write, and the first operation of the release
  pattern and the last of the acquire pattern are morally strong.
- "Causality order": an observed write itself precedes what follows its reader, with or without an
  acquire.
- "Fence-SC order": the order in which ``fence.sc`` whose scopes include each other are executed.
- "Causality", "SC per location": a strong load may return any value but those that are overwritten
  by a write that precedes it in causality order. So stores may become visible late, as with store
  buffers: the schedule selects an allowed value. Other loads return the newest value: if another
  one was allowed, that is a race, and reported.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from .clocks import Clocks, Knowledge, later

CTA, GPU = 1, 2  # the reach of a scope; 0 for weak accesses
REACH = {"cta": CTA, "cluster": CTA, "gpu": GPU, "sys": GPU}  # clusters of one CTA, one GPU
_KEPT = 8  # writes to a location that may still be read


@dataclass(frozen=True, eq=False)
class Written:
    """A strong write.

    Args:
        value: its bytes as an integer.
        warp, clock: the writer and the time; -1 and 0 for the initial value.
        reach: of its scope.
        size: bytes.
        patterns: the release patterns that it ends or whose chain it continues, by the CTA and the
            reach of their first operation.
        writers: the warps of the chain, with their clocks.
    """

    value: int
    warp: int = -1
    clock: int = 0
    reach: int = 0
    size: int = 0
    patterns: dict = field(default_factory=dict)
    writers: dict = field(default_factory=dict)
    modifies: bool = False  # an atomic, which has observed the write before it


class Newest:
    """Strong accesses of a machine that looks for no races: a load returns the newest value.

    What precedes what is of no consequence then, and is not noted.
    """

    def load(self, *access, **options) -> None: ...

    def store(self, *access, **options) -> None: ...

    def modify(self, *access, **options) -> None: ...

    def fence(self, *access, **options) -> None: ...


class Synchronization:
    """Strong accesses and fences of all warps.

    A location is (space, byte offset).

    Args:
        clocks: the knowledge of warps.
        pick: selects the value that a load returns. Takes how many are allowed, oldest first, and
            whether the warp already got an old one; returns an index.
    """

    def __init__(self, clocks: Clocks, pick):
        self.clocks, self._pick = clocks, pick
        self._writes: dict[tuple, list[Written]] = {}
        # What a later strong write of the warp releases, by the CTA and the reach: of fences, and
        # of releases of the location.
        self._fenced: dict[int, dict] = defaultdict(dict)
        self._released: dict[tuple, dict] = defaultdict(dict)
        # What a later fence acquires, by the location and as above.
        self._observed: dict[int, dict] = defaultdict(dict)
        self._sequential: dict[object, Knowledge] = {}
        self._given: dict[tuple, Written] = {}  # the newest write when an old one was returned

    def load(self, warp: int, location, reach: int, size: int, acquires: bool) -> int | None:
        """Execute a strong load; returns its value if that is not the newest."""
        writes = self._writes.get(location)
        if writes is None:
            return None
        written = self._choose(warp, location, writes, reach, size)
        self._read(warp, location, written, reach, size, acquires, begins=True)
        return None if written is writes[-1] else written.value

    def store(self, warp: int, location, reach: int, size: int, releases: bool, old, new) -> None:
        """Execute a strong store.

        Args:
            old, new: the values before and after, as integers.
        """
        self._write(warp, location, reach, size, releases, old, new, {}, {}, modifies=False)

    def modify(
        self,
        warp: int,
        location,
        reach: int,
        size: int,
        acquires: bool,
        releases: bool,
        old: int,
        new: int | None,
        returns: bool,
        keeps=None,
    ) -> int | None:
        """Execute an atomic; returns the value that it read if that is not the newest.

        Args:
            new: None for a compare-and-swap that fails: it only reads.
            returns: "atom", not "red".
            keeps: for an atomic that leaves the newest value unchanged, a function: whether it
                also leaves another value unchanged. If so, it may be ordered before later writes,
                as a load may.
        """
        writes = self._writes.get(location)
        patterns, writers = {}, {}
        if writes is not None:
            if keeps is not None:
                found = self._choose(warp, location, writes, reach, size, keeps)
                if found is not writes[-1] and not (
                    writes[writes.index(found) + 1].modifies
                    and (releases or self._fenced[warp] or (warp, location) in self._released)
                ):  # else the next atomic would have observed what this one releases
                    self._read(warp, location, found, reach, size, acquires, begins=returns)
                    return found.value
            last = writes[-1]
            self._read(warp, location, last, reach, size, acquires, begins=returns)
            if self._is_strong(warp, last, reach, size):
                patterns, writers = last.patterns, last.writers
        if new is not None:
            self._write(
                warp, location, reach, size, releases, old, new, patterns, writers, modifies=True
            )
        return None

    def fence(
        self,
        warp: int,
        reach: int,
        acquires: bool = True,
        releases: bool = True,
        sequential: bool = False,
    ) -> None:
        clocks, cta = self.clocks, self.clocks.cta(warp)
        if acquires:
            self._acquire(warp, reach, None)
        if sequential and clocks.visible:
            self._in_sequence(warp, reach)
        if releases:
            self._fenced[warp][cta, reach] = clocks.knowledge(warp)
        clocks.tick(slice(warp, warp + 1))

    def overwritten(self, space: str, offsets, size: int) -> None:
        """Note weak writes, which replace earlier strong ones."""
        for offset in offsets.tolist():
            for byte in range(offset, offset + size):
                self._writes.pop((space, byte), None)

    # ---- parts

    def _includes(self, cta: int, reach: int, other: int, its_reach: int) -> bool:
        """Whether scopes, each of a thread of a CTA, include each other's threads."""
        return cta == other or (reach == GPU and its_reach == GPU)

    def _is_strong(self, warp: int, written: Written, reach: int, size: int) -> bool:
        """Whether a write and an access of the warp are morally strong."""
        cta = self.clocks.cta(warp)
        return (
            written.clock > 0
            and written.size == size
            and self._includes(cta, reach, self.clocks.cta(written.warp), written.reach)
        )

    def _choose(
        self, warp: int, location, writes: list[Written], reach, size, may=lambda value: True
    ) -> Written:
        """The write whose value a strong load returns.

        Args:
            may: a function: whether a value may be returned.
        """
        newest = writes[-1]
        if not self._may_be_late(warp, newest, reach, size):
            return newest
        first = len(writes) - 1
        while first and not self._precedes(writes[first], warp, location):
            first -= 1
        allowed = [
            w
            for w in writes[first:]
            if (w.clock == 0 or self._is_strong(warp, w, reach, size)) and may(w.value)
        ]
        if len(allowed) < 2:
            return newest
        chosen = allowed[self._pick(len(allowed), self._given.get((warp, location)) is newest)]
        if chosen is not newest:
            self._given[warp, location] = newest
        return chosen

    def _may_be_late(self, warp, newest, reach, size) -> bool:
        return newest.warp != warp and self._is_strong(warp, newest, reach, size)

    def _precedes(self, written: Written, warp: int, location) -> bool:
        """Whether a write precedes what the warp does next in causality order."""
        clocks = self.clocks
        if written.clock == 0 or written.warp == warp:
            return True
        if clocks.known[warp, written.warp + clocks.visible] >= written.clock:
            return True
        seen = clocks.events.get(warp, {})
        return seen.get((location, written.warp), 0) >= written.clock

    def _read(self, warp, location, written, reach, size, acquires, begins) -> None:
        """Note that a strong read has observed a write."""
        strong = self._is_strong(warp, written, reach, size)
        if strong and begins:
            observed = self._observed[warp]
            for first, knowledge in written.patterns.items():
                key = (location, *first)
                observed[key] = knowledge.joined(observed.get(key))
        if acquires:
            self._acquire(warp, reach, location)
        if strong:
            known = self.clocks.known[warp]
            writers = {(location, w): c for w, c in written.writers.items() if known[w] < c}
            writers.pop((location, warp), None)
            self.clocks.learn_events(warp, writers)

    def _acquire(self, warp, reach, location) -> None:
        """Complete acquire patterns: of one location, or by a fence (None) of all."""
        observed = self._observed.get(warp)
        if not observed:
            return
        cta = self.clocks.cta(warp)
        for key in list(observed):
            where, releaser, of = key
            if location in (None, where) and self._includes(cta, reach, releaser, of):
                self.clocks.learn(warp, observed.pop(key))

    def _write(
        self, warp, location, reach, size, releases, old, new, patterns, writers, modifies
    ) -> None:
        clocks = self.clocks
        patterns = dict(patterns)

        def add(first, knowledge):
            patterns[first] = knowledge.joined(patterns.get(first))

        for first, knowledge in self._fenced[warp].items():
            add(first, knowledge)
        clock = int(clocks.clock[warp])
        if releases:
            first = (clocks.cta(warp), reach)
            self._released[warp, location][first] = clocks.knowledge(warp)
            clocks.tick(slice(warp, warp + 1))
        for first, knowledge in self._released.get((warp, location), {}).items():
            add(first, knowledge)
        writes = self._writes.setdefault(location, [Written(old)])
        writers = later(writers, {warp: clock})
        writes.append(Written(new, warp, clock, reach, size, patterns, writers, modifies))
        del writes[:-_KEPT]

    def _in_sequence(self, warp, reach) -> None:
        """Order a ``fence.sc`` after those executed before it."""
        clocks = self.clocks
        block = slice(clocks.visible, clocks.visible + clocks.actors)
        orders = [clocks.cta(warp)] + (["gpu"] if reach == GPU else [])
        for order in orders:
            earlier = self._sequential.get(order)
            if earlier is not None:
                known = clocks.known[warp, block]
                known[...] = np.maximum(known, earlier.row)
                clocks.learn_events(warp, earlier.events)
        knowledge = clocks.knowledge(warp)
        knowledge = Knowledge(knowledge.row[block], knowledge.events)
        for order in orders:
            self._sequential[order] = knowledge.joined(self._sequential.get(order))
