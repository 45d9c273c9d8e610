"""Run the workloads: what people use recurrent layers for, beside what they run today.

python -m bench.workloads                     # all; writes bench/results/workloads.*
python -m bench.workloads streaming ppo       # some; the others' results stay
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from ..progress import Progress
from ..race import environment
from . import page, picture, run
from .workload import NAMES, load

RESULTS = Path(__file__).parents[1] / "results"


def main(argv: list[str] | None = None) -> int:
    """Return 1 if a provider computed something else or failed, otherwise 0."""
    options = _parse(argv)
    stem = Path(options.out) / ("workloads" if options.device == "cpu" else _stem(options.device))
    results = page.read(stem.with_suffix(".json"))
    threads = options.threads if options.device == "cpu" else options.threads[:1]
    total = sum(
        len(case.modes) * len(threads) for name in options.names for case in load(name).cases
    )
    bad = []
    with Progress("workloads", total) as progress:
        for name in options.names:
            begin, facts = time.monotonic(), environment.facts(torch.device(options.device))
            facts.pop("threads")  # a column of the table
            facts["peers"] = load(name).peers()

            def said(rows, name=name):
                first = rows[0]
                progress.step(f"{name}, {first.case}, {first.mode}, threads: {first.threads}")

            rows = run.run(name, options.device, threads, options.seconds, options.quick, said)
            bad += [r for r in rows if r.status in ("wrong", "failed")]
            results[name] = page.Result(facts, round(time.monotonic() - begin), rows)
            if not options.quick:
                picture.draw(stem.with_suffix(".png"), results)
            page.write(stem, results)
            print("\n".join(page.summary(name, rows)), flush=True)
    for row in bad:
        print(f"{row.status.upper()}: {row.case}, {row.mode}, {row.provider}: {row.reason}")
    return 1 if bad else 0


def _stem(device):
    name = environment.device_name(torch.device(device)).lower().replace(" ", "-")
    return f"workloads-{name}"


def _parse(argv):
    parser = argparse.ArgumentParser(
        prog="python -m bench.workloads",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help=f"default: {', '.join(NAMES)}")
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="of PyTorch on a CPU; default: 1 2"
    )
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="of the rounds of a case in a mode; default: 3"
    )
    parser.add_argument("--out", help="folder; default: bench/results, runs/bench with --quick")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two rounds: no figures")
    options = parser.parse_args(argv)
    for name in options.names:
        if name not in NAMES:
            parser.error(f"names: expected some of {', '.join(NAMES)}, got {name!r}")
    options.names = list(dict.fromkeys(options.names)) or list(NAMES)
    if min(options.threads) < 1:
        parser.error(f"--threads: expected numbers of at least 1, got {options.threads}")
    options.out = options.out or ("runs/bench" if options.quick else str(RESULTS))
    return options


if __name__ == "__main__":
    sys.exit(main())
