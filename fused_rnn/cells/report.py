"""What ``Cell.check`` returns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """The outcome of one check of a cell.

    Attributes:
        what: the engine, and where it has several its strategy; "derivatives",
            "gradcheck" or "compiled".
        of: the dtype, or the GPU that it was compiled for.
        ok: whether it agrees; None if it could not run here.
        result: in words: how far it is off, and in which tensor, or why it did not run.
        figure: the largest deviation: of derivatives relative, of engines in units of the error of
            an eager loop, see ``self_check.measure``; None without numbers.
    """

    what: str
    of: str
    ok: bool | None
    result: str
    figure: float | None = None

    def __str__(self):
        verdict = {True: "ok", False: "FAILED", None: "not run"}[self.ok]
        return f"{self.what:<18}{self.of:<9}{verdict:<9}{self.result}"


@dataclass(frozen=True)
class CellReport:
    """What ``Cell.check`` found.

    Attributes:
        cell: its name.
        sizes: T, B, H of the problem.
        checks: the outcome of each check.
    """

    cell: str
    sizes: tuple[int, int, int]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing that ran failed."""
        return all(check.ok is not False for check in self.checks)

    @property
    def title(self) -> str:
        """The cell and the sizes, in words."""
        return "cell {!r}, T = {}, B = {}, H = {}".format(self.cell, *self.sizes)

    @property
    def verdict(self) -> str:
        """The numbers of checks that agree, that failed and that could not run, in words."""
        counts = {ok: sum(check.ok is ok for check in self.checks) for ok in (True, False, None)}
        return f"{counts[True]} ok, {counts[False]} failed, {counts[None]} not run"

    def __str__(self):
        return "\n".join([self.title, *map(str, self.checks), self.verdict])
