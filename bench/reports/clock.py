"""Cycles of a time step of the planned kernels, by the clock of the machine code.

    python -m bench.reports.clock            # writes bench/results/clock.md, .json and .png
    python -m bench.reports.clock --cells lstm --hidden 64 --capability 80 --save DIR

The figures of other cells, sizes and chips than those named stay. --save writes the machine code of
every kernel, and DIR/kernels.json, which lists it. Nothing was measured on a GPU: docs/simulator.md
says what the clock models.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"  # the kernels are to be compiled

import triton

from bench.machine_code.clocked import BATCH, STEPS, Clocked, clocked
from fused_rnn import cells, plan
from simulator.pipes import CHIPS

from ..progress import Progress
from . import clock_plot

RESULTS = Path(__file__).parents[1] / "results"
CELLS = ("lstm", "gru", "gru_reset_before", "peephole_lstm", "cifg_lstm")
HIDDEN = (64, 128, 512, 1024)
KINDS = ("forward", "inference", "backward")

# Counted by execution, of one program.
EXECUTED = ("instructions", "special functions", "shared wavefronts", "global sectors")
COLUMNS = (
    "cell", "H", "chip", "strategy", "layouts", "kernel", "warps", "cycles", "from DRAM",
    "with waits", "busiest pipe", "its cycles", "machine code", "PTX", "MUFU", "wavefronts",
    "sectors",
)  # fmt: skip


def entry(k: Clocked) -> dict:
    """The figures of a kernel as plain data."""
    return {
        "cell": k.cell,
        "hidden": k.hidden,
        "capability": k.capability,
        "strategy": k.strategy,
        "layouts": k.layouts,
        "kind": k.kind,
        "part": k.part,
        "warps": k.warps,
        "cycles": {"l2": k.l2.total, "dram": k.dram.total, "waits": k.waits.total},
        "spent": k.l2.spent,
        "busy": k.l2.busy,
        "machine code": k.l2.instructions,
        "MUFU": k.l2.special_functions,
        "executed": {name: k.executed[name] / k.programs for name in EXECUTED},
    }


def row(e: dict) -> str:
    """A line of the table."""
    pipe = max(e["busy"], key=e["busy"].get)
    instructions, _, wavefronts, sectors = e["executed"].values()
    kernel = f"{e['kind']}, part {e['part'] + 1}" if e["part"] else e["kind"]
    labels = (
        e["cell"], e["hidden"], e["capability"] / 10, e["strategy"], e["layouts"], kernel,
        e["warps"],
    )  # fmt: skip
    figures = (
        *e["cycles"].values(), pipe, e["busy"][pipe], e["machine code"], instructions, e["MUFU"],
        wavefronts, sectors,
    )  # fmt: skip
    numbers = (n if isinstance(n, str) else f"{n:,.0f}" for n in figures)
    return f"| {' | '.join([*map(str, labels), *numbers])} |"


def place(e: dict) -> tuple:
    """A key by which figures are sorted and replaced."""
    return (
        CELLS.index(e["cell"]) if e["cell"] in CELLS else len(CELLS),
        *(e[name] for name in ("cell", "hidden", "capability")),
        KINDS.index(e["kind"]),
        e["part"],
        e["layouts"],
    )


def page(entries: list[dict]) -> str:
    lines = [
        "# Cycles of a step, by the clock",
        "",
        "Written by `python -m bench.reports.clock`. **A model, not a measurement**: see",
        "[docs/simulator.md](../../docs/simulator.md). The kernels that the plans choose for",
        f"T {STEPS}, B {BATCH}, bfloat16, compiled by Triton {triton.__version__}; `inference` is",
        "a forward that keeps nothing for a backward. Kernels with Triton's layouts, where there",
        "are explicit ones for the same layer, are those that the plans chose before. A run writes",
        "the rows of its own layers; the others are of the kernels as they were at their last run.",
        "",
        "- `cycles`: of a multiprocessor, per time step, with what is loaded in the L2 cache and,",
        "  where programs wait for each other, all of them there already; `from DRAM`: loads of",
        "  what no program of the step has written come from memory; `with waits`: each barrier of",
        "  the grid takes the published 1.09 µs, and values that a kernel with explicit layouts",
        "  polls for come two latencies of L2 after they were stored.",
        "- `busiest pipe`: the pipe of a multiprocessor that works longest in a step. The step",
        "  cannot take fewer cycles than it.",
        "- `machine code`, `MUFU`: instructions of all warps of a program. By execution, and of a",
        "  program too: `PTX` instructions, `wavefronts` of shared memory, `sectors` of global",
        "  memory.",
        "",
        "![Where the cycles go](clock.png)",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"| {' | '.join('---' if c in COLUMNS[:6] else '--:' for c in COLUMNS)} |",
        *map(row, entries),
    ]
    return "\n".join(lines) + "\n"


def save(folder: Path, found: list[Clocked]) -> None:
    """Write the machine code of kernels, and a list of them."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = []
    for k in found:
        name = f"{k.cell}-{k.strategy}-{k.hidden}-sm{k.capability}-{k.kind}-{k.part}.cubin"
        (folder / name).write_bytes(k.compiled.cubin)
        listed.append(
            {
                "cell": k.cell,
                "strategy": k.strategy,
                "hidden": k.hidden,
                "kind": k.kind,
                "capability": k.capability,
                "warps": k.warps,
                "steps_per_pass": k.steps_per_pass,
                "cubin": name,
            }
        )
    (folder / "kernels.json").write_text(json.dumps(listed, indent=1) + "\n")


def main(arguments=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", default=CELLS, help="names of cells")
    parser.add_argument("--hidden", nargs="+", type=int, default=HIDDEN)
    parser.add_argument("--capability", nargs="+", type=int, default=tuple(CHIPS), choices=CHIPS)
    parser.add_argument("--strategy", choices=plan.STRATEGIES, help="printed, not written")
    parser.add_argument("--save", type=Path, help="a folder for the machine code")
    args = parser.parse_args(arguments)
    file = RESULTS / "clock.json"
    kept = json.loads(file.read_text()) if file.exists() else []
    entries = {place(e): e for e in kept}
    found: list[Clocked] = []
    wanted = list(itertools.product(args.cells, args.hidden, args.capability))
    progress = Progress("clock", len(wanted))
    for name, hidden, capability in wanted:
        with plan.use_strategy(args.strategy):
            made = list(clocked(cells.get(name), hidden, capability))
        found += made
        for e in map(entry, made):
            entries[place(e)] = e
            print(row(e), flush=True)
        progress.step(f"{name}, H {hidden}, sm_{capability}")
        if args.strategy is None:
            ordered = [entries[key] for key in sorted(entries)]
            file.write_text(json.dumps(ordered, indent=1) + "\n")
            file.with_suffix(".md").write_text(page(ordered))
            clock_plot.draw(file.with_suffix(".png"), ordered)
    if args.save:
        save(args.save, found)


if __name__ == "__main__":
    main()
