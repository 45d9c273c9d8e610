"""Schedulers: select the warps that run next, and which allowed value a strong load returns.

A scheduler gets the machine and returns a range of adjacent warps.
"""

from __future__ import annotations

import numpy as np


class _Late:
    """Lets a strong load return the oldest allowed value; when repeated, the newest."""

    def pick(self, count: int, again: bool) -> int:
        """Select the value to return, by its index among ``count``, the oldest first.

        Args:
            again: whether the warp got an old value since the newest was written.
        """
        return count - 1 if again else 0


class Lockstep(_Late):
    """Runs all warps at the lowest instruction together: the fastest schedule.

    Vector clocks find a race in any schedule, so this one suffices for most checks. Checks that
    depend on the order in which programs reach their atomics need the others.
    """

    wakes_early = False  # polling warps wait until no other can continue

    def choose(self, machine, ready: np.ndarray) -> slice:
        at = machine.at[ready]
        ready = ready[at == at.min()]
        apart = np.flatnonzero(np.diff(ready) != 1)
        last = apart[0] if apart.size else ready.size - 1
        return slice(int(ready[0]), int(ready[last]) + 1)


class Random:
    """Runs a random warp for a few stretches of code.

    Args:
        seed: the same seed gives the same schedule.
    """

    wakes_early = True

    def __init__(self, seed: int = 0):
        self._random = np.random.default_rng(seed)
        self._warp, self._left = -1, 0

    def choose(self, machine, ready: np.ndarray) -> slice:
        if self._left == 0 or not machine.is_ready(self._warp):
            self._warp = int(self._random.choice(ready))
            self._left = int(self._random.integers(1, 6))
        self._left -= 1
        return slice(self._warp, self._warp + 1)

    def pick(self, count: int, again: bool) -> int:
        """Select a random value."""
        return int(self._random.integers(count))


class RunAhead(_Late):
    """Runs one CTA as far ahead as its synchronization allows, and each of its warps too.

    Args:
        seed: the order of preference among CTAs and warps: 0 the first, 1 the last, others random.
    """

    wakes_early = False

    def __init__(self, seed: int = 0):
        self._seed = seed
        self._rank = None

    def choose(self, machine, ready: np.ndarray) -> slice:
        if self._rank is None:
            self._rank = self._ranks(machine)
        warp = int(ready[np.argmin(self._rank[ready])])
        return slice(warp, warp + 1)

    def _ranks(self, machine):
        count, per_cta = machine.warps, machine.warps_per_cta
        if self._seed == 0:
            return np.arange(count)
        if self._seed == 1:
            return np.arange(count)[::-1]
        random = np.random.default_rng(self._seed)
        ctas = random.permutation(count // per_cta)
        return (ctas[:, None] * per_cta + random.permutation(per_cta)).ravel()


def scheduler(name: str, seed: int):
    """A scheduler by its name: "lockstep", "random" or "run-ahead".

    Raises:
        ValueError: another name.
    """
    if name == "lockstep":
        return Lockstep()
    if name == "random":
        return Random(seed)
    if name == "run-ahead":
        return RunAhead(seed)
    raise ValueError(f"schedule: expected lockstep, random or run-ahead, got {name!r}")
