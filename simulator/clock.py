"""Cycles that a pass of a kernel's time loop takes, by its machine code: modelled, not measured.

    cycles(cubin, 80, warps=4).total

One multiprocessor runs one program or several: four schedulers, each of which issues one
instruction a cycle of the warps that it has, and pipes behind them (``pipes.py``). A warp issues
its instructions in order, when the assembler's control codes (``sass.py``), the pipes and the
barriers let it. The loop is followed straight through, see ``sass.time_loop``.

Modelled: fixed latencies, scoreboards, products waiting for products, the width of each pipe, bank
conflicts as counted by the simulator, sectors on the way to the L2 cache, copies in the background,
barriers of the program with the skew of its warps, fences that wait for stores.

Not modelled: register banks, the instruction caches, the first-level cache (each load goes to L2 or
DRAM), contention of multiprocessors for L2 and DRAM, lines that are not in the caches of addresses,
the skew of a grid's programs, launches.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import pipes, sass
from .pipes import Chip

_PASSES, _WARM_UP = 6, 2
# Of each scheduler: pipes that take one instruction after the other.
_OWN = ("fp32", "fp16", "integer", "special", "fp64", "tensor", "uniform")


@dataclass(frozen=True)
class Cycles:
    """Cycles of a step.

    Args:
        total: of the step.
        spent: of these, what a warp spent them on, averaged over the warps: "issue" of its own
            instructions; "latency" of fixed length; waits for "special", "shared", "load",
            ... results; "tensor" for products; "barrier" of the program, "grid" for the other
            programs, "fence" for stores; "busy x" where pipe x was busy.
        busy: cycles that each pipe worked: of the busiest scheduler, or of the multiprocessor.
        instructions: of all warps.
        special_functions: of these, those that the special function unit executes.
        microseconds: at the boost clock.
    """

    total: float
    spent: dict[str, float]
    busy: dict[str, float]
    instructions: float
    special_functions: float
    microseconds: float

    @property
    def busiest(self) -> str:
        """The pipe that worked longest."""
        return max(self.busy, key=lambda name: self.busy[name])


def cycles(
    cubin: bytes | str | Path,
    capability: int,
    warps: int,
    *,
    programs: int = 1,
    steps_per_pass: int = 1,
    inner: int = 1,
    dram: bool = False,
    grid: bool = False,
    sectors: Mapping[tuple[str, int], float] | None = None,
    wavefronts: Mapping[tuple[str, int], float] | None = None,
) -> Cycles:
    """Estimate the cycles of a step of a kernel.

    Args:
        cubin: the kernel, or the path of a file that has it.
        capability: 80 or 90: the chip, for which the kernel was compiled.
        warps: of a program.
        programs: that the multiprocessor runs at once.
        steps_per_pass: time steps of a pass of the loop, if it was unrolled.
        inner: passes of loops inside the time loop that have products.
        dram: take loads, except strong ones, from DRAM instead of the L2 cache.
        grid: let each loop that polls last as long as it would if all programs were at the same
            place: a counter, until the published time of a barrier of the grid after the program's
            arrival, its last atomic operation; values, until two latencies of L2 after its last
            strong store: one until this arrives, half for the way back, half since it polls once
            per latency. Otherwise a loop is one access, as if the other programs were ahead.
        sectors: of an access to global memory of a warp, by ("read" or "write", bytes of a lane);
            those of adjacent lanes where nothing is given.
        wavefronts: of an access to shared memory for each that it takes without bank conflicts, by
            the same; 1 where nothing is given.

    Raises:
        ValueError: no table of the capability; a number below 1.
        Unsupported: a kernel without a loop, or with instructions that ``pipes`` does not know.
    """
    given = {"warps": warps, "programs": programs, "inner": inner, "steps_per_pass": steps_per_pass}
    for name, value in given.items():
        if value < 1:
            raise ValueError(f"{name}: expected 1 or more, got {value!r}")
    chip = pipes.chip(capability)
    code = sass.read(cubin if isinstance(cubin, bytes) else Path(cubin).read_bytes())
    body = sass.time_loop(code, inner)
    model = _Multiprocessor(body, chip, warps, programs)
    model.prepare(dram, grid, sectors or {}, wavefronts or {})
    total = model.run() / steps_per_pass

    def each(counts, by):
        return {name: n / by for name, n in counts.most_common() if n}

    steps = (_PASSES - _WARM_UP) * steps_per_pass
    all_warps = warps * programs / steps_per_pass
    return Cycles(
        total,
        each(model.spent, steps * warps * programs),
        each(model.busiest(), _PASSES * steps_per_pass),
        len(body) * all_warps,
        sum(x.name == "MUFU" for x in body) * all_warps,
        total / chip.mhz,
    )


@dataclass(frozen=True)
class _Step:
    """An instruction as the model executes it.

    Args:
        kind: of its pipe.
        pace: cycles that it occupies this pipe.
        latency: until its result is there.
        after: products that it waits for.
        sectors: on the way to L2.
    """

    code: sass.Instruction
    kind: str
    pace: float
    latency: float
    after: tuple[int, ...]
    sectors: float
    source: str


class _Warp:
    """The state of a warp."""

    def __init__(self, number: int, program: int, products: int):
        self.number, self.program, self.scheduler = number, program, number % 4
        self.place = self.passes = 0
        self.ready = self.last = 0.0
        self.why = "latency"
        self.boards, self.sources = [0.0] * 6, ["latency"] * 6
        self.finished = [0.0] * products
        self.copies = 0.0  # when the copies of the open group arrive
        self.groups: list[float] = []


class _Multiprocessor:
    """Plays passes of a loop."""

    def __init__(self, body, chip: Chip, warps: int, programs: int):
        self.body, self.chip, self.size = body, chip, warps
        self.warps = [_Warp(n, n // warps, len(body)) for n in range(warps * programs)]
        self.issue = [0.0] * 4
        self.own = {name: [0.0] * 4 for name in _OWN}
        self.shared = self.reads = self.writes = 0.0
        self.stored = [0.0] * programs  # when the last store of a program arrives
        self.signalled = [0.0] * programs  # its last atomic operation
        self.published = [0.0] * programs  # its last strong store
        self.arrived: dict[tuple[int, str], list[_Warp]] = {}
        self.spent: Counter = Counter()
        self.work: list[Counter] = [Counter() for _ in range(5)]  # of the schedulers; of all

    def prepare(self, dram, grid, sectors, wavefronts) -> None:
        self.barrier = self.chip.grid * self.chip.mhz if grid else 0.0
        self.passing = 2 * self.chip.l2 if grid else 0.0
        given = (dram, sectors, wavefronts)
        after = sass.products_before(self.body)
        self.steps = [self._step(x, after[k], *given) for k, x in enumerate(self.body)]

    def _step(self, x, after, dram, sectors, wavefronts) -> _Step:
        chip, kind = self.chip, pipes.kind(x.opcode)
        pace, latency, moved, source = 1.0, 6.0, 0.0, kind
        if kind == "tensor":
            pace = pipes.product_cycles(x.opcode, chip)
            latency = max(chip.product, pace)
        elif kind == "fp32 integer":
            kind, pace = "fp32", chip.fp32_integer
        elif kind in _OWN:
            pace = getattr(chip, kind)
            latency = {"special": chip.special_function, "uniform": chip.uniform_value}.get(
                kind, latency
            )
        elif kind == "shuffle":
            kind, latency = "shared", chip.shuffle
        elif kind == "constant":
            latency = chip.constant
        elif kind == "shared":
            pace = pipes.wavefronts(x.opcode) * wavefronts.get(pipes.access(x.opcode), 1.0)
            latency = chip.matrix if x.name == "LDSM" else chip.shared
            # Sun: two cycles for each wavefront beyond the first.
            latency += 2 * max(0.0, pace - 1)
        elif kind == "global":
            reads = pipes.access(x.opcode)[0] == "read"
            moved = sectors.get(pipes.access(x.opcode), pipes.sectors(x.opcode))
            pace = max(1.0, pipes.width(x.opcode) / 4)
            strong = ".STRONG" in x.opcode
            latency = chip.dram if reads and dram and not strong else chip.l2
            source = "load" if reads else "store"
            if pipes.access(x.opcode)[0] == "atomic":
                source, moved, pace, latency = "atomic", 1.0, 1.0, chip.atomic
            if x.polls and source != "store":
                source = "grid"
                if pipes.width(x.opcode) < 16:  # of a counter, which all lanes read
                    moved, pace = 1.0, 1.0
        return _Step(x, kind, pace, latency, after, moved, source)

    def run(self) -> float:
        """Cycles of a pass, after the first ones."""
        ends = [0.0] * _PASSES
        # Of several warps that can go on, the one that waited longest does.
        waiting = [(0.0, 0.0, warp.number) for warp in self.warps]
        while waiting:
            time, last, number = heapq.heappop(waiting)
            warp = self.warps[number]
            # Another warp may have taken the pipe meanwhile: times only grow.
            now, why = self._earliest(warp)
            if now > time:
                heapq.heappush(waiting, (now, last, number))
                continue
            released = self._issue(warp, now, why)
            if warp.place == len(self.body):
                ends[warp.passes] = max(ends[warp.passes], now)
                warp.place, warp.passes = 0, warp.passes + 1
            for other in released:
                if other.passes < _PASSES:
                    heapq.heappush(waiting, (other.ready, other.last, other.number))
        return (ends[-1] - ends[_WARM_UP - 1]) / (_PASSES - _WARM_UP)

    def _earliest(self, warp: _Warp) -> tuple[float, str]:
        """The first cycle at which a warp can issue its next instruction, and what it waits for."""
        step = self.steps[warp.place]
        time, why = warp.ready, warp.why
        for board in step.code.waits:
            if warp.boards[board] > time:
                time, why = warp.boards[board], warp.sources[board]
        for product in step.after:
            if warp.finished[product] > time:
                time, why = warp.finished[product], "tensor"
        if step.kind == "fence" and self.stored[warp.program] > time:
            time, why = self.stored[warp.program], "fence"
        if step.kind == "wait":
            until, what = self._background(warp, step)
            if until > time:
                time, why = until, what
        free = 0.0
        if step.kind in self.own:
            free = self.own[step.kind][warp.scheduler]
        elif step.kind in ("shared", "global"):
            free = self.shared - self.chip.queue
        if free > time:
            time, why = free, f"busy {step.kind}"
        if self.issue[warp.scheduler] > time:
            time, why = self.issue[warp.scheduler], "busy issue"
        return time, why

    def _background(self, warp: _Warp, step: _Step) -> tuple[float, str]:
        """When what runs in the background is done as far as an instruction waits for it."""
        if step.code.opcode.startswith("WARPGROUP.DEPBAR"):
            return max(warp.finished), "tensor"
        if step.code.name != "DEPBAR" or not warp.groups:
            return 0.0, "load"
        left = int(step.code.operands.rpartition(",")[2].strip(), 16)  # of "SB0, 0x1"
        return max(warp.groups[: len(warp.groups) - left], default=0.0), "load"

    def _issue(self, warp: _Warp, now: float, why: str) -> list[_Warp]:
        """Issue a warp's next instruction; returns the warps that can go on."""
        step, x = self.steps[warp.place], self.steps[warp.place].code
        if warp.passes >= _WARM_UP:
            self.spent["issue"] += 1
            self.spent[why] += max(0.0, now - warp.last - 1)
        warp.last = now
        self.issue[warp.scheduler] = now + 1
        self.work[warp.scheduler]["issue"] += 1
        result = now + step.latency
        if step.kind in self.own:
            self.own[step.kind][warp.scheduler] = now + step.pace
            self.work[warp.scheduler][step.kind] += step.pace
            if step.kind == "tensor":
                warp.finished[warp.place] = result
        elif step.kind in ("shared", "global"):
            result = self._access(warp, step, now)
        elif x.name == "LDGDEPBAR":
            warp.groups.append(warp.copies)
            warp.copies = 0.0
        if x.sets < sass.NO_BOARD - 1:
            warp.boards[x.sets] = max(warp.boards[x.sets], result)
            warp.sources[x.sets] = step.source
        if x.holds < sass.NO_BOARD - 1:
            wide = step.kind in ("shared", "global")
            read = now + (self.chip.operands if wide else 6)
            if read > warp.boards[x.holds]:
                warp.boards[x.holds], warp.sources[x.holds] = read, "operands"
        warp.ready, warp.why = now + max(1, x.stall), "latency"
        warp.place += 1
        if x.opcode.startswith("BAR.SYNC") or x.opcode.startswith("BAR.RED"):
            return self._meet(warp, now, x.operands.split(",")[0])
        return [warp]

    def _access(self, warp: _Warp, step: _Step, now: float) -> float:
        """Occupy the ways to memory; returns when the result is there."""
        begin = max(self.shared, now)
        self.shared = begin + step.pace
        self.work[4]["shared"] += step.pace
        if step.kind == "shared":
            return begin + step.latency
        time = step.sectors * pipes.SECTOR / self.chip.path
        if step.source in ("load", "grid"):
            begin = max(self.reads, begin)
            self.reads = begin + time
            self.work[4]["L2 reads"] += time
        else:
            begin = max(self.writes, begin)
            self.writes = begin + time
            self.work[4]["L2 writes"] += time
        result = begin + time + step.latency
        if step.source == "grid":
            if pipes.width(step.code.opcode) < 16:
                result = max(result, self.signalled[warp.program] + self.barrier)
            else:
                result = max(result, self.published[warp.program] + self.passing)
        elif step.code.name == "LDGSTS":
            warp.copies = max(warp.copies, result)
        elif step.source == "atomic":
            self.signalled[warp.program] = now
        elif step.source == "store":
            self.stored[warp.program] = max(self.stored[warp.program], result)
            if ".STRONG" in step.code.opcode:
                self.published[warp.program] = now
        return result

    def _meet(self, warp: _Warp, now: float, name: str) -> list[_Warp]:
        """Arrive at a barrier of the program; the last warp lets all go on."""
        arrived = self.arrived.setdefault((warp.program, name), [])
        arrived.append(warp)
        if len(arrived) < self.size:
            return []
        del self.arrived[warp.program, name]
        for other in arrived:
            other.ready, other.why = max(other.ready, now + self.chip.barrier), "barrier"
        return arrived

    def busiest(self) -> Counter:
        """Work of each pipe, of the scheduler that had most of it."""
        most: Counter = Counter()
        for work in self.work:
            for name, amount in work.items():
                most[name] = max(most[name], amount)
        return most
