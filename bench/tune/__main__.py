"""Search the repository's table of launches, or time its launches on this machine.

    python -m bench.tune                      # with a GPU: time the table's launches, and cuDNN
    python -m bench.tune --cells lstm --sizes 512x16x300 --dtypes bfloat16 --directions 2
    python -m bench.tune --offline            # without a GPU: search the table by compiling
    python -m bench.tune --offline --capability 80 90 --minutes 30
    python -m bench.tune --offline --check    # only narrow rows of the table that have faults

Times are kept in the cache of this machine ($FUSED_RNN_CACHE or ~/.cache/fused_rnn), where ``plan``
and "auto" look first, unless FUSED_RNN_TUNED=0. A run can be stopped and resumed.

The search keeps its results in bench/results/compiled.jsonl, so it can be stopped and resumed too.
It takes hours, and writes fused_rnn/plan/chips.json only when nothing is left.
"""

# Not in the package, since timing needs the gate and the clock of the benchmarks, which are not
# installed. The package reads the times, see fused_rnn/plan/tuned.py.

from __future__ import annotations

import argparse
import itertools
import os
import time
from pathlib import Path

import torch

from fused_rnn import cells
from fused_rnn.plan import chips

from ..machine_code.grid import CAPABILITIES, CELLS, CORE_DTYPES, DTYPES, HIDDEN, torch_dtype
from ..progress import Progress
from ..race import sizes
from ..race.problem import Problem
from . import gpu
from .search import SPACE, Grid, Probe, search

# Including the largest layers, of which a program of "stream" owns the most units.
WHOLE = Grid(CELLS, CORE_DTYPES, (*HIDDEN, 4096))


def main(arguments=None) -> int:
    """Return 1 if something is left to do or has no right candidate, otherwise 0."""
    options = _parse(arguments)
    return _search(options) if options.offline else _time(options)


def _search(options) -> int:
    os.environ["TRITON_INTERPRET"] = "0"  # the kernels are to be compiled
    from ..machine_code.examined import Examined

    examined = Examined(minutes=options.minutes)

    def examine(probe: Probe, names: list[str]) -> dict[str, list[str]]:
        """The faults by chip, if all kernels of a probe were examined."""
        found = {name: [] for name in names}
        for chip, facts in examined.look(*probe, chips=map(int, names)):
            if facts is None:
                found.pop(str(chip), None)
            elif str(chip) in found:
                faults = facts.faults(probe.dtype, chip)
                found[str(chip)] += [f"{facts.kernel}: {fault}" for fault in faults]
        return found

    names = [str(capability) for capability in options.capability]
    chosen = (options.cells or CELLS, options.dtypes or CORE_DTYPES, options.hidden)
    grid = Grid(*map(tuple, chosen))
    found = search(chips.chips(), names, examine, grid, None if options.check else SPACE)
    for name in names:
        for probe, faults in found.faults[name].items():
            print(f"{name}: {probe}: {'; '.join(faults)}")
    for name in names:
        left, rows = len(found.unseen[name]), len(found.table[name].rows)
        print(f"{name}: {rows} rows; of what they allow {left} were not examined")
    left = any(found.unseen.values())
    if options.out is None and (left or grid != WHOLE):
        print("Wrote nothing, as the search is not complete; --out FILE writes what there is.")
    else:
        chips.write(options.out or chips.FILE, found.table)
        print(f"Wrote {options.out or chips.FILE}")
    return int(left)


def _time(options) -> int:
    if not torch.cuda.is_available():
        print("There is no CUDA device to time kernels on; --offline searches with the compiler.")
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    end = time.monotonic() + 60 * (options.minutes or 1e9)
    lacking = 0
    names, dtypes = options.cells or CELLS, options.dtypes or CORE_DTYPES[:1]
    total = len(names) * len(dtypes) * len(options.sizes) * len(options.directions)
    progress = Progress("tune", total)
    for cell in map(cells.get, names):
        for name in dtypes:
            # As in the benchmarks: the same arithmetic for all providers.
            torch.backends.cudnn.allow_tf32 = name == "tf32"
            torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
            for size, directions in itertools.product(options.sizes, options.directions):
                lacking += not _time_one(cell, name, size, directions, device, end, options)
                progress.step(f"{cell.name} {name} {size}")
    return int(lacking > 0)


def _time_one(cell, name, size, directions, device, end, options) -> bool:
    """Time one layer, and return whether its fastest launch is known now."""
    what, dtype = f"{cell.name} {name} {size}", torch_dtype(name)
    if directions == 2:
        what += " bidirectional"
    if not options.again and gpu.known(cell, size, dtype, device, directions):
        print(f"{what}: known")
        return True
    if time.monotonic() > end:
        print(f"{what}: left")
        return False
    problem = Problem.make(cell, size, dtype, device, directions=directions)
    timings = gpu.measure(problem, rounds=options.rounds)
    gpu.save(problem, timings)
    for mode, timing in timings.items():
        print(f"{what} {mode}: {gpu.summary(timing)}", flush=True)
    for note in timings["training"].notes:
        print(f"    {note}")
    return any(timing.launches or timing.aten for timing in timings.values())


def _parse(arguments):
    parser = argparse.ArgumentParser(
        prog="python -m bench.tune",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, help="begin nothing new after so long")
    names = [name for group in DTYPES.values() for name in group]
    core = f"default: {' '.join(CELLS)}"
    parser.add_argument("--cells", nargs="+", choices=cells.names(), metavar="CELL", help=core)
    some = f"some of {' '.join(names)}"
    parser.add_argument("--dtypes", nargs="+", choices=names, metavar="DTYPE", help=some)
    here = parser.add_argument_group("with a GPU")
    here.add_argument("--sizes", default="cuda", help="cuda, TxBxH or TxBxIxH; default: cuda")
    here.add_argument(
        "--directions", type=int, nargs="+", default=(1, 2), choices=(1, 2), metavar="D",
        help="1, 2 for bidirectional layers, or both; default: both",
    )  # fmt: skip
    here.add_argument("--rounds", type=int, default=15)
    here.add_argument("--again", action="store_true", help="time what is known, too")
    offline = parser.add_argument_group("without")
    offline.add_argument("--offline", action="store_true", help="search with the compiler")
    offline.add_argument(
        "--capability", type=int, nargs="+", default=CAPABILITIES, choices=CAPABILITIES
    )
    offline.add_argument(
        "--check", action="store_true", help="no other rows than the table has: narrow these only"
    )
    offline.add_argument("--hidden", type=int, nargs="+", default=WHOLE.hidden)
    offline.add_argument("--out", type=Path, help="write the table here, complete or not")
    options = parser.parse_args(arguments)
    try:
        options.sizes = sizes.parse(options.sizes)
    except ValueError as error:
        parser.error(str(error))
    return options


if __name__ == "__main__":
    raise SystemExit(main())
