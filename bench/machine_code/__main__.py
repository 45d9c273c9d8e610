"""Compile every launch that a plan can return over a grid of sizes, and examine the code.

    python -m bench.machine_code                     # everything: hours
    python -m bench.machine_code --minutes 10 --capability 80 90
    python -m bench.machine_code --cells all --hidden 64 --dtypes bfloat16 --batches 16

Writes this Triton's section of bench/results/compiled.md, or of compiled_cells.md where cells are
named; and a table of every kernel beside it, compiled-<version>.csv, which git ignores. The results
are kept in bench/results/compiled.jsonl, so a run can be stopped and resumed: see ``examined.py``.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gc
import itertools
import os
import random
from collections import defaultdict
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"  # the kernels are to be compiled

import triton

from fused_rnn import cells, plan

from ..progress import Progress
from . import by_cell, summary
from .examined import Examined
from .grid import BATCHES, CAPABILITIES, CELLS, CORE_DTYPES, HIDDEN, products_of, torch_dtype

RESULTS = Path(__file__).parents[1] / "results"


def rows(capabilities, names=CELLS, hidden=HIDDEN, dtypes=CORE_DTYPES, batches=BATCHES):
    """The chips and batches that each (cell, dtype, H, launch) is planned for."""
    found = defaultdict(lambda: (set(), set()))
    for size in itertools.product(hidden, names, dtypes, capabilities, batches):
        H, cell, dtype, capability, B = size
        launch = planned(cell, dtype, H, B, capability)
        chips, batches_of_launch = found[cell, dtype, H, launch]
        chips.add(capability)
        batches_of_launch.add(B)
    return found


def planned(cell, dtype, H, B, capability):
    """The planned launch, without the number of concurrent tiles, which no kernel depends on."""
    with products_of(dtype):
        given = plan.plan(cells.get(cell), 2, B, H, torch_dtype(dtype), divmod(capability, 10))
    return dataclasses.replace(given.forward, tiles=1)


def main(arguments=None) -> int:
    args = _parser().parse_args(arguments)
    shard, shards = map(int, args.shard.split("/"))
    names = cells.names() if args.cells == ["all"] else args.cells or CELLS
    examined = Examined(minutes=args.minutes, inference=not args.training)
    wanted = rows(args.capability, names, args.hidden, args.dtypes, args.batches)
    # In random order, so that an incomplete run is a sample of all sizes; kernels with explicit
    # layouts first, since they use most of the registers.
    mixed = random.Random(0).sample(list(wanted), len(wanted))
    mixed = sorted(mixed, key=lambda row: not row[3].explicit)[shard::shards]
    progress = Progress("plans", len(mixed))
    gc.set_threshold(100_000)  # Triton makes many objects: by default a fifth of the time
    for row in mixed:
        if not examined.late():
            found = [f for _, f in examined.look(*row, wanted[row][0])]
            progress.step(f"{len(found)} kernels of {' '.join(map(str, row))}")
    lines, left = [], 0
    for (cell, dtype, H, launch), (chips, batches) in wanted.items():
        for chip, facts in examined.look(cell, dtype, H, launch, chips, more=False):
            if facts is None:
                left += 1
            else:
                lines.append(_line(cell, dtype, H, launch, batches, chip, facts))
    _write(lines, len(lines) + left, by_cell if args.cells else summary)
    faults = sum(bool(line[-1]) for line in lines)
    print(f"{len(lines)} kernels looked at, {faults} with faults, {left} left")
    return 1 if faults else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--capability", type=int, nargs="+", default=CAPABILITIES, choices=CAPABILITIES
    )
    parser.add_argument("--cells", nargs="+", choices=("all", *cells.names()), metavar="CELL")
    parser.add_argument("--hidden", type=int, nargs="+", default=HIDDEN)
    parser.add_argument("--dtypes", nargs="+", default=CORE_DTYPES, choices=CORE_DTYPES)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--training", action="store_true", help="leave out inference's forward")
    parser.add_argument("--minutes", type=float, help="stop after them, and print what is left")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th row, starting at the i-th")
    return parser


def _write(lines, total, page):
    """Write the table of all kernels, and this Triton's section of a page."""
    with (RESULTS / f"compiled-{triton.__version__}.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])
    kernels = [dict(zip(COLUMNS, line, strict=True)) for line in lines]
    section = page.section(triton.__version__, kernels, total)
    file = RESULTS / page.FILE
    before = file.read_text() if file.exists() else ""
    file.write_text(summary.replaced(before, section, page.INTRODUCTION))


COLUMNS = (
    "cell", "dtype", "H", "B", "chip", "strategy", "layouts", "rows", "chunks", "units", "inner",
    "warps", "kernel", "registers", "spills", "shared", "tensor_core", "seconds", "faults",
)  # fmt: skip


def _line(cell, dtype, H, launch, batches, chip, facts) -> tuple:
    inner, warps = launch.block_k, launch.num_warps
    if facts.kernel == "backward":
        inner = launch.backward_k or inner
    if dtype == "float32":
        warps = launch.exact_warps or warps
    return (
        cell, dtype, H, " ".join(map(str, sorted(batches))), chip, launch.strategy,
        "explicit" if launch.explicit else "Triton's", launch.block_b, launch.own, launch.block_h,
        inner, warps, facts.kernel, facts.registers, facts.spills, facts.shared, facts.tensor_core,
        facts.seconds, "; ".join(facts.faults(dtype, chip)),
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
