"""One step and packed rows on the CPU: "auto" beside torch.nn, or the reference for other cells.

    python -m bench.race.calls step      # writes bench/results/calls/step.md, .csv and .json
    python -m bench.race.calls packed    # writes bench/results/calls/packed.md, .csv and .json

Outputs and every gradient are first compared with the reference in float64, see ``gate``. A module
that disagrees has no figure, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn.self_check import measure

from ..progress import Progress
from . import environment, gate
from .timing import race, ratios

RESULTS = Path(__file__).parents[1] / "results" / "calls"
CELLS = ("rnn_tanh", "lstm", "gru", "peephole_lstm", "cifg_lstm", "gru_reset_before")
OF_TORCH = {"rnn_tanh": "RNN", "lstm": "LSTM", "gru": "GRU"}
STEPS = [(1, B, H, 1) for B, H in itertools.product((1, 16), (64, 128, 256, 512))]
# Steps, rows, units, directions; lengths fall evenly from T to T / 4.
PACKED = [(50, 8, 128, 1), (100, 32, 256, 1), (50, 8, 128, 2), (100, 32, 256, 2)]
COLUMNS = ("cell", "T", "B", "H", "directions", "mode", "provider", "ms", "min_ms", "over")
TITLES = {"step": "One step", "packed": "Packed rows"}


def _modules(kind, cell, H, both):
    """The baseline's name, and all modules by name, with the weights of the first."""
    made = fused_rnn.RecurrentCell if kind == "step" else fused_rnn.Recurrent
    options = {} if kind == "step" else {"bidirectional": both}
    base = "torch" if cell in OF_TORCH else "reference"
    modules = {}
    if base == "torch":
        name = OF_TORCH[cell] + ("Cell" if kind == "step" else "")
        modules["torch"] = getattr(nn, name)(H, H, **options)
    for backend in ("reference", "auto"):
        modules[backend] = made(cell, H, H, backend=backend, **options)
        modules[backend].load_state_dict(next(iter(modules.values())).state_dict())
    return base, modules


def _call(kind, module, size, dtype, training):
    """A call that returns outputs, and with ``training`` every gradient."""
    T, B, H, D = size
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_(training)

    count = 2 if "lstm" in getattr(getattr(module, "cell", None), "name", "").lower() else 1
    count = 2 if isinstance(module, (nn.LSTM, nn.LSTMCell)) else count
    given = normal(B, H) if kind == "step" else normal(T, B, H)
    shape = (B, H) if kind == "step" else (D, B, H)
    states = [normal(*shape) for _ in range(count)]
    hx = states[0] if count == 1 else tuple(states)
    lengths = torch.linspace(T, max(1, T // 4), B).long()
    wanted = [given, *states, *module.parameters()]

    def call():
        with torch.set_grad_enabled(training):
            if kind == "step":
                result = module(given, hx)
            else:
                output, result = module(pack_padded_sequence(given, lengths), hx)
            outputs = [result] if isinstance(result, Tensor) else list(result)
            if kind != "step":
                outputs.insert(0, output.data)
            if not training:
                return outputs
            loss = sum(o.square().sum() for o in outputs)
            gradients = torch.autograd.grad(loss, wanted, materialize_grads=True)
            return [*outputs, *gradients]

    return call


def _wrong(kind, modules, size):
    """The names of the modules that disagree with the reference in float64."""
    call = _call(kind, modules["reference"].double(), size, torch.float64, True)
    exact = call()
    modules["reference"].float()

    def errors(module):
        found = _call(kind, module, size, torch.float32, True)()
        return dict(enumerate(map(measure.error, found, exact)))

    bounds = gate.allowed(errors(modules["reference"]), torch.float32)
    return [
        name
        for name, module in modules.items()
        if not all(error <= bounds[i] for i, error in errors(module).items())
    ]


def main(argv: list[str] | None = None) -> int:
    """Return 1 if a provider computed something else, otherwise 0."""
    parser = argparse.ArgumentParser(prog="python -m bench.race.calls", description=__doc__)
    parser.add_argument("kind", choices=TITLES)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own")
    parser.add_argument("--cells", default=",".join(CELLS))
    parser.add_argument("--out", default=str(RESULTS))
    parser.add_argument("--quick", action="store_true", help="the smallest size, three rounds")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    sizes = STEPS if options.kind == "step" else PACKED
    rounds = 3 if options.quick else options.rounds
    sizes = sizes[:1] if options.quick else sizes
    problems = list(itertools.product(options.cells.split(","), sizes))
    facts, progress = environment.facts(torch.device("cpu")), Progress("calls", len(problems))
    rows, bad = [], []
    for cell, size in problems:
        base, modules = _modules(options.kind, cell, size[2], size[3] == 2)
        wrong = _wrong(options.kind, modules, size)
        bad += [f"{name} {cell} {size}" for name in wrong]
        for training in (False, True):
            mode = "training" if training else "inference"
            calls = {
                name: _call(options.kind, module, size, torch.float32, training)
                for name, module in modules.items()
                if name not in wrong
            }
            samples = race(calls, rounds, torch.device("cpu")) if base in calls else {}
            for name, own in samples.items():
                over = statistics.median(ratios(samples, base, name))
                rows.append((cell, *size, mode, name, statistics.median(own), min(own), over))
                if name == "auto":
                    print(f"{cell} {size} {mode}: {over:.2f} times as fast as {base}", flush=True)
        progress.step(f"{cell} {size}")
    _write(Path(options.out) / options.kind, options.kind, facts, rows)
    print(*(f"WRONG: {name}" for name in bad), sep="\n")
    return 1 if bad else 0


def _write(stem, kind, facts, rows):
    stem.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{stem}.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    content = {"environment": facts, "columns": COLUMNS, "rows": rows}
    Path(f"{stem}.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = [
        f"# {TITLES[kind]} on the CPU",
        "",
        f"Written by `python -m bench.race.calls {kind}`: microseconds per call, the median, and",
        "how many times as fast as torch.nn's module, or as the reference for a cell that torch.nn",
        "lacks: the median of the rounds' ratios, in which all take turns. I = H, float32. More is",
        "faster.",
        "",
        environment.in_words(facts),
        "",
        "| cell | T×B×H, directions | mode | module | µs | times as fast |",
        "| --- | --- | --- | --- | --: | --: |",
    ]
    for cell, T, B, H, D, mode, name, ms, _, over in rows:
        figures = f"{1000 * ms:.0f} | {over:.2f}"
        lines.append(f"| {cell} | {T}×{B}×{H}, {D} | {mode} | {name} | {figures} |")
    Path(f"{stem}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
