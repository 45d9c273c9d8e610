"""Which accesses are ordered: vector clocks over actors, and who touched each cell of memory last.

An actor is a warp, or one of the engines that work for a warp behind its back: the copies of
``cp.async`` and the tensor core's reads by ``wgmma``. ``known[w, a]`` is the last clock of actor a
whose accesses happen before what warp w does next. The edges, with the sections of the PTX ISA's
chapter "Memory Consistency Model" that they come from:

- program order of a warp ("Program Order"). Lanes of one warp are one actor: what they may do to
  each other is not looked at;
- ``bar.sync`` and its kin: all that participants did before it precedes what they do after it
  ("Memory synchronization": barriers synchronize);
- a release pattern that an acquire pattern observes, over the same location and with scopes that
  include each other ("Release and Acquire Patterns", "Morally strong operations"):
  ``st.release``, ``atom.release`` and ``acq_rel``, or a fence before a strong write; mirrored for
  acquire; through chains of atomic read-modify-writes ("Observation Order");
- completion: ``cp.async.wait_group`` and ``wgmma.wait_group`` order what the engine did in a group
  before what the warp does next; its issue orders what the warp did before the engine's work
  (these stand with the instructions, in "Asynchronous operations");
- proxies ("Proxies", "Causality order"): the tensor core reads shared memory through the async
  proxy, so a write by the generic proxy is seen only when a ``fence.proxy.async`` stands on the
  path.
"""

from __future__ import annotations

import numpy as np

from .findings import Finding, Report
from .memory import Memory

# An epoch is a clock and the instruction of the access, in one integer that sorts by the clock.
_INSTRUCTION_BITS = 20
_INSTRUCTION = (1 << _INSTRUCTION_BITS) - 1


