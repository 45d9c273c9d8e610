"""Leave out each synchronization of the kernels in turn, and see whether the simulator notices.

    python -m bench.reports.mutations            # writes bench/results/mutations.md
    python -m bench.reports.mutations --quick    # the first kernel alone, printed
    python -m bench.reports.mutations --strategy grid    # one strategy's sections again

Every barrier, fence, commit and wait of the compiled kernels is left out, every acquire and release
made relaxed, every relaxed access weak, every scope narrowed from the GPU to the CTA, every loop
that polls passed once, one at a time. A mutant is caught by a
report of the simulator or by wrong numbers. If it is not caught, a trace of the unchanged kernel
shows why the synchronization is redundant there.
"""

from __future__ import annotations

import argparse
import os
import textwrap
from collections import Counter
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"  # the kernels are to be compiled

import torch
import triton

from bench.machine_code.launches import planned_for
from bench.progress import over
from fused_rnn import cells, plan
from fused_rnn.self_check import trial
from fused_rnn.self_check.problem import Problem
from simulator import SimulatorError, simulate
from simulator.mutations import Trace, mutants

RESULTS = Path(__file__).parents[1] / "results" / "mutations.md"
_WGMMA = plan.Launch("step", 64, 32, 64, 4)
_RESIDENT = (plan.Launch("resident", 16, 64, 64, 4), plan.Launch("resident", 16, 32, 32, 4))
_GRID = plan.Launch("grid", 16, 16, 64, 2, backward_k=128)
# (cell, strategy, capability, launch, (T, B, H)): two stages, every strategy, mma.sync and wgmma.
# Where there is no launch, the planned one: in "resident" and "grid" with explicit layouts.
CASES = (
    (cells.LSTM, "resident", 80, _RESIDENT[0], (2, 3, 33)),
    (cells.LSTM, "resident", 80, None, (3, 9, 33)),
    (cells.LSTM, "step", 80, None, (2, 3, 65)),
    (cells.GRU_RESET_BEFORE, "resident", 90, _RESIDENT[1], (2, 3, 17)),
    (cells.GRU_RESET_BEFORE, "resident", 90, None, (3, 9, 33)),
    (cells.LAYER_NORM_GRU, "resident", 80, None, (3, 9, 33)),
    (cells.GRU_RESET_BEFORE, "step", 90, None, (2, 3, 65)),
    (cells.LSTM, "grid", 80, _GRID, (3, 3, 65)),
    (cells.LSTM, "grid", 80, None, (5, 3, 65)),
    (cells.GRU_RESET_BEFORE, "grid", 90, _GRID, (3, 3, 33)),
    (cells.GRU_RESET_BEFORE, "grid", 90, None, (5, 3, 33)),
    (cells.GRU_RESET_BEFORE, "stream", 80, None, (3, 3, 65)),
    (cells.LSTM, None, 90, _WGMMA, (1, 33, 65)),
)


def run(case, change=None, trace=None, schedule="lockstep") -> dict:
    cell, strategy, capability, launch, (T, B, H) = case
    problem = Problem.make(cell, T, B, H, dtype=torch.bfloat16)
    with (
        planned_for(capability, launch),
        plan.use_strategy(strategy),
        simulate(
            capability,
            schedule=schedule,
            change=change,
            trace=trace,
            count=False,
            stretches=200_000,
        ),  # fmt: skip
    ):
        return trial.by_kernels(problem)


def programs(case) -> list:
    """The different programs that a case launches."""
    seen = {}

    def note(program):
        seen.setdefault(repr(program.instructions), program)
        return program

    run(case, note)
    return list(seen.values())


def verdict(case, mutant, original, right) -> str:
    """How the simulator caught a mutant; "" if it did not."""

    def change(program):
        return mutant.program if program.instructions == original.instructions else program

    # In lockstep, what one program polls for is often there before it looks.
    schedule = "run-ahead" if mutant.what == "not repeated" else "lockstep"
    try:
        got = run(case, change, schedule=schedule)
    except SimulatorError as error:
        lines = str(error).splitlines()
        return lines[1].split(":")[0] if len(lines) > 1 else type(error).__name__
    same = all(torch.equal(value, right[name]) for name, value in got.items())
    return "" if same else "wrong numbers"


def examine(case) -> tuple[Counter, Counter, list[str]]:
    """Counts of what was mutated and of verdicts, and rows of the mutants that were not caught."""
    right = run(case)
    kinds, verdicts, rows = Counter(), Counter(), []
    for original in programs(case):
        trace = Trace()

        def only(program, original=original, trace=trace):
            trace.launch(program.instructions == original.instructions)
            return program

        run(case, only, trace)
        for mutant in mutants(original):
            kinds[f"`{mutant.instruction.name}` {mutant.what}"] += 1
            how = verdict(case, mutant, original, right)
            if not how:
                reason = why_redundant(mutant.instruction, trace)
                how = f"redundant: {reason}" if reason else "not caught"
                rows.append(f"| {original.name} | `{mutant.instruction}` | {reason} |")
            verdicts[how] += 1
    return kinds, verdicts, rows


def why_redundant(instruction, trace: Trace) -> str:
    """Why the synchronization that a mutant lacks is redundant; "" if nothing shows this."""
    if instruction.is_barrier():
        return trace.why_redundant(instruction.index)
    if instruction.name.startswith("wgmma.fence"):
        # The simulator compares a product's registers with those at the last fence.
        return "its registers were last written before an earlier wgmma.fence"
    return ""


def section(case) -> str:
    """The results of ``examine`` as Markdown."""
    cell, strategy, capability, launch, sizes = case
    kinds, verdicts, rows = examine(case)
    how = strategy or f"{launch.strategy}, {launch.block_b} rows, wgmma"
    if launch is None and strategy in ("resident", "grid"):
        how += ", explicit layouts"
    mutated = [f"{n} {name}" for name, n in kinds.most_common()]
    lines = [
        f"## {cell.name}, {how}, sm_{capability}, (T, B, H) = {sizes}",
        "",
        textwrap.fill(f"Mutated: {', '.join(mutated)}.", 100, break_long_words=False),
        "",
        "| verdict | mutants |",
        "| --- | --- |",
        *(f"| {name} | {n} |" for name, n in verdicts.most_common()),
        "",
    ]
    if rows:
        lines += [
            "| not caught in | what | why it is redundant |",
            "| --- | --- | --- |",
            *rows,
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the first case alone, printed")
    parser.add_argument("--strategy", help="its cases alone; the others' sections stay")
    args = parser.parse_args()
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    torch.manual_seed(0)
    if args.quick:
        print(section(CASES[0]))
        return
    head = f"""# Mutants of the kernels

Written by `python -m bench.reports.mutations`:
every synchronization of the compiled kernels left out in
turn, every acquire and release made relaxed, every relaxed access weak, every scope narrowed from
the GPU to the CTA, every loop that polls passed once.
bfloat16, Triton {triton.__version__}, executed in the simulator, in lockstep.

"""
    written = RESULTS.read_text().split("\n## ")[1:]
    sections = {text.splitlines()[0]: f"## {text.rstrip()}\n" for text in written}
    for case in over([c for c in CASES if args.strategy in (None, c[1])], "mutations"):
        found = section(case)
        print(found, flush=True)
        sections[found.splitlines()[0].removeprefix("## ")] = found
        RESULTS.write_text(head + "\n".join(sections.values()))


if __name__ == "__main__":
    main()
