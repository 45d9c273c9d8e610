"""Programs with one synchronization less: what a checker must catch, or show to be redundant."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .ptx import Instruction, Program

_WEAKER = {"acquire": "relaxed", "release": "relaxed", "acq_rel": "relaxed"}


@dataclass(frozen=True)
class Mutant:
    """A program without, or with a weaker form of, one synchronizing instruction.

    Args:
        what: was done to it, in words.
        instruction: the original one.
        program: the changed program.
    """

    what: str
    instruction: Instruction
    program: Program


def mutants(program: Program) -> Iterator[Mutant]:
    """Each synchronization made weaker in turn.

    Barriers, fences, commits and waits are left out, acquires and releases made relaxed, and the
    scopes of strong accesses and of fences narrowed from the GPU to the CTA.
    """
    for i in program.instructions:
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
        if i.is_strong() or i.opcode in ("fence", "membar"):
            changed = _narrowed(program, i)
            if changed is not None:
                yield Mutant("scope narrowed", i, changed)


def _narrowed(program: Program, i: Instruction) -> Program | None:
    """With the scope of the CTA instead of the GPU's, or the system's, where there is one."""
    wide = ("gl", "gpu", "sys")
    if not set(wide) & set(i.modifiers):
        return None
    return program.with_changed(
        i.index, modifiers=tuple("cta" if kind in wide else kind for kind in i.modifiers)
    )


class Trace:
    """Which warps touched which bytes of shared memory, from one barrier to the next.

    Give it to ``simulate(trace=...)``, in lockstep. ``why_redundant`` then says of a barrier what
    its neighbours make of it.
    """

    def __init__(self):
        self.on = True
        # By the barriers at both ends: words of a CTA -> {warp: whether it wrote}.
        self._intervals: dict = defaultdict(lambda: defaultdict(dict))
        self._last: dict[int, int] = defaultdict(lambda: -1)  # barrier that a warp came from
        self._pairs: set[tuple[int, int]] = set()

    def launch(self, on: bool) -> None:
        """A launch begins; one that is of no interest is passed over."""
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
        """Why no warp has to wait for another at a barrier; "" where the trace shows none.

        Of all that happens between the barriers before it and the one after it: it can be left out
        where no two warps touch the same bytes, one of them writing.
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
