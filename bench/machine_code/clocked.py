"""Kernels as planned for a GPU that is absent: compiled, executed and timed by the clock.

Needs TRITON_INTERPRET=0 before Triton is imported.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from fused_rnn.kernels.gpu.offline import Compiled, compiling

from bench.machine_code.launches import launch_both, planned_for
from fused_rnn import Cell, plan
from simulator import clock, pipes, ptx, sass, simulate
from simulator.chips import CHIPS
from simulator.clock import Cycles
from simulator.counters import Counters

STEPS, BATCH, DTYPE = 64, 16, torch.bfloat16


@dataclass(frozen=True)
class Clocked:
    """A kernel with what it executes and takes per time step.

    Args:
        strategy: of its launch.
        layouts: "explicit", or "Triton's".
        kind: "forward" of a training, "backward", or "inference" for a forward that keeps nothing.
        part: of the kernels that make a step together, where there are several.
        warps: of a program.
        steps_per_pass: of its loop over time.
        compiled: as Triton made it.
        executed: by all its programs.
        sequence: executed by all kernels of its kind in a sequence of 3 steps, or 4.
        l2, dram: cycles with x and what was saved in the L2 cache, in DRAM.
        waits: cycles with the published time of each barrier of the grid, from the L2 cache.
    """

    cell: str
    hidden: int
    capability: int
    strategy: str
    layouts: str
    kind: str
    part: int
    warps: int
    steps_per_pass: int
    compiled: Compiled
    executed: Counters
    sequence: Counters
    l2: Cycles
    dram: Cycles
    waits: Cycles

    @property
    def programs(self) -> int:
        """Of the launch."""
        return math.prod(self.compiled.grid)


def clocked(
    cell: Cell,
    hidden: int,
    capability: int,
    launch: plan.Launch | None = None,
    batch: int = BATCH,
    dtype: torch.dtype = DTYPE,
    kinds: tuple[str, ...] = ("forward", "inference", "backward"),
    heads: int = 1,
) -> Iterator[Clocked]:
    """Time the kernels of a layer.

    Args:
        capability: 80 or 90.
        launch: instead of the planned one.
        kinds: of kernels, see ``Clocked``.
        heads: of each recurrent matrix; a launch then has as many directions.
    """
    with planned_for(capability, launch):
        size = (STEPS, batch, hidden // heads, dtype, divmod(capability, 10), heads)
        planned = plan.plan(cell, *size)
    chosen = launch or planned.forward
    # The loop of the kernels with explicit layouts takes two steps in a pass.
    passed = 2 if chosen.explicit else 1
    for save in (True, False):
        own = {"forward", "backward"} if save else {"inference"}
        if not own & {*kinds}:
            continue
        with planned_for(capability, launch), compiling(capability) as launches:
            launch_both(cell, dtype, hidden, STEPS, batch, save, "meta", heads)
        few, more = (
            _executed(cell, dtype, hidden, capability, launch, steps, batch, save, heads)
            for steps in (2, 2 + passed)
        )
        made = _by_kind(launches, save)
        for kind in [k for k in kinds if k in made]:
            # One kernel is launched for all steps, or several in turn for each.
            parts = list({c.cubin: c for c in made[kind]}.values())
            for part, compiled in enumerate(parts):
                counts = [sum(c[kind][part :: len(parts)], Counters()) for c in (more, few)]
                counts = (counts[0] - counts[1], sum(more[kind], Counters()))
                yield _timed(
                    cell, hidden, capability, chosen, passed, kind, part, compiled, *counts
                )


def _executed(cell, dtype, hidden, capability, launch, steps, batch, save, heads):
    """The counters of each launch, by kind."""
    with planned_for(capability, launch), simulate(capability, races=False) as device:
        launch_both(cell, dtype, hidden, steps, batch, save, heads=heads)
    found: dict[str, list[Counters]] = {}
    for name, counters in device.launches:
        found.setdefault(_kind(name, save), []).append(counters)
    return found


def _by_kind(launches: list[Compiled], save: bool) -> dict[str, list[Compiled]]:
    found: dict[str, list[Compiled]] = {}
    for compiled in launches:
        found.setdefault(_kind(compiled.name, save), []).append(compiled)
    return found


def _kind(name: str, save: bool) -> str:
    return "backward" if "backward" in name else "forward" if save else "inference"


def _timed(
    cell, hidden, capability, launch, passed, kind, part, compiled, counted, sequence
) -> Clocked:
    warps = ptx.parse(compiled.ptx).threads // 32
    own = {"steps_per_pass": passed}
    if launch.per_multiprocessor and kind != "backward":
        own["programs"] = -(-math.prod(compiled.grid) // CHIPS[capability].multiprocessors)
    l2, dram, waits = (
        timed(compiled, capability, counted, **own, **more)
        for more in ({}, {"dram": True}, {"grid": True})
    )
    return Clocked(
        cell.name, hidden, capability, launch.strategy,
        "explicit" if launch.explicit else "Triton's", kind, part, warps, passed, compiled,
        counted // passed, sequence, l2, dram, waits,
    )  # fmt: skip


def timed(compiled: Compiled, capability: int, executed: Counters, **options) -> Cycles:
    """Time a kernel with the accesses to memory that were counted when it was executed.

    Args:
        executed: by all its programs, in one pass of its loop over time.
        options: of ``clock.cycles``.
    """
    warps = ptx.parse(compiled.ptx).threads // 32
    each = math.prod(compiled.grid) * warps
    code = sass.read(compiled.cubin)
    inner = _inner(code, executed.mma() / each)
    body = sass.time_loop(code, inner)
    return clock.cycles(
        compiled.cubin,
        capability,
        warps,
        inner=inner,
        sectors=_averages(body, executed, each, "global", lambda opcode: 1.0),
        wavefronts=_averages(body, executed, each, "shared", pipes.wavefronts),
        **options,
    )


def _inner(code, executed: float) -> int:
    """Passes of the loops in the time loop that multiply, by a warp's products."""
    once, twice = (sum(x.is_product() for x in sass.time_loop(code, n)) for n in (1, 2))
    return 1 if twice == once else 1 + round((executed - once) / (twice - once))


def _averages(body, executed, warps, space, weight) -> dict[tuple[str, int], float]:
    """Transactions of an instruction, by what it does: as many in all as were executed.

    Warps count too that a guard leaves out, as all do that have the same values as others.
    """
    weights: Counter = Counter()
    for x in body:
        if pipes.kind(x.opcode) == space and not x.polls:
            weights[pipes.access(x.opcode)] += weight(x.opcode)
    return {
        (kind, size): executed.transactions[space, kind, size] / (warps * total)
        for (kind, size), total in weights.items()
        if executed.transactions[space, kind, size]
    }
