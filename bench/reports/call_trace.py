"""Trace one call of a layer: which functions of the package it enters, in which files.

    python -m bench.reports.call_trace             # an LSTM's training forward, cpp and auto
    python -m bench.reports.call_trace --functions # with the functions in order

Moves are the steps from a function in one file to one in another. Three calls come
before the one that is traced, so that nothing is built in it.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import timeit
from pathlib import Path

import torch

import fused_rnn

PACKAGE = Path(fused_rnn.__file__).parents[1]


def trace(call) -> list[tuple[str, str]]:
    """The functions of the package that a call enters, as (file, name), in order."""
    entered = []

    def look(frame, event, _):
        file = Path(frame.f_code.co_filename)
        if event == "call" and file.is_relative_to(PACKAGE) and ".venv" not in file.parts:
            entered.append((str(file.relative_to(PACKAGE)), frame.f_code.co_name))

    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return [entry for entry in entered if entry[0] != "bench/reports/call_trace.py"]


def microseconds(call, rounds: int = 15, number: int = 300) -> float:
    """The time of a call: the least of some rounds."""
    return min(timeit.repeat(call, number=number, repeat=rounds)) / number * 1e6


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.reports.call_trace", description=__doc__)
    parser.add_argument("--functions", action="store_true", help="print the functions, in order")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| LSTM, T=4 B=1 H=16, training forward | functions | files | moves | us a call |")
    print("| --- | --: | --: | --: | --: |")
    for backend in ("cpp", "auto"):
        module, x = fused_rnn.LSTM(16, 16, backend=backend), torch.randn(4, 1, 16)
        for _ in range(3):
            module(x)
        found = trace(lambda module=module, x=x: module(x))
        files = [file for file, _ in found]
        moves = sum(a != b for a, b in itertools.pairwise(files))
        time = microseconds(lambda module=module, x=x: module(x))
        print(f"| {backend} | {len(found)} | {len(set(files))} | {moves} | {time:.1f} |")
        if options.functions:
            print(*(f"    {file}: {name}" for file, name in found), sep="\n")


if __name__ == "__main__":
    main()
