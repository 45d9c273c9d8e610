"""Times of several calls, taken in turns, so that drift of the machine affects all equally."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

# A sample repeats a short call for about this many milliseconds, so that clock ticks and interrupts
# do not matter.
SAMPLE_MS = 5.0
MOST_CALLS = 50

Sample = TypeVar("Sample")


@dataclass(frozen=True)
class Spread:
    median: float
    least: float
    q1: float
    q3: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(*values * 4)
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, min(values), q1, q3)


class Sampler:
    """Milliseconds per call of a call, as one sample; a short call is repeated in each.

    Attributes:
        number: how often a sample repeats the call.
        once: about the milliseconds of one call.
    """

    def __init__(self, call: Callable, device: torch.device):
        self._call, self._device = call, device
        once = _sample(call, 1, device)  # compiles, allocates, chooses algorithms
        if device.type == "cuda" or once < 20 * SAMPLE_MS:  # the gate has warmed up the slow ones
            once = min(_sample(call, 1, device) for _ in range(2))
        self.once = once
        self.number = min(MOST_CALLS, math.ceil(SAMPLE_MS / max(once, 1e-6)))

    def __call__(self) -> float:
        return _sample(self._call, self.number, self._device)

    def one_by_one(self, number: int) -> list[float]:
        """Milliseconds of each of ``number`` calls, for their distribution."""
        return [_sample(self._call, 1, self._device) for _ in range(number)]


def race(calls: dict[str, Callable], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Milliseconds per call, a sample per round. In each round all calls take a turn."""
    return in_turns({name: Sampler(call, device) for name, call in calls.items()}, rounds)


def in_turns(samplers: dict[str, Callable[[], Sample]], rounds: int) -> dict[str, list[Sample]]:
    """A sample of each sampler per round; garbage is collected between rounds only."""
    samples = {name: [] for name in samplers}
    names = list(samplers)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in range(rounds):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:  # so that none always follows the same one
                samples[name].append(samplers[name]())
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return samples


def ratios(samples: dict[str, list[float]], over: str, name: str) -> list[float]:
    """The speed-up of ``name`` over ``over`` in each round."""
    return [a / b for a, b in zip(samples[over], samples[name], strict=True)]


def _sample(call, number, device):
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(number):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / number
    begin = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - begin) * 1e3 / number
