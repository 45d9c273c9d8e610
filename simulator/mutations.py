"""Programs with one synchronization removed or weakened, to test whether a checker notices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .ptx import SCOPES, Instruction, Program

_WEAKER = {"acquire": "relaxed", "release": "relaxed", "acq_rel": "relaxed"}


@dataclass(frozen=True)
class Mutant:
    """A program without, or with a weaker form of, one synchronizing instruction.

    Args:
        what: a description of the change.
        instruction: the original one.
        program: the changed program.
    """

    what: str
    instruction: Instruction
    program: Program


def mutants(program: Program) -> Iterator[Mutant]:
    """Weaken each synchronization in turn.

    Barriers, fences, commits and waits are left out, acquires and releases made relaxed, relaxed
    loads and stores weak, and the scopes of strong accesses and of fences narrowed from the GPU to
    the CTA. Loops that poll go on after the first pass.
    """
    for i in program.instructions:
        if _polls(program, i):
            yield Mutant("not repeated", i, program.without(i.index))
        left_out = (
            i.is_barrier()
            or i.opcode in ("fence", "membar")
            or (i.opcode == "wgmma" and i.modifiers[0] in ("fence", "wait_group", "commit_group"))
            or (i.opcode == "cp" and i.modifiers[1] in ("wait_group", "wait_all", "commit_group"))
        )
        if left_out:
            yield Mutant("left out", i, program.without(i.index))
        for kind in _WEAKER.keys() & set(i.modifiers):
            if i.opcode != "fence":
                weaker = tuple(_WEAKER.get(k, k) for k in i.modifiers)
                changed = program.with_changed(i.index, modifiers=weaker)
                yield Mutant(f"{kind} made relaxed", i, changed)
        if i.opcode in ("ld", "st") and "relaxed" in i.modifiers:
            weak = tuple(k for k in i.modifiers if k not in ("relaxed", *SCOPES))
            yield Mutant("made weak", i, program.with_changed(i.index, modifiers=weak))
        if i.is_strong() or i.opcode in ("fence", "membar"):
            changed = _narrowed(program, i)
            if changed is not None:
                yield Mutant("scope narrowed", i, changed)


def _polls(program: Program, i: Instruction) -> bool:
    """Whether a branch repeats a loop of strong loads that stores nothing."""
    if i.opcode != "bra" or i.guard is None:
        return False
    body = program.instructions[program.labels[i.operands[-1]] : i.index]
    loads = [j for j in body if j.opcode == "ld"]
    others = any(j.opcode in ("st", "mma", "bra") for j in body)
    return bool(loads) and not others and all(j.is_strong() for j in loads)


def _narrowed(program: Program, i: Instruction) -> Program | None:
    """Narrow the scope of the GPU or the system to the CTA, if there is one."""
    wide = ("gl", "gpu", "sys")
    if not set(wide) & set(i.modifiers):
        return None
    return program.with_changed(
        i.index, modifiers=tuple("cta" if kind in wide else kind for kind in i.modifiers)
    )


class Trace:
    """Records which warps accessed which bytes of shared memory between barriers.

    Pass it to ``simulate(trace=...)``, in lockstep. ``why_redundant`` then says whether the
    barriers before and after a barrier make it redundant.
    """

    def __init__(self):
        self.on = True
        # By the barrier before: words of a CTA -> {warp: whether it wrote}.
        self._intervals: dict = defaultdict(lambda: defaultdict(dict))
        self._last: dict[int, int] = defaultdict(lambda: -1)  # the last barrier of each warp
        self._pairs: set[tuple[int, int]] = set()

    def launch(self, on: bool) -> None:
        """Begin a launch; launches of other kernels are skipped."""
        self.on = on
        self._last.clear()

    def access(self, space: str, offsets, size: int, warps, write: bool) -> None:
        if space != "shared" or not self.on:
            return
        for offset, warp in zip(offsets.tolist(), warps.tolist(), strict=True):
            interval = self._intervals[self._last[warp]]
            for word in range(offset // 2, (offset + size + 1) // 2):
                interval[word][warp] = interval[word].get(warp, False) or write

    def barrier(self, index: int, warps: np.ndarray) -> None:
        for warp in warps.tolist() if self.on else ():
            self._pairs.add((self._last[warp], index))
            self._last[warp] = index

    def why_redundant(self, index: int) -> str:
        """The reason why a barrier is redundant; "" if the trace shows none.

        A barrier can be removed if, between the barriers before and after it, no two warps access
        the same bytes with one of them writing.
        """
        before = [self._intervals[a] for a, b in self._pairs if b == index]
        after = self._intervals[index]
        touched = {word for interval in before for word in interval}
        if not touched:
            return "nothing in shared memory is touched between it and the barrier before"
        if not after:
            return "nothing in shared memory is touched between it and the barrier after"
        common = touched & after.keys()
        if not common:
            return "other bytes of shared memory are touched before it than after it"
        for interval in before:
            for word in common & interval.keys():
                for a, wrote in interval[word].items():
                    if any(a != b and (wrote or also) for b, also in after[word].items()):
                        return ""
        return "of the bytes touched on both sides, each is one warp's alone, or only read"
