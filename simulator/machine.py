"""The machine: warps with their registers and program counters, CTAs, barriers, co-residency.

Code is split into stretches that end where warps may diverge, meet or communicate. A scheduler
selects adjacent warps at the same instruction, which run one stretch. Each instruction is a numpy
statement over the (warps, 32) values of its operands. When the lanes of a warp diverge, each lane
has its own program counter. The warp runs the instruction of the lowest ``flow.ranks``, under a
mask, until the lanes reconverge.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from . import flow
from .counters import Counters, static_counts
from .errors import Deadlock, KernelTrap, SimulatorError
from .findings import Access, Report
from .instructions import dispatch
from .memory import Memory, Region
from .ptx import SIZE, Program
from .races import Clocks, History
from .registers import LANES, Registers
from .synchronization import Newest, Synchronization

_READY, _WAITING, _DONE, _ABSENT = range(4)
_ENDS = ("bra", "ret", "exit", "trap", "call")


@dataclass(frozen=True)
class Options:
    """How a launch is executed.

    Args:
        schedule: "lockstep", "random" or "run-ahead".
        seed: of the schedule.
        races: look for races.
        count: count bytes, sectors and bank conflicts; instructions are always counted.
        resident: the maximum number of resident CTAs; None for all.
        stretches: give up after this number of them.
        trace: receives every access and barrier, see ``mutations.Trace``.
    """

    schedule: str = "lockstep"
    seed: int = 0
    races: bool = True
    count: bool = True
    resident: int | None = None
    stretches: int = 10_000_000
    trace: object = None


@dataclass
class Stretch:
    """Instructions that run without a break."""

    begin: int
    end: int
    run: tuple  # of functions of (warps, active)
    last: object  # the Instruction that ends it
    counts: dict
    polls: bool  # whether it may read memory to wait for other warps
    stops: bool  # whether the launch ends with it
    gathers: bool  # whether it needs all lanes of a warp


class Machine:
    """One launch of a program.

    Args:
        grid: CTAs along x, y, z.
        arguments: the bits of each parameter, an int.
        shared_bytes: of a CTA.
    """

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        arguments: list[int],
        shared_bytes: int,
        global_memory: Memory,
        scheduler,
        options: Options,
    ):
        self.program, self.grid, self.options, self.scheduler = program, grid, options, scheduler
        self.ctas = int(np.prod(grid))
        self.warps_per_cta = program.threads // 32
        self.warps = self.ctas * self.warps_per_cta
        self.index = np.arange(self.warps)
        self.threads = np.arange(32 * self.warps).reshape(self.warps, 32)
        self.cta = self.index // self.warps_per_cta
        self.report, self.counters = Report(), Counters()
        self.counters.totals["launches"] = 1
        self.memory = {"global": global_memory, "shared": self._shared(shared_bytes)}
        self.shared_begin = (self.cta * self.shared_stride).astype(np.int64)[:, None]
        self.engines = tuple(
            name
            for name, opcode, kind in (("cp.async", "cp", "async"), ("wgmma", "wgmma", "mma_async"))
            if any(i.opcode == opcode and kind in i.modifiers for i in program.instructions)
        )
        self.clocks = Clocks(
            self.warps,
            self.warps_per_cta,
            self.engines,
            any(map(_is_sequential, program.instructions)),
        )
        self.synchronization = (
            Synchronization(self.clocks, scheduler.pick) if options.races else Newest()
        )
        self.history = self._histories() if options.races else None
        self.registers = Registers(program, self.warps, self._constants(arguments))
        self.context = dispatch.Context(self)
        self._stretches = self._cut()
        self._ranks = flow.ranks(program)
        self._nowhere = np.int32(len(program.instructions))  # where lanes are that have exited

        self.at = np.zeros(self.warps, np.int32)
        self._lane_at = np.zeros((self.warps, 32), np.int32)
        self._parted = np.zeros(self.warps, bool)
        self._held = np.zeros((self.warps, 32), bool)  # lanes that wait for others of their warp
        self._state = np.full(self.warps, _READY, np.int8)
        if options.resident is not None:
            self._state[options.resident * self.warps_per_cta :] = _ABSENT
        self._barrier = np.zeros((self.warps, 2), np.int32)  # its number, and its number of threads
        self._came: dict[tuple, list] = {}  # the knowledge of warps that came by bar.arrive
        self._stalled = np.zeros(self.warps, bool)
        self._polled = np.zeros(self.warps, bool)
        self._polls_at = np.zeros(self.warps, np.int32)
        # The last backward branch of each warp; -1 once its CTA has changed global memory.
        self._round = np.full(self.warps, -1, np.int32)
        self.changed = False  # whether memory has, since polling warps last looked
        self._seen: set[bytes] = set()  # states of the machine since then

    def run(self) -> Machine:
        """Run until all CTAs are done.

        Raises:
            Deadlock, KernelTrap, MemoryFault, Unsupported.
        """
        with np.errstate(all="ignore"):
            for _ in range(self.options.stretches):
                if self.changed and self._held.any():
                    self._let_go()
                if self.changed and self.scheduler.wakes_early and self._stalled.any():
                    self._wake()
                ready = np.flatnonzero((self._state == _READY) & ~self._stalled)
                if ready.size == 0:
                    if (self._state == _DONE).all():
                        return self
                    ready = self._wake()
                self._step(self.scheduler.choose(self, ready))
        raise Deadlock(f"no end after {self.options.stretches} stretches\n{self._waiting()}")

    def is_ready(self, warp: int) -> bool:
        return warp >= 0 and self._state[warp] == _READY and not self._stalled[warp]

    def note_change(self, warps) -> None:
        """Note that the warps changed global memory: polling warps look again."""
        self.changed = True
        self._round.reshape(self.ctas, -1)[self.cta[warps]] = -1

    def describe(self, actor: int, instruction: int) -> Access:
        """An actor of the clocks, at an instruction, for a report."""
        engine, warp = divmod(actor, self.warps)
        return Access(
            int(self.cta[warp]),
            warp % self.warps_per_cta,
            self.program.instructions[instruction],
            self.engines[engine - 1] if engine else "",
        )

    # ---- one stretch

    def _step(self, warps: slice) -> None:
        stretch = self._stretches[int(self.at[warps.start])]
        active = None
        if self._parted[warps].any():
            self._lane_at[warps] = np.where(
                self._parted[warps, None], self._lane_at[warps], self.at[warps, None]
            )
            active = self._lane_at[warps] == self.at[warps, None]
        if stretch.polls:
            self._polled[warps] = True
            self._polls_at[warps] = stretch.last.index
        for run in stretch.run:
            run(warps, active)
        count = warps.stop - warps.start
        for name, number in stretch.counts.items():
            self.counters.totals[name] += number * count
        self._go_on(stretch, warps, active)

    def _go_on(self, stretch: Stretch, warps: slice, active) -> None:
        last = stretch.last
        following = np.int32(stretch.end)
        if last.opcode == "bra":
            self._branch(last, warps, active, following)
        elif last.opcode in ("ret", "exit"):
            taken = self.context.guard(last, warps, active)
            self._move(
                warps,
                active,
                np.where(taken, self._nowhere, following) if taken is not None else self._nowhere,
            )
            self._leave(warps)
        elif last.opcode in ("trap", "call"):  # of __assertfail
            taken = self.context.guard(last, warps, active)
            if taken is None or taken.any():
                raise KernelTrap(f"{last}{self._message(last)}")
            self._move(warps, active, following)
        else:
            self._move(warps, active, following)
            if last.is_barrier():
                self._arrive(last, warps, active)

    def _message(self, call) -> str:
        """The message of an assertion: the string whose address was last taken before the call."""
        before = self.program.instructions[: call.index] if call.opcode == "call" else ()
        named = [o for i in before for o in i.operands if o.startswith("assertMessage")]
        return f": assertion failed: {self.program.strings[named[-1]]}" if named else ""

    def _branch(self, last, warps, active, following):
        target = np.int32(self.program.labels[last.operands[-1]])
        taken = self.context.guard(last, warps, active)
        if taken is None:
            self._move(warps, active, target)
        else:
            self._move(warps, active, np.where(taken, target, following))
        here = self._stretches.get(int(target))
        arrive = active if taken is None else taken if active is None else taken & active
        if here is not None and here.stops and (arrive is None or arrive.any()):
            # Trap at once: other lanes may have code before it in which they wait for these.
            raise KernelTrap(f"{here.last}{self._message(here.last)}")
        if target <= last.index:
            # A warp that only polled in a loop lets all others run first.
            back = self._polled[warps] & (self.at[warps] == target) & (self._state[warps] == _READY)
            self._stalled[warps] |= back & (self._round[warps] == last.index)
            self._round[warps] = last.index
            self._polled[warps] = False

    def _move(self, warps: slice, active, place) -> None:
        """Jump to an instruction, or to one per lane; warps whose lanes agree reconverge."""
        if active is None and np.ndim(place) == 0:
            self.at[warps] = place
            return
        lanes = self._lane_at[warps]
        if active is None:
            lanes[...] = place
        else:
            np.copyto(lanes, place, where=active)
        self._arrange(warps)

    def _arrange(self, warps: slice) -> None:
        """Select the next instruction of warps whose lanes have diverged."""
        lanes = self._lane_at[warps]
        order = self._ranks[lanes]
        if self._held[warps].any():
            here = self._held[warps] & (lanes != self._nowhere)
            gone = lanes == self._nowhere
            order = order + len(self._ranks) * (here + 2 * gone)
        first = order.argmin(1)
        self.at[warps] = lanes[np.arange(first.size), first]
        self._parted[warps] = (lanes != self.at[warps, None]).any(1)

    def _leave(self, warps: slice) -> None:
        gone = self.index[warps][self.at[warps] == self._nowhere]
        self._state[gone] = _DONE
        for cta in np.unique(self.cta[gone]):
            if (self._state[self.cta == cta] == _DONE).all():
                absent = np.flatnonzero(self._state == _ABSENT)
                if absent.size:
                    self._state[self.cta == self.cta[absent[0]]] = _READY

    # ---- barriers, and waiting

    def _arrive(self, barrier, warps: slice, active) -> None:
        if active is not None and not active.all():
            self.miss(barrier, warps)
        waits, name, threads = self.context.barrier(barrier, warps, self.program.threads)
        if waits:
            self._state[warps] = _WAITING
            self._barrier[warps, 0], self._barrier[warps, 1] = name, threads
        for cta in np.unique(self.cta[warps]).tolist():
            came = self._came.setdefault((cta, name), [])
            if not waits:
                mine = self.index[warps][self.cta[warps] == cta]
                came += map(self.clocks.knowledge, mine.tolist())
                self.clocks.tick(mine)
            members = slice(cta * self.warps_per_cta, (cta + 1) * self.warps_per_cta)
            here = (self._state[members] == _WAITING) & (self._barrier[members, 0] == name)
            if here.any() and 32 * (here.sum() + len(came)) >= threads:
                met = self.index[members][here]
                self._state[met] = _READY
                self.clocks.meet(met, came)
                came.clear()
                if self.options.trace is not None:
                    self.options.trace.barrier(barrier.index, met)

    def miss(self, instruction, warps: slice) -> None:
        """Handle a warp of which only some lanes reach an instruction that needs them all.

        Raises:
            Deadlock: the others poll forever. SimulatorError: they went elsewhere.
        """
        if self._held[warps].any():
            raise Deadlock(self._waiting())
        raise SimulatorError(f"{instruction}: only some lanes of a warp are here")

    def _wake(self) -> np.ndarray:
        """Let polling warps look again, if anything has changed."""
        stalled = np.flatnonzero((self._state == _READY) & self._stalled)
        if stalled.size == 0:
            raise Deadlock(self._waiting())
        if self.changed:
            self._seen.clear()
        else:
            # A loop may count its rounds; it is endless only if a state of the machine repeats.
            state = self._digest()
            if state in self._seen:
                stalled = self._yield_to_other_lanes(stalled)
            self._seen.add(state)
        self.changed = False
        self._stalled[:] = False
        return stalled

    def _yield_to_other_lanes(self, stalled: np.ndarray) -> np.ndarray:
        """Hold lanes that poll, such as for a lock that other lanes of their warp have.

        Since sm_70 lanes are scheduled independently, so polling lanes must not block the others.

        Returns:
            The warps that can go on.
        """
        warps = []
        for warp in stalled[self._parted[stalled]].tolist():
            lanes = self._lane_at[warp]
            others = (lanes != self.at[warp]) & (lanes != self._nowhere) & ~self._held[warp]
            if not others.any():
                continue
            first = min(set(lanes[others].tolist()), key=self._ranks.__getitem__)
            if not self._stretches[first].gathers:  # otherwise they wait for the polling lanes
                self._held[warp] |= lanes == self.at[warp]
                self._arrange(slice(warp, warp + 1))
                warps.append(warp)
        if not warps:
            raise Deadlock(self._waiting())
        return np.array(warps)

    def _let_go(self) -> None:
        """Release held lanes, since memory has changed."""
        for warp in np.flatnonzero(self._held.any(1)).tolist():
            self._held[warp] = False
            if self._state[warp] == _READY and self._parted[warp]:
                self._arrange(slice(warp, warp + 1))

    def _digest(self) -> bytes:
        """A digest of the state that decides what warps do next, without global memory."""
        digest = hashlib.blake2b()
        registers = self.registers.files()
        places = (self.at, self._lane_at, self._held, self._state, self._barrier)
        for part in (*places, *registers):
            digest.update(part)
        digest.update(self.memory["shared"].bytes)
        return digest.digest()

    def _waiting(self) -> str:
        lines = ["every warp waits forever:"]
        seen: dict[str, list[str]] = {}
        for warp in self.index[self._state != _DONE]:
            if self._state[warp] == _ABSENT:
                why = f"not resident: {self.options.resident} CTAs fit at once"
            else:
                if self._state[warp] == _WAITING:
                    why = f"at a barrier, {self.program.instructions[self.at[warp] - 1]}"
                else:
                    why = f"polling, {self.program.instructions[self._polls_at[warp]]}"
            seen.setdefault(why, []).append(f"{self.cta[warp]}.{warp % self.warps_per_cta}")
        for why, who in seen.items():
            more = f" and {len(who) - 4} more" if len(who) > 4 else ""
            lines.append(f"    CTA.warp {', '.join(who[:4])}{more}: {why}")
        return "\n".join(lines)

    # ---- preparation

    def _shared(self, size: int) -> Memory:
        self.shared_stride = -(-max(size, 64) // 1024) * 1024 + 1024  # a redzone after each CTA's
        memory = Memory("shared", self.ctas * self.shared_stride, 0)
        for cta in range(self.ctas):
            begin = cta * self.shared_stride
            memory.add(Region(f"shared memory of CTA {cta}", begin, begin + size))
        return memory

    def _histories(self) -> dict[str, History]:
        result = {}
        program = self.program.instructions
        strong = [i for i in program if i.is_strong() and i.opcode != "ld"]
        for space, readers in (("global", self.warps), ("shared", self.warps_per_cta)):
            cell = dispatch.smallest_access(self.program, space)
            result[space] = History(
                self.memory[space],
                self.clocks,
                cell,
                readers,
                self.report,
                self.describe,
                program,
                any(dispatch.space_of(i) == space for i in strong),
            )
        return result

    def _constants(self, arguments) -> dict:
        x, y, _ = self.grid
        lane = LANES + np.zeros((self.warps, 1), np.uint32)
        cta = self.cta[:, None].astype(np.uint32) + 0 * LANES
        within = (self.index % self.warps_per_cta)[:, None].astype(np.uint32) + 0 * LANES
        constants = {
            "%tid.x": 32 * within + lane,
            "%laneid": lane,
            "%warpid": within,
            "%ctaid.x": cta % np.uint32(x),
            "%ctaid.y": cta // np.uint32(x) % np.uint32(y),
            "%ctaid.z": cta // np.uint32(x * y),
            "%ntid.x": self.program.threads,
            **dict.fromkeys(("%tid.y", "%tid.z"), 0),
            **dict.fromkeys(("%ntid.y", "%ntid.z"), 1),
            "global_smem": 0,
            **dict.fromkeys(self.program.strings, 0),  # their text is never read
            "WARP_SZ": 32,
        }
        constants |= {f"%nctaid.{axis}": n for axis, n in zip("xyz", self.grid, strict=True)}
        for k, (kind, bits) in enumerate(zip(self.program.parameters, arguments, strict=True)):
            constants[f"{self.program.name}_param_{k}"] = bits % (1 << 8 * SIZE[kind])
        return constants

    def _cut(self) -> dict[int, Stretch]:
        program = self.program.instructions
        cuts = {0, *self.program.labels.values()}
        for i in program:
            if i.opcode in _ENDS or i.is_barrier() or i.is_strong():
                cuts |= {i.index, i.index + 1} if i.is_strong() else {i.index + 1}
            elif i.opcode in ("ld", "st") and "global" in i.modifiers:
                cuts.add(i.index)
        ordered = sorted(cut for cut in cuts if cut < len(program))
        stretches = {}
        for begin, end in zip(ordered, [*ordered[1:], len(program)], strict=True):
            code = program[begin:end]
            bound = [self.context.bind(i) for i in code]
            stretches[begin] = Stretch(
                begin,
                end,
                tuple(run for run in bound if run is not None),
                code[-1],
                dict(static_counts(code)),
                any(i.is_strong() and i.opcode != "st" for i in code),
                code[-1].opcode in ("trap", "call") and code[-1].guard is None,
                any(i.opcode in dispatch.COLLECTIVE for i in code),
            )
        return stretches


def _is_sequential(instruction) -> bool:
    """Whether it is ``fence.sc``, or ``membar``, which means the same."""
    return instruction.opcode == "membar" or (
        instruction.opcode == "fence" and "sc" in instruction.modifiers
    )
