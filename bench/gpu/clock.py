"""The clock's predictions beside what a race measured: python -m bench.gpu.clock --race FOLDER

    python -m bench.gpu.clock --race runs/gpu/h100/peers --out runs/gpu/h100/clock
    python -m bench.gpu.clock --layers lstm:16x32     # nothing measured: a layer of B 16, H 32

The layers are those that backend "triton" was timed on in the race, one direction each. Their
kernels, as the table of plans chooses them for 8.0 and 9.0, are compiled, executed in the simulator
and timed by the clock of the machine code, in several processes. Writes clock.md into --out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..progress import Progress
from ..race import report
from ..race.report import figure

CHIPS = (80, 90)
KINDS = {"inference": ("inference",), "training": ("forward", "backward")}
INTRODUCTION = """\
**The clock is a model, not a measurement**: see docs/simulator.md. It has the steps of the kernels
alone, forward, and backward in training, in µs at the boost clock. Loads come from the L2 cache,
and each barrier of the grid takes its published time. A measured call has the products over all
steps, the launches and Python as well, so it takes longer.
"""


class Layer(NamedTuple):
    """What is clocked."""

    cell: str
    B: int
    H: int
    dtype: str

    def __str__(self):
        return f"{self.cell}, B {self.B}, H {self.H}, {self.dtype}"


class Clocked(NamedTuple):
    """Microseconds of a step by mode, and the strategy; without them, why there are none."""

    layer: Layer
    capability: int
    strategy: str = ""
    microseconds: dict[str, float] | None = None
    why_not: str = ""


def look(job: tuple[Layer, int]) -> Clocked:
    """Clock the kernels of a layer on a chip, in a process that compiles kernels."""
    from fused_rnn import cells

    from ..machine_code.clocked import clocked

    layer, capability = job
    try:
        options = {"batch": layer.B, "dtype": getattr(torch, layer.dtype)}
        found = list(clocked(cells.get(layer.cell), layer.H, capability, **options))
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return Clocked(layer, capability, why_not=str(error).splitlines()[0])
    # Of kernels that make a step together, each has its part.
    times = {
        mode: sum(k.waits.microseconds for k in found if k.kind in kinds)
        for mode, kinds in KINDS.items()
    }
    return Clocked(layer, capability, found[0].strategy, times)


def all_of(jobs: Sequence[tuple[Layer, int]], seconds: float, workers: int) -> Iterator[Clocked]:
    """Yield each result when it is there, until ``seconds`` have passed."""
    end = time.monotonic() + seconds
    os.environ["TRITON_INTERPRET"] = "0"  # of the processes: their kernels are to be compiled
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(workers, len(jobs))) as pool, Progress("clock", len(jobs)) as shown:
        results = pool.imap_unordered(look, jobs)
        for _ in jobs:
            try:
                result = results.next(timeout=max(0.0, end - time.monotonic()))
            except multiprocessing.TimeoutError:
                return
            shown.step(f"{result.layer} on {result.capability / 10}")
            yield result


def measured(folder: Path) -> dict[tuple[Layer, str], float]:
    """Microseconds of a step of backend "triton", by layer and mode, of the races of a folder."""
    found = {}
    for file in sorted(folder.glob("*.json")):
        for row in report.read(file)[2]:
            if row.provider == "triton" and row.status == "timed":
                layer = Layer(row.cell, row.B, row.H, row.dtype)
                found[layer, row.mode] = row.median_ms * 1e3 / row.T
    return found


def page(
    rows: Sequence[tuple[Layer, str]],
    times: dict[tuple[Layer, str], float],
    clocked: dict[tuple[Layer, int], Clocked],
    here: int | None,
) -> str:
    """The table, a row per layer and mode."""
    head = ["layer", "mode", "measured µs a step", *(f"clock, {c / 10}" for c in CHIPS)]
    head.append("measured / clock")
    lines = ["# The clock beside the measurement", "", INTRODUCTION]
    if not times:
        lines += ["Nothing was measured: there was no GPU, or no race of the kernels.", ""]
    lines += [f"| {' | '.join(head)} |", f"| --- | --- |{' --: |' * (len(head) - 2)}"]
    for layer, mode in rows:
        time, both = times.get((layer, mode)), [clocked.get((layer, c)) for c in CHIPS]
        entries = [str(layer), mode, "" if time is None else figure(time)]
        for one in both:
            known = one is not None and one.microseconds
            entries.append(f"{figure(one.microseconds[mode])} ({one.strategy})" if known else "")
        own = clocked.get((layer, here))
        known = time is not None and own is not None and own.microseconds
        entries.append(f"{time / own.microseconds[mode]:.2f}" if known else "")
        lines.append(f"| {' | '.join(entries)} |")
    failed = [c for c in clocked.values() if c.why_not]
    lines += ["", *(f"- {c.layer} on {c.capability / 10}: {c.why_not}" for c in failed)]
    left = len({layer for layer, _ in rows}) * len(CHIPS) - len(clocked)
    if left:
        lines.append(f"- {left} left: the time was over.")
    return "\n".join(lines).rstrip() + "\n"


def main(argv: list[str] | None = None) -> int:
    """Write the page; returns 1 if there is no layer to clock."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.clock",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--race", type=Path, help="folder of a race's results")
    parser.add_argument("--layers", nargs="+", default=[], help="more of them: CELL:BxH, bfloat16")
    parser.add_argument("--seconds", type=float, default=600.0, help="leave out what takes longer")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, help="folder; default: the page is printed only")
    options = parser.parse_args(argv)
    times = measured(options.race) if options.race else {}
    rows = list(times)
    for text in options.layers:
        cell, _, size = text.partition(":")
        B, H = map(int, size.split("x"))
        rows += [(Layer(cell, B, H, "bfloat16"), mode) for mode in KINDS]
    if not rows:
        print("There is no layer that the kernels were timed on.", file=sys.stderr)
        return 1
    here = None
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        here = 10 * major + minor
    layers = list(dict.fromkeys(layer for layer, _ in rows))
    # The chip of this machine first: the time may not do for both.
    chips = sorted(CHIPS, key=lambda chip: chip != here)
    jobs = [(layer, chip) for chip in chips for layer in layers]
    clocked = {}
    for result in all_of(jobs, options.seconds, options.workers):
        clocked[result.layer, result.capability] = result
    text = page(rows, times, clocked, here)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "clock.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
