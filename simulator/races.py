"""Data races: the last accesses to each cell of memory, and whether they are ordered.

Two accesses to one byte, one of them a write, race unless one precedes the other in causality
order or they are morally strong: both strong, of one size, with scopes that include each other's
threads (the PTX ISA's chapter "Memory Consistency Model", "Conflict and data-races"). The order is
that of ``clocks.py`` and ``synchronization.py``. Three further rules:

- equal bytes that several warps store by one instruction are harmless: replicated layouts do it;
- among lanes of one warp, only a plain write and a later access by another lane are reported, with
  no ``bar.warp.sync`` or ``bar.sync`` in between;
- ``ld.global.nc`` reads through a cache that is not coherent: the kernel must not write the data
  at all.
"""

from __future__ import annotations

import numpy as np

from .clocks import Clocks
from .findings import Finding, Report
from .memory import Memory
from .ptx import SIZE, Instruction
from .synchronization import GPU, REACH

# An epoch packs the clock, the lane and the instruction of an access into one integer, which sorts
# by the clock.
_INSTRUCTION_BITS = 20
_INSTRUCTION = (1 << _INSTRUCTION_BITS) - 1
_CLOCK = _INSTRUCTION_BITS + 5
_LANES = "by different lanes of one warp, which have not met at a bar.warp.sync since"
_SCOPES = "both are strong, but their scopes do not include each other's threads"
_SIZES = "both are strong, but of different sizes"
_READ_ONLY = "ld.global.nc is for what no thread writes while the kernel runs"


