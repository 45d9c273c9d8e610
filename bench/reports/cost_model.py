"""The cost model's times per step, beside a floor and beside published figures.

    python -m bench.reports.cost_model     # writes bench/results/model.md

It needs no GPU and compiles nothing. Nothing here was measured by this project.
"""

from __future__ import annotations

from pathlib import Path

import torch

from fused_rnn import cells, plan

RESULTS = Path(__file__).parents[1] / "results" / "model.md"
H100 = (9, 0)
STEPS = 1024

# Floors in microseconds per step of an LSTM's forward in bfloat16 on an H100, without the product
# of x. Each part runs at the best published speed, and all that can overlap does. By (B, H), for
# three designs: a launch per step in a graph; all units in one program; all slices of the units at
# once, with a barrier of the grid. None: the weights do not fit.
FLOORS = {
    (1, 128): (1.5, 0.7, 1.0), (1, 256): (1.5, None, 1.0), (1, 512): (1.8, None, 1.1),
    (1, 1024): (2.6, None, 1.3), (1, 2048): (5.9, None, None),
    (16, 128): (1.5, 1.0, 1.0), (16, 256): (1.7, None, 1.0), (16, 512): (2.0, None, 1.1),
    (16, 1024): (3.1, None, 1.6), (16, 2048): (7.0, None, None),
    (64, 128): (1.6, 1.0, 1.0), (64, 256): (1.9, None, 1.1), (64, 512): (2.6, None, 1.4),
    (64, 1024): (4.9, None, 2.2), (64, 2048): (10.5, None, None),
    (256, 128): (1.8, 1.0, 1.1), (256, 256): (2.5, None, 1.4), (256, 512): (4.0, None, 2.2),
    (256, 1024): (8.7, None, 5.3), (256, 2048): (20.2, None, None),
}  # fmt: skip

# FlashRNN's figures: microseconds per step of an LSTM's forward with B = 16 and T = 1024, bfloat16
# unless noted, on a GPU that is probably an H100.
PUBLISHED = {
    64: {"FlashRNN, Triton": 1.94, "FlashRNN, CUDA fused": 3.03},
    128: {"FlashRNN, Triton": 3.15, "FlashRNN, CUDA fused": 3.14},
    256: {"FlashRNN, CUDA fused": 3.54},
    768: {
        "FlashRNN, CUDA fused": 4.76,
        "nn.LSTM, float16, with the product of x": 1.96,
        "Haste, float32": 18.0,
    },
}


def planned(B: int, H: int) -> plan.Plan:
    return plan.plan(cells.LSTM, STEPS, B, H, torch.bfloat16, H100)


def main() -> None:
    lines = [
        "# The model of the times, beside a floor and beside published times",
        "",
        "Written by `python -m bench.reports.cost_model`.",
        "**A model, not a measurement**: the microseconds per step are those of",
        "`fused_rnn/plan/cost.py`, by which `plan` ranks launches, for the forward",
        "of an LSTM in training, in bfloat16, on an H100 that was not there. The floors follow",
        "from published figures of the hardware, too: the barrier, the launch of a graph's node,",
        "the L2 cache, shared memory, tensor cores and special functions.",
        "",
        "| B | H | strategy | model, µs | floor: a launch per step, in a graph | all units in a "
        "program | slices with a barrier | model / lowest floor |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (B, H), floors in FLOORS.items():
        found = planned(B, H)
        lowest = min(f for f in floors if f is not None)
        shown = ("-" if f is None else f for f in floors)
        ratio = f"{found.time / lowest:.1f}"
        figures = (B, H, found.forward.strategy, f"{found.time:.1f}", *shown, ratio)
        lines.append(f"| {' | '.join(map(str, figures))} |")
    lines += [
        "",
        "## Beside the peers",
        "",
        "B = 16, T = 1024, forward. The peers' times were published by FlashRNN's authors; ours",
        "are the model's.",
        "",
        "| H | the model of ours, µs | published, µs |",
        "| --- | --- | --- |",
    ]
    for H, peers in PUBLISHED.items():
        theirs = "; ".join(f"{name}: {time}" for name, time in peers.items())
        lines.append(f"| {H} | {planned(16, H).time:.1f} | {theirs} |")
    lines += ["", "## What `explain()` says", ""]
    for B, H in FLOORS:
        lines += [f"B = {B}, H = {H}:", "", "```text", planned(B, H).explain(), "```", ""]
    RESULTS.write_text("\n".join(lines[:-1]) + "\n")


if __name__ == "__main__":
    main()
