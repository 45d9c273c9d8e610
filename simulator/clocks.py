"""Vector clocks over actors: which accesses happen before which.

An actor is a warp, or one of the engines that work asynchronously for a warp: the copies of
``cp.async`` and the tensor core's reads by ``wgmma``. ``known[w, a]`` is the last clock of actor a
whose accesses happen before what warp w does next, in the base causality order of the PTX ISA's
chapter "Memory Consistency Model". The edges in this file:

- program order of a warp ("Program order"). Lanes of a warp synchronize as one thread: what one of
  them acquires, all of them have. ``known[w, w]`` is the clock at which they last met, to tell
  plain accesses of different lanes since then from those of one lane;
- ``bar.sync``, ``bar.arrive`` and ``barrier.sync``: all that participants did before it precedes
  what those that wait for it do afterwards ("Memory synchronization");
- completion: ``cp.async.wait_group`` and ``wgmma.wait_group`` order what the engine did in a group
  before what the warp does next; its issue orders what the warp did before the engine's work
  ("Asynchronous operations");
- proxies ("Proxies", "Causality order"): the tensor core reads shared memory through the async
  proxy, so a write by the generic proxy is visible only if a ``fence.proxy.async`` is on the path.

Releases, acquires and fences are in ``synchronization.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Knowledge:
    """The knowledge of a warp at one time.

    Args:
        row: the last clock of each actor.
        events: the last clock of strong writes that were observed without an acquire pattern,
            by (location, warp that wrote). This orders the write itself, not what the writer
            did before ("Causality order", the second rule).
    """

    row: np.ndarray
    events: dict

    def joined(self, other: Knowledge | None) -> Knowledge:
        if other is None or other is self:
            return self
        return Knowledge(np.maximum(self.row, other.row), later(self.events, other.events))


def later(ours: dict, theirs: dict) -> dict:
    """Merge two tables of clocks; the later clock wins."""
    if not theirs:
        return ours
    return ours | {key: max(clock, ours.get(key, 0)) for key, clock in theirs.items()}


class Clocks:
    """The knowledge of each warp about each actor.

    Args:
        warps: of all CTAs.
        per_cta: warps of a CTA.
        engines: the names of the engines that the program uses, "cp.async" and "wgmma".
        sequential: whether the program has ``fence.sc``. The order of these fences restricts
            what a strong load may return. It is kept apart, since it depends on the schedule, and
            a kernel must not rely on it for the order of its plain accesses.
    """

    def __init__(
        self, warps: int, per_cta: int, engines: tuple[str, ...] = (), sequential: bool = False
    ):
        self.warps, self.per_cta, self.engines = warps, per_cta, engines
        self.actors = blocks = warps * (1 + len(engines))
        # With wgmma a second block: what the warp's accesses through the async proxy may see.
        self.proxied = blocks if "wgmma" in engines else 0
        blocks += self.proxied
        # With fence.sc another block: the same order, extended by that of these fences.
        self.visible = blocks if sequential else 0
        self.known = np.zeros((warps, blocks + self.actors * sequential), np.int32)
        self.clock = np.ones(warps, np.int64)
        self.phase = np.zeros(warps, np.int32)  # how often all warps of the CTA met
        self.events: dict[int, dict] = {}  # of each warp, see Knowledge
        self._groups = np.ones((len(engines), warps), np.int32)

    def cta(self, warp: int) -> int:
        return warp // self.per_cta

    def tick(self, warps) -> None:
        """Advance the clocks of warps: their next accesses are later than all passed on before."""
        self.clock[warps] += 1

    # ---- passing knowledge on

    def knowledge(self, warp: int) -> Knowledge:
        """The knowledge of a warp, with its own accesses."""
        row = self.known[warp].copy()
        row[warp] = row[warp + self.visible] = self.clock[warp]
        return Knowledge(row, self.events.get(warp, {}))

    def learn(self, warp: int, knowledge: Knowledge) -> None:
        np.maximum(self.known[warp], knowledge.row, out=self.known[warp])
        self.learn_events(warp, knowledge.events)

    def learn_events(self, warp: int, events: dict) -> None:
        if events:
            self.events[warp] = later(self.events.get(warp, {}), events)

    def at_issue(self) -> np.ndarray:
        """The knowledge of all warps, with their own accesses so far, when an engine starts."""
        known = self.known.copy()
        own = np.arange(self.warps)
        known[own, own] = self.clock
        return known

    # ---- barriers

    def lanes_meet(self, warps) -> None:
        """Synchronize the lanes of each of these warps: ``bar.warp.sync``."""
        own = np.arange(self.warps)[warps]
        self.known[own, own] = self.known[own, own + self.visible] = self.clock[own]
        self.tick(own)

    def meet(self, warps: np.ndarray, arrived: list[Knowledge]) -> None:
        """Synchronize warps at a barrier.

        Args:
            arrived: the knowledge of warps that came by ``bar.arrive``, without waiting.
        """
        self.known[warps, warps] = self.known[warps, warps + self.visible] = self.clock[warps]
        self.known[warps] = self.known[warps].max(0)
        for knowledge in arrived:
            self.known[warps] = np.maximum(self.known[warps], knowledge.row)
        if self.events or arrived:
            events: dict = {}
            for other in [self.events.get(w, {}) for w in warps.tolist()]:
                events = later(events, other)
            for knowledge in arrived:
                events = later(events, knowledge.events)
            self.events |= dict.fromkeys(warps.tolist(), events)
        self.tick(warps)
        if warps.size == self.per_cta:
            self.phase[warps] += 1

    # ---- engines

    def fence_proxy(self, warps) -> None:
        """``fence.proxy.async``: the async proxy sees what the generic one knows."""
        if self.proxied:
            own = np.arange(self.warps)[warps]
            self.known[warps, self.proxied : self.proxied + self.actors] = self.known[
                warps, : self.actors
            ]
            self.known[own, own + self.proxied] = self.clock[own]
            self.tick(warps)

    def engine(self, name: str, warps: np.ndarray) -> np.ndarray:
        """The actor of an engine for each warp."""
        return warps + self.warps * (1 + self.engines.index(name))

    def group(self, name: str, warps) -> np.ndarray:
        """The clock of the group that is not committed yet."""
        return self._groups[self.engines.index(name)][warps]

    def commit(self, name: str, warps) -> None:
        self._groups[self.engines.index(name)][warps] += 1

    def complete(self, name: str, warps, pending: int) -> None:
        """Wait for all committed groups but the last ``pending`` ones."""
        done = self.group(name, warps) - 1 - pending
        own = np.arange(self.warps)[warps]
        columns = self.engine(name, own)
        self.known[own, columns] = np.maximum(self.known[own, columns], done)
