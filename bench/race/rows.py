"""Results as rows, one per problem, mode and provider, for tables, files and plots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from .gate import Verdict
from .problem import Problem
from .providers import BASELINE, YARDSTICKS
from .timing import Spread, ratios


@dataclass(frozen=True)
class Row:
    """The result of a provider on a problem in a mode.

    Attributes:
        status: "timed"; "checked", right but not timed; "skipped"; "wrong", stopped by the gate;
            "failed", with an exception.
        reason: why it was not timed.
        tensor, error, allowed: the gate's verdict.
        speedup, speedup_q1, speedup_q3: over the eager loop, the median of the rounds' ratios and
            their quartiles.
        over_torch: the same over torch.nn, where that has the cell.
        over_lstm, over_gru: the same over torch.nn's LSTM and GRU of that size.
        samples_ms: milliseconds per call, one per round; only in the JSON file.
    """

    cell: str
    T: int
    B: int
    I: int  # noqa: E741 - the name of this dim in the whole project
    H: int
    dtype: str
    device: str
    mode: str
    provider: str
    status: str
    reason: str = ""
    tensor: str = ""
    error: float | None = None
    allowed: float | None = None
    median_ms: float | None = None
    min_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    speedup: float | None = None
    speedup_q1: float | None = None
    speedup_q3: float | None = None
    over_torch: float | None = None
    over_lstm: float | None = None
    over_gru: float | None = None
    samples_ms: tuple[float, ...] = ()

    @classmethod
    def start(cls, problem: Problem, mode: str, provider: str, status: str, reason: str = ""):
        return cls(
            problem.cell.name,
            *problem.size,
            str(problem.dtype).removeprefix("torch."),
            problem.device.type,
            mode,
            provider,
            status,
            reason,
        )

    def judged(self, verdict: Verdict) -> Row:
        return replace(self, tensor=verdict.tensor, error=verdict.error, allowed=verdict.allowed)

    def timed(self, samples: dict[str, list[float]]) -> Row:
        own = samples[self.provider]
        time = Spread.of(own)
        speed = Spread.of(ratios(samples, BASELINE, self.provider))

        def over(name):
            found = name in samples
            return Spread.of(ratios(samples, name, self.provider)).median if found else None

        return replace(
            self,
            status="timed",
            reason="",
            median_ms=time.median,
            min_ms=time.least,
            q1_ms=time.q1,
            q3_ms=time.q3,
            speedup=speed.median,
            speedup_q1=speed.q1,
            speedup_q3=speed.q3,
            over_torch=over("torch"),
            over_lstm=over("torch" if self.cell == "lstm" else YARDSTICKS["lstm"]),
            over_gru=over("torch" if self.cell == "gru" else YARDSTICKS["gru"]),
            samples_ms=tuple(own),
        )

    @property
    def size(self) -> str:
        parts = (self.T, self.B, self.H) if self.I == self.H else (self.T, self.B, self.I, self.H)
        return "x".join(map(str, parts))

    @property
    def half_spread(self) -> float:
        """Half the interquartile range, relative to the median."""
        return (self.q3_ms - self.q1_ms) / 2 / self.median_ms


COLUMNS = tuple(field.name for field in fields(Row) if field.name != "samples_ms")


def unique(values: Iterable) -> list:
    """The distinct values, in order of appearance."""
    return list(dict.fromkeys(values))


def slow(rows: Iterable[Row], provider: str = "auto") -> list[Row]:
    """The rows in which a provider is slower than the eager loop in three of four rounds."""
    return [
        r for r in rows if r.provider == provider and r.speedup is not None and r.speedup_q3 < 1
    ]
