"""The time of a compiled LSTM on the CPU, relative to torch.nn's outside a graph.

    python -m bench.reports.torch_compile_speed        # writes bench/results/compiled_cpu.md

Inductor, one thread, one process; all are timed in turns. torch.nn's module breaks the graph, so
its compiled form runs as outside a graph.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from pathlib import Path

import torch

import fused_rnn

from ..progress import over
from ..race.environment import facts as environment_facts
from ..race.environment import in_words
from ..race.timing import race

RESULTS = Path(__file__).parents[1] / "results" / "compiled_cpu.md"
SIZES = ((50, 16, 64), (100, 32, 256))
OVER = "nn.LSTM"
PAGE = """# A compiled LSTM on the CPU

Written by `python -m bench.reports.torch_compile_speed`:
time over that of `torch.nn.LSTM` outside a graph, the
median of 15 rounds in which all take turns; T×B×H, I = H, float32, one thread. Less is faster.

{told}

| size | mode | module | time, ratio |
| --- | --- | --- | --: |
{lines}
"""


def _calls(size, training):
    T, B, H = size
    torch.manual_seed(0)
    theirs, mine = torch.nn.LSTM(H, H), fused_rnn.LSTM(H, H)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, H)
    modules = {
        OVER: theirs,
        "nn.LSTM, compiled": torch.compile(theirs),
        "fused_rnn.LSTM": mine,
        "fused_rnn.LSTM, compiled": torch.compile(mine, fullgraph=True),
    }

    def call(module):
        with torch.set_grad_enabled(training):
            output, _ = module(x)
        if training:
            output.sum().backward()

    return {name: lambda module=module: call(module) for name, module in modules.items()}


def main() -> int:
    torch.set_num_threads(1)
    facts = environment_facts(torch.device("cpu"))
    lines = []
    wanted = list(itertools.product(SIZES, ("training", "inference")))
    for size, mode in over(wanted, "torch.compile"):
        samples = race(_calls(size, mode == "training"), 15, torch.device("cpu"))
        for name, values in samples.items():
            ratio = statistics.median(a / b for a, b in zip(values, samples[OVER], strict=True))
            lines.append(f"| {'×'.join(map(str, size))} | {mode} | {name} | {ratio:.2f} |")
    told = in_words(facts)
    RESULTS.write_text(PAGE.format(told=told, lines="\n".join(lines)), encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
