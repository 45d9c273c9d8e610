"""The launches that ``plan`` chooses, and facts about their machine code.

    python -m bench.reports.plans            # writes bench/results/plans.md
    python -m bench.reports.plans --quick    # one row, printed

The times come from the model in fused_rnn/plan/cost.py. Nothing was measured on a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import os
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"  # the kernels are to be compiled

import torch
import triton
from fused_rnn.kernels.gpu.offline import compiling

from bench.machine_code.launches import launch_both, planned_for
from bench.progress import over
from fused_rnn import cells, plan
from simulator.audit import Audit, audit

RESULTS = Path(__file__).parents[1] / "results" / "plans.md"
DTYPE = torch.bfloat16
# (capabilities, cells, H, B)
SWEEPS = (
    ((90,), (cells.LSTM,), (128, 256, 512, 1024, 2048), (1, 16, 64, 256)),
    ((90,), (cells.GRU, cells.GRU_RESET_BEFORE, cells.PEEPHOLE_LSTM), (256, 768), (16,)),
    ((80, 86, 89, 100, 120), (cells.LSTM, cells.GRU), (512, 1536), (16,)),
)


def rows(sweeps):
    """The problems of the sweeps, each with its plan."""
    for capabilities, of, sizes, batches in sweeps:
        for capability, cell, H, B in itertools.product(capabilities, of, sizes, batches):
            yield capability, cell, H, B, plan.plan(cell, 100, B, H, DTYPE, divmod(capability, 10))


def compiled(capability, cell, H, B) -> list[Audit]:
    """The kernels of a forward and a backward of two steps."""
    with planned_for(capability), compiling(capability) as launches:
        launch_both(cell, DTYPE, H, T=2, B=B)
    return [audit(launch) for launch in {launch.cubin: launch for launch in launches}.values()]


def describe(capability, cell, H, B, chosen, found: list[Audit]) -> str:
    launch = chosen.forward
    program = f"{launch.block_b} × {launch.own * launch.block_h}"
    at_once = launch.tiles if launch.waits else "-"
    spills = " / ".join(str(a.spills) for a in found)
    tensor = all(a.tensor_core == a.expected > 0 for a in found)
    figures = (
        f"{capability / 10}", cell.name, H, B, launch.strategy, program, launch.num_warps, at_once,
        f"{chosen.time:.1f}", max(a.registers for a in found), spills,
        f"{max(a.shared for a in found):,}", "yes" if tensor else "NO",
        "yes" if all(a.exits for a in found) else "NO",
    )  # fmt: skip
    return f"| {' | '.join(map(str, figures))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one row, printed")
    args = parser.parse_args()
    lines = [
        "# Plans",
        "",
        "Written by `python -m bench.reports.plans`:",
        f"what `plan` chooses in bfloat16, compiled by Triton {triton.__version__} for GPUs that",
        "are not there. The microseconds per time step of a forward are those of the model in",
        "`fused_rnn/plan/cost.py`, with an H100's constants: they rank launches, and nothing here",
        "was measured. Spill instructions are of the kernels of the forward / of the backward",
        "(`step` has several of each).",
        "",
        "| chip | cell | H | B | strategy | rows × units of a program | warps | tiles at once "
        "| modelled µs | registers | spills | shared memory | all tensor cores | exits |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in over(rows(SWEEPS), "plans"):
        lines.append(describe(*row, compiled(*row[:4])))
        print(lines[-1], flush=True)
        if args.quick:
            return
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
