"""Compile every launch that a plan can return over a grid of sizes, and look through the code.

    python -m bench.check_compiled                     # everything: hours
    python -m bench.check_compiled --minutes 10 --capability 80 90

Writes bench/results/compiled.md. What was looked at is kept in bench/results/compiled.jsonl, so it
can be stopped and go on: see ``examined.py``.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import sys
from collections import defaultdict
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"  # the kernels are to be compiled

import triton

from fused_rnn import cells, plan

from .examined import Examined
from .grid import BATCHES, CAPABILITIES, CELLS, CORE_DTYPES, HIDDEN, torch_dtype

RESULTS = Path(__file__).parent / "results"


def rows(capabilities):
    """(cell, dtype, H, launch): the chips and batches whose plan it is; the same launch once."""
    found = defaultdict(lambda: (set(), set()))
    for H in HIDDEN:
        for cell in CELLS:
            for dtype in CORE_DTYPES:
                for capability in capabilities:
                    for B in BATCHES:
                        launch = planned(cell, dtype, H, B, capability)
                        chips, batches = found[cell, dtype, H, launch]
                        chips.add(capability)
                        batches.add(B)
    return found


def planned(cell, dtype, H, B, capability):
    """What a launch is compiled for; how many batch tiles run at once is no part of it."""
    given = plan.plan(cells.get(cell), 2, B, H, torch_dtype(dtype), divmod(capability, 10))
    return dataclasses.replace(given.forward, tiles=1)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--capability", type=int, nargs="*", default=CAPABILITIES)
    parser.add_argument("--minutes", type=float, help="stop after so long, and say what is left")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th row, from the i-th on")
    args = parser.parse_args(arguments)
    shard, shards = map(int, args.shard.split("/"))
    examined, wanted = Examined(minutes=args.minutes), rows(args.capability)
    # In any order but that of the grid: so a part of it is a sample of all sizes.
    for number, row in enumerate(random.Random(0).sample(list(wanted), len(wanted))):
        if number % shards == shard and not examined.late():
            found = [f for _, f in examined.look(*row, wanted[row][0])]
            print(f"{number + 1} of {len(wanted)}: {len(found)} kernels", *row, file=sys.stderr)
    lines, left, faults = [], 0, 0
    for (cell, dtype, H, launch), (chips, batches) in wanted.items():
        for chip, facts in examined.look(cell, dtype, H, launch, chips, more=False):
            if facts is None:
                left += 1
                continue
            problems = facts.faults(dtype, chip)
            faults += bool(problems)
            lines.append(line(cell, dtype, H, launch, batches, chip, facts, problems))
    write(lines, left, faults)
    print(f"{len(lines)} kernels looked at, {faults} with faults, {left} left")
    return 1 if faults else 0


def line(cell, dtype, H, launch, batches, chip, facts, problems):
    kind, inner = facts.kernel, launch.block_k
    if kind == "backward":
        inner = launch.backward_k or inner
    blocks = f"{launch.block_b}x{launch.own}·{launch.block_h}/{inner}"
    figures = (facts.registers, facts.spills, facts.shared, facts.tensor_core)
    cells_ = (cell, dtype, H, ", ".join(map(str, sorted(batches))), f"sm_{chip}", launch.strategy)
    cells_ += (blocks, launch.num_warps, kind, *figures, "; ".join(problems) or "none")
    return f"| {' | '.join(map(str, cells_))} |"


def write(lines, left, faults):
    head = [
        "# Every plan, compiled",
        "",
        "Written by `make check-compiled`: the launches that `plan()` returns over B in",
        f"{BATCHES} and H in {HIDDEN}, compiled by Triton {triton.__version__} for GPUs that were",
        "not there. For each kernel: no trap, spills within the bound (4 instructions that touch",
        "local memory; 10 for exact float32, whose products take no tensor cores), shared memory",
        "within the chip's, tensor-core instructions as many as the PTX has, no load of exchanged",
        "values before the loop over time, and a barrier of the CTA between the stores of such",
        "values and the release. A forward for training saves what the backward needs, one for",
        "inference does not.",
        "",
        f"{len(lines)} kernels were looked at, {left} of the grid were not; {faults} have faults.",
        "The blocks of a program: rows x chunks · units of a chunk / inner dimension.",
        "",
        "| cell | dtype | H | B | chip | strategy | blocks | warps | kernel | registers | spills "
        "| shared memory | tensor-core instructions | faults |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    (RESULTS / "compiled.md").write_text("\n".join([*head, *lines]) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
