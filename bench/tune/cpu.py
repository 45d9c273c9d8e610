"""Measure where torch.nn's kernels beat the C++ loop on this CPU, for fused_rnn/plan/cpu.json.

Run it on an idle machine, since "auto" relies on its results.
"""

from __future__ import annotations

import argparse
import itertools
import statistics

import torch

from fused_rnn import cells
from fused_rnn.engines import contract
from fused_rnn.plan import cpu

from ..progress import Progress
from ..race import environment
from ..race.problem import MODES, Problem
from ..race.sizes import Size
from ..race.timing import race, ratios

CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru")
DTYPES = (torch.float32, torch.float64)
STEPS, BATCHES, HIDDEN = (10, 50), (1, 8, 32, 128), (32, 128, 256, 512)
# With few units, and with many steps.
MORE = [
    *((T, B, H) for T in (10, 50, 1000) for B in (1, 8) for H in (4, 8, 16)),
    *((1000, B, H) for B in (1, 8) for H in (32, 128)),
]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.tune.cpu", description=__doc__)
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    facts = environment.facts(device)
    rows = []
    sizes = [*((T, B, H) for T in STEPS for B in BATCHES for H in HIDDEN), *MORE]
    progress = Progress("tune", len(CELLS) * len(DTYPES) * len(sizes))
    for name, dtype in itertools.product(CELLS, DTYPES):
        reason = contract.why_not("cpp", cells.get(name), device, dtype)
        if reason:
            parser.error(f'backend "cpp" cannot run cell {name!r}: {reason}')
        for T, B, H in sizes:
            rows += measure(name, Size(T, B, H, H), dtype, options.rounds)
            progress.step(f"{name} {T}x{B}x{H}")
        print(*rows[-2:], sep="\n", flush=True)
    cpu.write(facts, rows)
    print(f"{len(rows)} rows; wrote {cpu.FILE}")


def measure(name: str, size: Size, dtype: torch.dtype, rounds: int) -> list[cpu.Row]:
    """The rows of one problem: the median of the rounds' ratios, in each mode."""
    problem = Problem.make(cells.get(name), size, dtype, torch.device("cpu"))
    modules = {backend: problem.load(problem.layer(backend)) for backend in ("aten", "cpp")}
    rows = []
    for mode, make in MODES.items():
        calls = {backend: make(module, problem) for backend, module in modules.items()}
        samples = race(calls, rounds, problem.device)
        ratio = statistics.median(ratios(samples, "aten", "cpp"))
        kind = (name, str(dtype).removeprefix("torch."), mode)
        rows.append(cpu.Row(*kind, size.T, size.B, size.H, round(ratio, 3)))
    return rows


if __name__ == "__main__":
    main()