class Clocks:
    """What each warp knows of each actor.

    Args:
        warps: of all CTAs.
        per_cta: warps of a CTA.
        engines: the names of the engines that the program uses, "cp.async" and "wgmma".
    """

    def __init__(self, warps: int, per_cta: int, engines: tuple[str, ...] = ()):
        self.warps, self.per_cta, self.engines = warps, per_cta, engines
        self.actors = warps * (1 + len(engines))
        # With wgmma a second half: what the warp's accesses through the async proxy may see.
        self.proxied = self.actors if "wgmma" in engines else 0
        self.known = np.zeros((warps, self.actors + self.proxied), np.int32)
        own = np.arange(warps)
        self.known[own, own] = 1
        self.phase = np.zeros(warps, np.int32)  # how often all warps of the CTA met
        self._groups = np.ones((len(engines), warps), np.int32)
        self._released: dict[tuple, tuple[np.ndarray, int, str]] = {}
        self._fenced: dict[int, tuple[np.ndarray, str]] = {}  # what a later strong write releases
        self._observed: dict[int, np.ndarray] = {}  # what a later fence acquires

    def tick(self, warps) -> None:
        """What these warps do from now on is later than what was passed on until now."""
        own = np.arange(self.warps)[warps]
        self.known[own, own] += 1

    def meet(self, warps: np.ndarray) -> None:
        """The warps were at one barrier."""
        self.known[warps] = self.known[warps].max(0)
        self.tick(warps)
        if warps.size == self.per_cta:
            self.phase[warps] += 1

    def release(self, warp: int, place, scope: str, keeps_chain: bool, ordered: bool) -> None:
        """A strong write to ``place``: what it passes on to those who observe it.

        Args:
            keeps_chain: a read-modify-write, which continues the release sequence it reads from.
            ordered: by itself, as ``.release`` is; else only what a fence before it covers.
        """
        clock, reach = (
            (self.known[warp].copy(), scope) if ordered else self._fenced.get(warp, (None, scope))
        )
        earlier = self._released.get(place) if keeps_chain else None
        if earlier is not None:
            clock = earlier[0] if clock is None else np.maximum(clock, earlier[0])
            reach = "cta" if "cta" in (reach, earlier[2]) else reach
        if clock is None:
            self._released.pop(place, None)
        else:
            reach = "cta" if "cta" in (reach, scope) else reach
            self._released[place] = (clock, warp // self.per_cta, reach)
        if ordered:
            self.tick(slice(warp, warp + 1))

    def acquire(self, warp: int, place, scope: str, ordered: bool) -> None:
        """A strong read of ``place``; without ``ordered`` it takes a fence after it to count."""
        released = self._released.get(place)
        if released is None:
            return
        clock, cta, reach = released
        if "cta" in (reach, scope) and cta != warp // self.per_cta:
            return
        if ordered:
            np.maximum(self.known[warp], clock, out=self.known[warp])
        else:
            seen = self._observed.get(warp)
            self._observed[warp] = clock if seen is None else np.maximum(seen, clock)

    def fence(self, warp: int, scope: str) -> None:
        """``fence.acq_rel`` or ``fence.sc``."""
        seen = self._observed.pop(warp, None)
        if seen is not None:
            np.maximum(self.known[warp], seen, out=self.known[warp])
        self._fenced[warp] = (self.known[warp].copy(), scope)
        self.tick(slice(warp, warp + 1))

    def fence_proxy(self, warps) -> None:
        """``fence.proxy.async``: the async proxy sees what the generic one knows."""
        if self.proxied:
            self.known[warps, self.actors :] = self.known[warps, : self.actors]
            self.tick(warps)

    def engine(self, name: str, warps: np.ndarray) -> np.ndarray:
        """The actors that work for the warps."""
        return warps + self.warps * (1 + self.engines.index(name))

    def group(self, name: str, warps) -> np.ndarray:
        """The clock of the group that is being filled."""
        return self._groups[self.engines.index(name)][warps]

    def commit(self, name: str, warps) -> None:
        self._groups[self.engines.index(name)][warps] += 1

    def complete(self, name: str, warps, pending: int) -> None:
        """All groups but the last ``pending`` committed ones are done."""
        done = self.group(name, warps) - 1 - pending
        own = np.arange(self.warps)[warps]
        columns = self.engine(name, own)
        self.known[own, columns] = np.maximum(self.known[own, columns], done)


class History:
    """The last accesses to each cell of an address space.

    Args:
        memory: the space.
        cell: bytes of a cell: the smallest access that the program makes.
        shared_by: warps that can read a cell, those of one CTA in shared memory.
        strong_loads: of each instruction, whether it is one: these and strong writes do not race.
        strong_writes: whether the program has any, atomics among them, in this space.
    """

    def __init__(
        self,
        memory: Memory,
        clocks: Clocks,
        cell: int,
        shared_by: int,
        report: Report,
        describe,
        strong_loads: np.ndarray,
        strong_writes: bool,
    ):
        self.memory, self.clocks, self.cell, self.report = memory, clocks, cell, report
        self._describe = describe  # (actor, instruction index) -> Access
        cells = memory.size // cell
        self._tracked = np.zeros(cells, bool)
        for region in memory.regions:
            if region.written:
                self._tracked[region.begin // cell : -(-region.end // cell)] = True
        self._all_tracked = all(region.written for region in memory.regions)
        self._writer = np.zeros(cells, np.int32)
        self._written = np.zeros(cells, np.int64)  # epochs
        self._shared_by = shared_by
        self._kinds = 1 + len(clocks.engines)
        kind, warp = np.divmod(np.arange(clocks.actors), clocks.warps)
        self._column = kind * shared_by + warp % shared_by  # of an actor among the readers
        # Pages of zeros cost nothing until they are touched.
        self._read = np.zeros((cells, shared_by * self._kinds), np.int64)  # epochs
        self._strong_loads = strong_loads
        self._is_strong = np.zeros(cells if strong_writes else 0, bool)  # written so, at any time
        self._strongly = np.zeros((cells if strong_writes else 0, shared_by), np.int64)  # epochs
        # Between two meetings of a whole CTA there is nothing to look up of its shared memory,
        # unless an engine may still be at work.
        self._phased = memory.space == "shared" and not clocks.engines
        self._read_phase = np.full(cells if self._phased else 0, -1, np.int32)

    def reads(self, offsets, size, warps, instruction, engine="", proxied=False) -> None:
        """Lanes read: an access per element of ``offsets``, by the warp at the same place."""
        cells, warps = self._cells(offsets, size, warps)
        if cells.size == 0:
            return
        actors = self.clocks.engine(engine, warps) if engine else warps
        seen = self.clocks.known[
            warps, self._writer[cells] + (self.clocks.proxied if proxied else 0)
        ]
        bad = (self._written[cells] >> _INSTRUCTION_BITS) > seen
        if bad.any():
            self._report_reads(cells[bad], warps[bad], actors[bad], instruction, proxied)
        if self._is_strong.size and not self._strong_loads[instruction.index]:
            self._check_strong("read-write race", cells, warps, actors, instruction)
        self._read[cells, self._column[actors]] = self._epoch(engine, warps, instruction)
        if self._phased:
            self._read_phase[cells] = self.clocks.phase[warps]

    def writes(
        self,
        offsets,
        size,
        warps,
        instruction,
        changes,
        engine="",
        group=None,
        known=None,
    ) -> None:
        """Lanes write.

        Args:
            changes: of each access, whether it brings other bytes than are there. Layouts that
                replicate a value have several warps store it by the same instruction, which harms
                nobody; equal bytes of two instructions are an accident, and a race.
            group: of an engine's work, of each access.
            known: what warps knew when the engine was started; what they did since is not ordered
                before its work.
        """
        every = self._cells(offsets, size, warps)
        cells, warps = every
        if cells.size == 0:
            return
        many = max(1, size // self.cell)
        changes = np.repeat(changes, many)
        clock = None if group is None else np.repeat(group, many)
        if changes.size != cells.size:  # some of the cells are untracked
            raise AssertionError(f"{instruction} stores to what was taken for read-only")
        actors = self.clocks.engine(engine, warps) if engine else warps
        known = self.clocks.known if known is None else known
        writer, written = self._writer[cells], self._written[cells]
        bad = (written >> _INSTRUCTION_BITS) > known[warps, writer]
        if bad.any():
            bad &= changes | (written & _INSTRUCTION != instruction.index)
        if bad.any():
            self._report_one(
                "write-write race",
                cells[bad],
                actors[bad],
                instruction,
                writer[bad],
                written[bad],
            )
        self._check_readers(cells, warps, actors, instruction, known)
        if self._is_strong.size:
            self._check_strong("write-write race", cells, warps, actors, instruction, known)
        self._writer[cells] = actors
        self._written[cells] = self._epoch(engine, warps, instruction, clock)

    def strong_writes(self, offsets, size, warps, instruction) -> None:
        """Lanes write by strong stores or atomics: a race with weak accesses, not with strong."""
        cells, warps = self._cells(offsets, size, warps)
        writer, written = self._writer[cells], self._written[cells]
        bad = (written >> _INSTRUCTION_BITS) > self.clocks.known[warps, writer]
        if bad.any():
            kind = "write-write race"
            self._report_one(kind, cells[bad], warps[bad], instruction, writer[bad], written[bad])
        self._check_readers(cells, warps, warps, instruction, self.clocks.known, strong=True)
        self._is_strong[cells] = True
        self._strongly[cells, warps % self._shared_by] = self._epoch("", warps, instruction)

    def overwritten(self, offsets, size, warps, instruction, disagree) -> None:
        """Of one store by many lanes, those whose value another lane's has replaced at once."""
        cells, warps = self._cells(offsets[disagree], size, warps[disagree])
        if cells.size == 0:
            return
        winner = self._writer[cells]
        other = winner != warps
        if other.any():
            self._report_one(
                "write-write race",
                cells[other],
                warps[other],
                instruction,
                winner[other],
                self._written[cells[other]],
            )
        if not other.all() and self.report.is_new("lanes disagree", instruction.index):
            at = np.flatnonzero(~other)[0]
            place = self.memory.where(int(cells[at]) * self.cell)
            self.report.append(
                Finding("lanes disagree", place, self._describe(int(warps[at]), instruction.index))
            )

    def _check_strong(self, kind, cells, warps, actors, instruction, known=None):
        """A weak access: whether strong writes of other warps are not ordered before it."""
        known = self.clocks.known if known is None else known
        among = self._is_strong[cells]
        if not among.any():
            return
        cells, warps, actors = cells[among], warps[among], actors[among]
        writers = self._first_warp(warps)[:, None] + np.arange(self._shared_by)
        written = self._strongly[cells]
        row, column = np.nonzero((written >> _INSTRUCTION_BITS) > known[warps[:, None], writers])
        if row.size:
            self._report_one(
                kind,
                cells[row],
                actors[row],
                instruction,
                writers[row, column],
                written[row, column],
            )

    def _first_warp(self, warps):
        """Of those that share the memory with each."""
        per_cta = self.clocks.per_cta
        return warps // per_cta * per_cta if self.memory.space == "shared" else 0 * warps

    def _check_readers(self, cells, warps, actors, instruction, known, strong=False):
        clocks = self.clocks
        if self._phased:
            recent = self._read_phase[cells] == clocks.phase[warps]
            if not recent.any():
                return
            cells, warps, actors = (v[recent] for v in (cells, warps, actors))
        read = self._read[cells]
        if not read.any():
            return
        base = self._first_warp(warps)
        for kind in range(self._kinds):
            columns = base[:, None] + np.arange(self._shared_by) + kind * clocks.warps
            part = read[:, kind * self._shared_by : (kind + 1) * self._shared_by]
            late = (part >> _INSTRUCTION_BITS) > known[warps[:, None], columns]
            if strong:
                late &= ~self._strong_loads[part & _INSTRUCTION]
            if late.any():
                row, column = (index[0] for index in np.nonzero(late))
                before = int(part[row, column]) & _INSTRUCTION
                if self.report.is_new("write-read race", instruction.index, before):
                    self.report.append(
                        Finding(
                            "write-read race",
                            self.memory.where(int(cells[row]) * self.cell),
                            self._describe(int(actors[row]), instruction.index),
                            self._describe(int(columns[row, column]), before),
                        )
                    )

    def _report_reads(self, cells, warps, actors, instruction, proxied):
        writer, written = self._writer[cells], self._written[cells]
        kind = "read-write race"
        if proxied and (written[0] >> _INSTRUCTION_BITS) <= self.clocks.known[warps[0], writer[0]]:
            kind = "proxy race"  # ordered, but no fence.proxy.async on the way
        self._report_one(kind, cells, actors, instruction, writer, written)

    def _report_one(self, kind, cells, actors, instruction, others, epochs):
        before = epochs & _INSTRUCTION
        for index in np.unique(before):
            at = np.flatnonzero(before == index)[0]
            if self.report.is_new(kind, instruction.index, int(index)):
                self.report.append(
                    Finding(
                        kind,
                        self.memory.where(int(cells[at]) * self.cell),
                        self._describe(int(actors[at]), instruction.index),
                        self._describe(int(others[at]), int(index)),
                    )
                )

    def _cells(self, offsets, size, warps):
        """The tracked cells of the accesses, and the warp of each."""
        many = max(1, size // self.cell)
        cells = offsets // self.cell
        if many > 1:
            cells = (cells[:, None] + np.arange(many)).ravel()
            warps = np.repeat(warps, many)
        if self._all_tracked:
            return cells, warps
        tracked = self._tracked[cells]
        return (cells, warps) if tracked.all() else (cells[tracked], warps[tracked])

    def _epoch(self, engine, warps, instruction, clock=None):
        if clock is None:
            known = self.clocks.known
            clock = self.clocks.group(engine, warps) if engine else known[warps, warps]
        return clock.astype(np.int64) << _INSTRUCTION_BITS | instruction.index
