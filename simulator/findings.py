"""Findings about a kernel: the accesses, the byte, and the lines of the source."""

from __future__ import annotations

from dataclasses import dataclass

from .ptx import Instruction


@dataclass(frozen=True)
class Access:
    """One side of a finding.

    Args:
        cta, warp: the actor; the warp within its CTA.
        instruction: the instruction it executed.
        through: the engine that accessed memory, unless the warp itself did: "cp.async", "wgmma".
    """

    cta: int
    warp: int
    instruction: Instruction
    through: str = ""

    def __str__(self):
        through = f" through {self.through}" if self.through else ""
        return f"CTA {self.cta}, warp {self.warp}{through}: {self.instruction}"


@dataclass(frozen=True)
class Finding:
    """An error of a kernel.

    Args:
        kind: "write-write race", "read-write race" (a read that may see the write or not),
            "write-read race" (a write that may come before the read or not), "lanes disagree",
            "uninitialised read", "proxy race", "register race".
        place: the byte, in words.
        now: the access that revealed it.
        before: the other access; None if there is only one.
        why: the reason why the two conflict, unless it is obvious.
    """

    kind: str
    place: str
    now: Access
    before: Access | None = None
    why: str = ""

    def __str__(self):
        lines = [f"{self.kind}: {self.place}", f"    {self.now}"]
        if self.before is not None:
            lines.append(f"    is not ordered after\n    {self.before}")
        if self.why:
            lines.append(f"    ({self.why})")
        return "\n".join(lines)


class Report(list):
    """The findings of a launch, one for each pair of instructions."""

    def __init__(self):
        super().__init__()
        self._seen = set()

    def is_new(self, kind: str, now: int, before: int = -1) -> bool:
        """Whether this kind is new for the two instructions; remembers it."""
        key = (kind, now, before)
        if key in self._seen:
            return False
        self._seen.add(key)
        return True

    def __str__(self):
        return "\n".join(map(str, self)) or "nothing found"
