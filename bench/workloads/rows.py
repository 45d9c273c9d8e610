"""A result: one per case, number of threads, mode and provider."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..race.gate import Verdict
from ..race.timing import Spread
from .workload import FUSED


@dataclass(frozen=True)
class Row:
    """
    Attributes:
        sizes: in words; ``scale`` what differs from the project's sizes.
        in_torch: whether torch.nn has a fused layer for the case.
        status: "timed"; "absent", a package is not installed; "wrong", stopped by the gate;
            "failed", with an exception.
        tensor, error, allowed: the gate's verdict.
        median_ms, q1_ms, q3_ms: of a call.
        p50_us, p99_us: of the single calls, for "latency".
        step_us: microseconds per step of the sequence.
        peak_mb: memory of a call beside weights and inputs.
        ratio, ratio_q1, ratio_q3: how many times as fast as the side that users have today, by the
            rounds' ratios.
        floor_ms, predicted_ms, gbytes: on a GPU, see ``floors``.
    """

    case: str
    sizes: str
    scale: str
    in_torch: bool
    threads: int
    mode: str
    provider: str
    baseline: str
    status: str
    reason: str = ""
    tensor: str = ""
    error: float | None = None
    allowed: float | None = None
    rounds: int = 0
    median_ms: float | None = None
    q1_ms: float | None = None
    q3_ms: float | None = None
    p50_us: float | None = None
    p99_us: float | None = None
    step_us: float | None = None
    peak_mb: float | None = None
    ratio: float | None = None
    ratio_q1: float | None = None
    ratio_q3: float | None = None
    floor_ms: float | None = None
    predicted_ms: float | None = None
    gbytes: float | None = None

    def judged(self, verdict: Verdict) -> Row:
        return replace(self, tensor=verdict.tensor, error=verdict.error, allowed=verdict.allowed)

    def timed(self, samples: dict[str, list[list[float]]], steps: int) -> Row:
        """The row with its figures, of samples that all providers took in turns."""
        per_round = {name: [statistics.median(own) for own in of] for name, of in samples.items()}
        own = per_round[self.provider]
        time = Spread.of(own)
        ratio = Spread.of([a / b for a, b in zip(per_round[self.baseline], own, strict=True)])
        calls = sorted(ms for sample in samples[self.provider] for ms in sample)
        latency = self.mode == "latency"
        return replace(
            self,
            status="timed",
            reason="",
            rounds=len(own),
            median_ms=time.median,
            q1_ms=time.q1,
            q3_ms=time.q3,
            p50_us=calls[len(calls) // 2] * 1e3 if latency else None,
            p99_us=calls[math.ceil(len(calls) * 0.99) - 1] * 1e3 if latency else None,
            step_us=time.median * 1e3 / steps,
            ratio=ratio.median,
            ratio_q1=ratio.q1,
            ratio_q3=ratio.q3,
        )


def ours(rows: Iterable[Row]) -> list[Row]:
    """The rows of this package with a figure: per case, threads and mode its default."""
    return [r for r in rows if r.provider == FUSED and r.ratio is not None]


def geometric_mean(values: Iterable[float]) -> float:
    return statistics.geometric_mean(values)
