"""Trace one call of a layer: which functions of the package it enters, in which files.

    python -m bench.reports.call_trace             # an LSTM's training forward, cpp and auto
    python -m bench.reports.call_trace --launch    # triton, up to the launch, which is left out
    python -m bench.reports.call_trace --functions # with the functions in order, by file

Moves are the steps from a function in one file to one in another. Three calls come before the one
that is traced, so that nothing is built in it. Functions without a name, such as comprehensions,
are not counted, because only some versions of Python call them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import timeit
from operator import itemgetter
from pathlib import Path

import torch

import fused_rnn

PACKAGE = Path(fused_rnn.__file__).parents[1]


def trace(call) -> list[tuple[str, str]]:
    """The functions of the package that a call enters, as (file, name), in order."""
    entered = []

    def look(frame, event, _):
        file, name = Path(frame.f_code.co_filename), frame.f_code.co_name
        ours = file.is_relative_to(PACKAGE) and ".venv" not in file.parts and name[0] != "<"
        if event == "call" and ours:
            entered.append((str(file.relative_to(PACKAGE)), name))

    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return [entry for entry in entered if entry[0] != "bench/reports/call_trace.py"]


def microseconds(call, rounds: int = 15, number: int = 300) -> float:
    """The time of a call: the least of some rounds."""
    return min(timeit.repeat(call, number=number, repeat=rounds)) / number * 1e6


def leave_out_the_launch() -> None:
    """Let the Triton kernels' path run on the CPU, where nothing is launched."""
    os.environ["TRITON_INTERPRET"] = "1"
    from fused_rnn.kernels.gpu import launch

    launch.start = lambda *arguments: None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.reports.call_trace", description=__doc__)
    parser.add_argument("--functions", action="store_true", help="print the functions, in order")
    parser.add_argument("--launch", action="store_true", help="the path of the Triton kernels")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    if options.launch:
        leave_out_the_launch()
    print("| LSTM, T=4 B=1 H=16, training forward | functions | files | moves | us a call |")
    print("| --- | --: | --: | --: | --: |")
    for backend in ("triton",) if options.launch else ("cpp", "auto"):
        module, x = fused_rnn.LSTM(16, 16, backend=backend), torch.randn(4, 1, 16)
        for _ in range(3):
            module(x)
        found = trace(lambda module=module, x=x: module(x))
        visits = [(file, list(group)) for file, group in itertools.groupby(found, itemgetter(0))]
        files = {file for file, _ in visits}
        time = microseconds(lambda module=module, x=x: module(x))
        print(f"| {backend} | {len(found)} | {len(files)} | {len(visits) - 1} | {time:.1f} |")
        for file, group in visits if options.functions else ():
            names = itertools.groupby(name for _, name in group)
            print(f"    {file}: {', '.join(name for name, _ in names)}")


if __name__ == "__main__":
    main()
