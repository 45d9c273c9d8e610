"""Compile every launch that a plan can return over a grid of sizes, and look through the code.

    python -m bench.check_compiled                     # everything: hours
    python -m bench.check_compiled --minutes 10 --capability 80 90

Writes bench/results/compiled.md. What was looked at is kept in bench/results/compiled.jsonl by a
key of all that the code follows from, so it can be stopped and go on: kernels of other sources, or
another Triton, are other keys.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"  # the kernels are to be compiled

import triton

from fused_rnn import cells, plan

from . import compiled
from .compiled import Facts

RESULTS = Path(__file__).parent / "results"
CELLS = ("lstm", "peephole_lstm", "gru", "gru_reset_before")
DTYPES = ("bfloat16", "float16", "tf32", "float32")
CAPABILITIES = (80, 86, 89, 90, 100, 120)
BATCHES = (1, 8, 16, 64, 256)
# From small to large, since a kernel takes longer the more of its inner dimension is unrolled.
HIDDEN = (17, 64, 100, 128, 256, 512, 768, 1000, 1024, 1536, 2048)


def rows(capabilities):
    """(cell, dtype, H, launch): the chips and batches whose plan it is; the same launch once."""
    found = defaultdict(lambda: (set(), set()))
    for H in HIDDEN:
        for cell in CELLS:
            for dtype in DTYPES:
                for capability in capabilities:
                    for B in BATCHES:
                        launch = planned(cell, dtype, H, B, capability)
                        chips, batches = found[cell, dtype, H, launch]
                        chips.add(capability)
                        batches.add(B)
    return found


def planned(cell, dtype, H, B, capability):
    """What a launch is compiled for; how many batch tiles run at once is no part of it."""
    given = plan.plan(cells.get(cell), 2, B, H, compiled.torch_dtype(dtype), divmod(capability, 10))
    return dataclasses.replace(given.forward, tiles=1)


def of(cell, dtype, H, launch) -> list[tuple[str, compiled.Kernel]]:
    """The kernels of a launch, each with what it is for."""
    found = [
        ("backward" if "backward" in kernel.function.__name__ else "forward", kernel)
        for kernel in compiled.kernels(cells.get(cell), dtype, H, launch)
    ]
    inference = compiled.kernels(cells.get(cell), dtype, H, launch, save=False)
    return found + [("inference", kernel) for kernel in inference]


def known(file: Path) -> dict[str, Facts]:
    lines = file.read_text().splitlines() if file.exists() else []
    entries = map(json.loads, lines)
    return {entry.pop("key"): Facts(**entry) for entry in entries}


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--capability", type=int, nargs="*", default=CAPABILITIES)
    parser.add_argument("--minutes", type=float, help="stop after so long, and say what is left")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th row, from the i-th on")
    args = parser.parse_args(arguments)
    shard, shards = map(int, args.shard.split("/"))
    end = time.monotonic() + 60 * (args.minutes or 1e9)
    file, wanted = RESULTS / "compiled.jsonl", rows(args.capability)
    seen, lines, left, faults = known(file), [], 0, 0
    for number, ((cell, dtype, H, launch), (chips, batches)) in enumerate(wanted.items()):
        for kind, kernel in of(cell, dtype, H, launch):
            keys = {chip: kernel.key(dtype, chip) for chip in sorted(chips)}
            lacking = [chip for chip in keys if keys[chip] not in seen]
            if lacking and number % shards == shard and time.monotonic() < end:
                for chip, facts in compiled.examine(kernel, dtype, lacking):
                    seen[keys[chip]] = facts
                    with file.open("a") as out:
                        out.write(
                            json.dumps({"key": keys[chip]} | dataclasses.asdict(facts)) + "\n"
                        )
            for chip, key in keys.items():
                if key not in seen:
                    left += 1
                    continue
                problems = seen[key].faults(dtype, chip)
                faults += bool(problems)
                lines.append(line(cell, dtype, H, launch, batches, chip, kind, seen[key], problems))
        print(f"{number + 1} of {len(wanted)}, {faults} faults, {left} left", file=sys.stderr)
    write(lines, left, faults)
    return 1 if faults else 0


def line(cell, dtype, H, launch, batches, chip, kind, facts, problems):
    inner = launch.backward_k if kind == "backward" and launch.backward_k else launch.block_k
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
