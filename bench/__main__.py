"""Race every way to run a recurrent layer, after checking its results."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from fused_rnn import cells

from .progress import Progress
from .race import environment, plot, providers, report, sizes
from .race.gate import Gate
from .race.problem import MODES, Problem
from .race.rows import Row, slow
from .race.timing import race

CELLS = "rnn_tanh,lstm,peephole_lstm,cifg_lstm,gru,gru_reset_before"
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}


def main(argv: list[str] | None = None) -> int:
    """Return 1 if a provider computed something else or failed, otherwise 0."""
    options = _parse(argv)
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    # The same arithmetic for all: PyTorch's own defaults differ between cuDNN and matmul.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = options.tf32
    facts = environment.facts(device)
    print(", ".join(f"{k} {v}" for k, v in facts.items()))
    print(report.LEGEND)
    if facts["load"] > facts["cores"] / 2:
        print("Others are using this machine: expect wide spreads, with several threads worst.")
    begin = time.monotonic()
    rows = []
    progress = Progress("race", len(options.cells) * len(options.sizes))
    for cell in options.cells:
        own = []
        for size in options.sizes:
            found = _run(Problem.make(cell, size, DTYPES[options.dtype], device), options)
            progress.step(f"{cell.name} {size}")
            if not own:
                columns = report.widths(found)
                print(report.heading(cell.name, options.dtype, columns))
            own += found
            for mode in options.modes:
                print(report.line([r for r in found if r.mode == mode], columns), flush=True)
        print("\n".join(report.notes(own)), flush=True)
        rows += own
    _save(options, device, facts, rows, time.monotonic() - begin)
    for row in slow(rows):
        print(f"auto is slower than eager: {row.cell} {row.size} {row.mode} {row.speedup:.2f}×")
    bad = [r for r in rows if r.status in ("wrong", "failed")]
    return 1 if bad else 0


def _run(problem, options) -> list[Row]:
    """The rows of one problem: check all providers, then race those that pass."""
    rows, modules, gates = {}, {}, {}
    for name in options.providers:
        status, reason, verdict = "timed", "", None
        provider = providers.REGISTRY[name]
        try:
            if provider.interpreted(problem.device):
                if not options.interpreter_smoke:
                    raise providers.Skip("it would run in the interpreter (--interpreter-smoke)")
                status, reason = "checked", "an interpreter's speed is no figure"
            own = provider.problem(problem)
            module = provider.module(own)
            if own.cell not in gates:
                gates[own.cell] = Gate(own, options.modes)
            verdict = gates[own.cell].check(name, module)
            if not verdict.ok:
                status, reason = "wrong", str(verdict)
        except providers.Skip as skip:
            status, reason = "skipped", str(skip)
        except Exception as error:  # of any kind: this provider has no figure, the others do
            status, reason = "failed", f"{type(error).__name__}: {error}".splitlines()[0]
        if status == "timed":
            status, reason = "checked", "the eager loop has no figure to compare with"
            modules[name] = module, own
        for mode in options.modes:
            row = Row.start(problem, mode, name, status, reason)
            rows[mode, name] = row.judged(verdict) if verdict else row
    if providers.BASELINE not in modules:  # figures are ratios to it
        modules.clear()
    for mode in options.modes:
        calls = {name: MODES[mode](*pair) for name, pair in modules.items()}
        samples = race(calls, options.rounds, problem.device) if calls else {}
        for name in samples:
            rows[mode, name] = rows[mode, name].timed(samples)
    return [rows[mode, name] for mode in options.modes for name in options.providers]


def _save(options, device, facts, rows, seconds):
    settings = {
        "device": device.type,
        "dtype": options.dtype,
        "rounds": options.rounds,
        "cells": [cell.name for cell in options.cells],
        "sizes": [str(size) for size in options.sizes],
        "seconds": round(seconds),
    }
    name = (
        "cpu" if device.type == "cpu" else environment.device_name(device).lower().replace(" ", "-")
    )
    stem = Path(options.out) / (name if options.dtype == "fp32" else f"{name}-{options.dtype}")
    report.write(stem, facts, settings, rows)
    plot.draw(Path(f"{stem}.png"), facts, settings, rows)
    report.write_page(stem.parent)
    print(f"\n{seconds:.0f} s; {stem}.csv, .json, .png and README.md beside them")


def _parse(argv):
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--cells", default=CELLS, help=f"default: {CELLS}")
    parser.add_argument("--sizes", help="tiny, cpu, cuda, TxBxH or TxBxIxH; default: the device's")
    parser.add_argument("--dtype", default="fp32", choices=DTYPES)
    parser.add_argument(
        "--providers", help=f"default: all of {', '.join(providers.REGISTRY)}; eager is always in"
    )
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU; default: its own")
    parser.add_argument("--tf32", action="store_true", help="fp32 products on a GPU in TF32")
    parser.add_argument("--out", help="folder; default: bench/results, runs/bench with --quick")
    parser.add_argument("--quick", action="store_true", help="the smallest size, five rounds")
    parser.add_argument(
        "--interpreter-smoke",
        action="store_true",
        help="with TRITON_INTERPRET=1 on the CPU: check the kernels there, without timing them",
    )
    options = parser.parse_args(argv)
    try:
        options.cells = [cells.get(name) for name in options.cells.split(",")]
        options.sizes = sizes.parse(options.sizes or torch.device(options.device).type)
    except ValueError as error:
        parser.error(str(error))
    options.out = options.out or ("runs/bench" if options.quick else "bench/results")
    if options.quick:
        options.sizes, options.rounds = options.sizes[:1], min(options.rounds, 5)
    options.modes = _among(parser, "--modes", options.modes, MODES)
    names = options.providers or ",".join(providers.REGISTRY)
    chosen = _among(parser, "--providers", names, providers.REGISTRY)
    baseline = providers.BASELINE
    options.providers = [baseline, *(name for name in chosen if name != baseline)]
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {options.rounds}")
    return options


def _among(parser, option, text, known):
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in known:
            parser.error(f"{option}: expected some of {', '.join(known)}, got {name!r}")
    return names


if __name__ == "__main__":
    sys.exit(main())