class History:
    """The last accesses to each cell of an address space.

    Args:
        memory: the space.
        cell: bytes of a cell: the smallest access that the program makes.
        shared_by: the number of warps that can read a cell: in shared memory, those of one CTA.
        program: the instructions.
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
        program: tuple[Instruction, ...],
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
        # Untouched pages of zeros take no memory.
        self._read = np.zeros((cells, shared_by * self._kinds), np.int64)  # epochs
        # The reach of each instruction's scope and its size in bytes; 0 for weak ones.
        self._reach = np.array([REACH[i.scope()] if i.is_strong() else 0 for i in program])
        self._size = np.array([element_size(i) if i.is_strong() else 0 for i in program])
        used = self._reach > 0
        # Whether strong accesses may fail to be morally strong with each other.
        self._mixed = bool(used.any()) and (
            (self._reach[used] != GPU).any() or np.unique(self._size[used]).size > 1
        )
        self._is_strong = np.zeros(cells if strong_writes else 0, bool)  # at any time
        self._strongly = np.zeros((cells if strong_writes else 0, shared_by), np.int64)  # epochs
        read_only = memory.space == "global" and any("nc" in i.modifiers for i in program)
        self._read_only = np.zeros(cells if read_only else 0, np.int64)  # epochs, by ld.global.nc
        self._read_only_by = np.zeros(cells if read_only else 0, np.int32)
        # Once a whole CTA has met, earlier reads of its shared memory cannot race with later
        # writes, unless an engine may still be at work.
        self._phased = memory.space == "shared" and not clocks.engines
        self._read_phase = np.full(cells if self._phased else 0, -1, np.int32)

    def reads(self, offsets, size, threads, instruction, engine="", proxied=False) -> None:
        """Check reads of lanes: an access per element of ``offsets``, by its thread."""
        cells, threads = self._cells(offsets, size, threads)
        if cells.size == 0:
            return
        clocks, warps = self.clocks, threads >> 5
        actors = clocks.engine(engine, warps) if engine else warps
        writer, written = self._writer[cells], self._written[cells]
        seen = clocks.known[warps, writer + (clocks.proxied if proxied else 0)]
        bad = (written >> _CLOCK) > seen
        if bad.any() and not proxied:
            bad &= ~self._within(threads, writer, written, instruction, bool(engine))
        if bad.any():
            kind = "read-write race"
            at = np.flatnonzero(bad)[0]
            if proxied and written[at] >> _CLOCK <= clocks.known[warps[at], writer[at]]:
                kind = "proxy race"  # ordered, but no fence.proxy.async on the way
            self._report(kind, cells, actors, instruction, writer, written, bad)
        if self._is_strong.size and (self._mixed or not self._reach[instruction.index]):
            self._check_strong("read-write race", cells, warps, actors, instruction, clocks.known)
        if self._read_only.size:
            self._check_read_only(cells, warps, instruction, written)
        self._read[cells, self._column[actors]] = self._epoch(engine, threads, instruction)
        if self._phased:
            self._read_phase[cells] = clocks.phase[warps]

    def writes(
        self,
        offsets,
        size,
        threads,
        instruction,
        changes,
        engine="",
        group=None,
        known=None,
    ) -> None:
        """Check plain writes of lanes.

        Args:
            changes: whether each access changes the bytes. In layouts that replicate a value,
                several warps store it by the same instruction, which is harmless; equal bytes of
                two instructions are a coincidence, and a race.
            group: for an engine, the group of each access.
            known: the knowledge of warps when the engine was started; their later accesses are not
                ordered before its work.
        """
        cells, threads = self._cells(offsets, size, threads)
        if cells.size == 0:
            return
        many = max(1, size // self.cell)
        changes = np.repeat(changes, many)
        clock = None if group is None else np.repeat(group, many)
        if changes.size != cells.size:  # some of the cells are untracked
            raise AssertionError(f"{instruction} stores to what was taken for read-only")
        warps = threads >> 5
        actors = self.clocks.engine(engine, warps) if engine else warps
        known = self.clocks.known if known is None else known
        writer, written = self._writer[cells], self._written[cells]
        bad = (written >> _CLOCK) > known[warps, writer]
        if bad.any():
            bad &= changes | (written & _INSTRUCTION != instruction.index)
            if not engine:
                bad &= ~self._within(threads, writer, written, instruction)
            self._report("write-write race", cells, actors, instruction, writer, written, bad)
        self._check_readers(cells, warps, actors, instruction, known)
        if self._is_strong.size:
            self._check_strong("write-write race", cells, warps, actors, instruction, known)
        if self._read_only.size:
            self._check_read_only_written(cells, actors, instruction)
        self._writer[cells] = actors
        self._written[cells] = self._epoch(engine, threads, instruction, clock)

    def strong_writes(self, offsets, size, threads, instruction) -> None:
        """Check strong writes of lanes: they race with unordered accesses unless morally strong."""
        cells, threads = self._cells(offsets, size, threads)
        if cells.size == 0:
            return
        clocks, warps = self.clocks, threads >> 5
        writer, written = self._writer[cells], self._written[cells]
        bad = (written >> _CLOCK) > clocks.known[warps, writer]
        if bad.any():
            bad &= ~self._within(threads, writer, written, instruction)
            self._report("write-write race", cells, warps, instruction, writer, written, bad)
        self._check_readers(cells, warps, warps, instruction, clocks.known)
        if self._mixed:
            self._check_strong("write-write race", cells, warps, warps, instruction, clocks.known)
            self._check_each_other(cells, warps, instruction)
        if self._read_only.size:
            self._check_read_only_written(cells, warps, instruction)
        self._is_strong[cells] = True
        self._strongly[cells, warps % self._shared_by] = self._epoch("", threads, instruction)

    def strongly_written(self, offsets) -> np.ndarray:
        """Per access, whether its first byte was ever written by a strong write."""
        if not self._is_strong.size:
            return np.zeros(offsets.size, bool)
        return self._is_strong[offsets // self.cell]

    def overwritten(self, offsets, size, threads, instruction, disagree) -> None:
        """Report lanes of a store whose value another lane of the same store overwrites."""
        cells, threads = self._cells(offsets[disagree], size, threads[disagree])
        if cells.size == 0:
            return
        warps = threads >> 5
        winner, written = self._writer[cells], self._written[cells]
        other = winner != warps
        self._report("write-write race", cells, warps, instruction, winner, written, other)
        if not other.all() and self.report.is_new("lanes disagree", instruction.index):
            at = np.flatnonzero(~other)[0]
            place = self.memory.where(int(cells[at]) * self.cell)
            self.report.append(
                Finding("lanes disagree", place, self._describe(int(warps[at]), instruction.index))
            )

    # ---- checks

    def _within(self, threads, writer, written, instruction, engine=False) -> np.ndarray:
        """Whether writes are of the same warp and precede its access in program order.

        Plain writes of another lane do not: they are ordered by a ``bar.warp.sync``.
        """
        own = writer == threads >> 5
        if engine or self._reach[instruction.index]:
            return own
        return own & (written >> _INSTRUCTION_BITS & 31 == threads & 31)

    def _check_strong(self, kind, cells, warps, actors, instruction, known):
        """Report strong writes of other warps, neither ordered before nor morally strong."""
        among = self._is_strong[cells]
        if not among.any():
            return
        cells, warps, actors = cells[among], warps[among], actors[among]
        writers = self._first_warp(warps)[:, None] + np.arange(self._shared_by)
        written = self._strongly[cells]
        late = (written >> _CLOCK) > known[warps[:, None], writers]
        late &= writers != warps[:, None]
        row, column = np.nonzero(late)
        if row.size == 0:
            return
        writer, epoch = writers[row, column], written[row, column]
        bad = ~self._morally_strong(instruction, warps[row], epoch & _INSTRUCTION, writer)
        if bad.any() and self.clocks.events:
            bad &= ~self._observed(cells[row], warps[row], writer, epoch)
        self._report(kind, cells[row], actors[row], instruction, writer, epoch, bad)

    def _check_each_other(self, cells, warps, instruction):
        """Check strong writes of one instruction against each other."""
        order = np.argsort(cells, kind="stable")
        cells, warps = cells[order], warps[order]
        again = cells[1:] == cells[:-1]
        again &= warps[1:] // self.clocks.per_cta != warps[:-1] // self.clocks.per_cta
        if self._reach[instruction.index] != GPU:
            epochs = np.full(again.size, instruction.index)
            self._report(
                "write-write race", cells[1:], warps[1:], instruction, warps[:-1], epochs, again
            )

    def _check_readers(self, cells, warps, actors, instruction, known):
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
            readers = base[:, None] + np.arange(self._shared_by) + kind * clocks.warps
            part = read[:, kind * self._shared_by : (kind + 1) * self._shared_by]
            late = (part >> _CLOCK) > known[warps[:, None], readers]
            if not late.any():
                continue
            row, column = np.nonzero(late)
            reader, epoch = readers[row, column], part[row, column]
            bad = reader != actors[row]  # a warp's own reads precede its writes
            bad &= ~self._morally_strong(instruction, warps[row], epoch & _INSTRUCTION, reader)
            self._report(
                "write-read race", cells[row], actors[row], instruction, reader, epoch, bad
            )

    def _check_read_only(self, cells, warps, instruction, written):
        if "nc" not in instruction.modifiers:
            return
        bad = written != 0
        self._report(
            "read-write race", cells, warps, instruction, self._writer[cells], written, bad, "nc"
        )
        if self._is_strong.size:
            row, column = np.nonzero(self._strongly[cells])
            self._report(
                "read-write race",
                cells[row],
                warps[row],
                instruction,
                column,
                self._strongly[cells[row], column],
                np.ones(row.size, bool),
                "nc",
            )
        self._read_only[cells] = self._epoch("", warps << 5, instruction)
        self._read_only_by[cells] = warps

    def _check_read_only_written(self, cells, actors, instruction):
        epochs = self._read_only[cells]
        self._report(
            "write-read race",
            cells,
            actors,
            instruction,
            self._read_only_by[cells],
            epochs,
            epochs != 0,
            "nc",
        )

    def _morally_strong(self, instruction, warps, others, their_actors) -> np.ndarray:
        """Whether an instruction of these warps and other accesses are morally strong, in pairs."""
        reach, size = self._reach[instruction.index], self._size[instruction.index]
        if reach == 0:
            return np.zeros(others.size, bool)
        clocks = self.clocks
        same = (their_actors % clocks.warps) // clocks.per_cta == warps // clocks.per_cta
        reaches = self._reach[others]
        return (
            (reaches > 0)
            & (same | ((reach == GPU) & (reaches == GPU)))
            & (self._size[others] == size)
        )

    def _observed(self, cells, warps, writers, epochs) -> np.ndarray:
        """Whether the warps have read the values of strong writes, or values derived from them."""
        result = np.zeros(cells.size, bool)
        for k, (cell, warp, writer) in enumerate(zip(cells, warps, writers, strict=True)):
            size = int(self._size[epochs[k] & _INSTRUCTION])
            location = (self.memory.space, int(cell) * self.cell // size * size)
            seen = self.clocks.events.get(int(warp), {}).get((location, int(writer)), 0)
            result[k] = seen >= epochs[k] >> _CLOCK
        return result

    def _first_warp(self, warps):
        """For each warp, the first of those that share the memory with it."""
        per_cta = self.clocks.per_cta
        return warps // per_cta * per_cta if self.memory.space == "shared" else 0 * warps

    # ---- reports

    def _report(self, kind, cells, actors, instruction, others, epochs, bad, why=""):
        """Report the first bad access of each pair of instructions."""
        if not bad.any():
            return
        cells, actors, others, epochs = (v[bad] for v in (cells, actors, others, epochs))
        before = epochs & _INSTRUCTION
        for index in np.unique(before):
            at = np.flatnonzero(before == index)[0]
            if self.report.is_new(kind, instruction.index, int(index)):
                now, then = int(actors[at]), int(others[at])
                self.report.append(
                    Finding(
                        kind,
                        self.memory.where(int(cells[at]) * self.cell),
                        self._describe(now, instruction.index),
                        self._describe(then, int(index)),
                        self._why(instruction.index, int(index), now, then, why),
                    )
                )

    def _why(self, now: int, before: int, actor: int, other: int, why: str) -> str:
        if why == "nc":
            return _READ_ONLY
        if self._reach[now] and self._reach[before]:
            return _SIZES if self._size[now] != self._size[before] else _SCOPES
        return _LANES if actor == other else ""

    def _cells(self, offsets, size, threads):
        """The tracked cells of the accesses, and the thread of each."""
        many = max(1, size // self.cell)
        cells = offsets // self.cell
        if many > 1:
            cells = (cells[:, None] + np.arange(many)).ravel()
            threads = np.repeat(threads, many)
        if self._all_tracked:
            return cells, threads
        tracked = self._tracked[cells]
        return (cells, threads) if tracked.all() else (cells[tracked], threads[tracked])

    def _epoch(self, engine, threads, instruction, clock=None):
        if clock is None:
            warps = threads >> 5
            clock = self.clocks.group(engine, warps) if engine else self.clocks.clock[warps]
        lane = (threads & 31) << _INSTRUCTION_BITS
        return clock.astype(np.int64, copy=False) << _CLOCK | lane | instruction.index


def element_size(instruction: Instruction) -> int:
    """Bytes of a single strong access: a vector is several, a packed pair two."""
    kind = instruction.modifiers[-1]
    return 2 if kind in ("f16x2", "bf16x2") else SIZE.get(kind, 0)
