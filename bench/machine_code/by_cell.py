"""The summary of the kernels of single cells, bench/results/compiled_cells.md."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Mapping

from .grid import CAPABILITIES
from .summary import faults

FILE = "compiled_cells.md"
ABOUT = """
    Written by `python -m bench.machine_code --cells ...`: the launches that `plan()` returns for
    these cells, compiled without a GPU and checked as in [compiled.md](compiled.md): the forward
    for training and the backward, and for some of them the forward for inference. A row is a cell,
    a dtype and a strategy; "explicit" are the kernels with explicit layouts. Below a compute
    capability stand the hidden units for which kernels were compiled; "-" says that none were, or
    that the plan has another strategy there. "Spills" are the most instructions of a kernel that
    access local memory, "seconds" the most that a kernel took to be compiled and examined, less
    where Triton's cache had it from an earlier run.
"""
INTRODUCTION = f"# Plans of every cell, compiled\n\n{textwrap.fill(' '.join(ABOUT.split()), 100)}\n"


def section(version: str, kernels: Iterable[Mapping], total: int) -> str:
    """Summarize the kernels compiled by one Triton; arguments as those of ``summary.section``."""
    kernels = list(kernels)
    bad = [k for k in kernels if k["faults"]]
    lines = [
        f"## Triton {version}",
        "",
        f"{len(kernels)} of {total} kernels were compiled, of {len({k['cell'] for k in kernels})} "
        f"cells: {sum(int(k['spills']) == 0 for k in kernels)} have no spill, {len(bad)} have "
        "faults.",
        "",
        "| cell | dtype | strategy | "
        + " | ".join(f"{c // 10}.{c % 10}" for c in CAPABILITIES)
        + " | kernels | registers | spills | seconds |",
        "| --- | --- | --- |" + " --- |" * len(CAPABILITIES) + " --: | --: | --: | --: |",
    ]
    groups = defaultdict(list)
    for k in kernels:
        explicit = ", explicit" if k["layouts"] == "explicit" else ""
        groups[k["cell"], k["dtype"], k["strategy"] + explicit].append(k)
    lines += [_row(key, groups[key]) for key in sorted(groups)]
    return "\n".join([*lines, *faults(bad)]) + "\n"


def _row(key, kernels) -> str:
    sizes = defaultdict(set)
    for k in kernels:
        sizes[k["chip"]].add(int(k["H"]))
    compiled = (" ".join(map(str, sorted(sizes[chip]))) or "-" for chip in CAPABILITIES)
    registers, spills, seconds = (
        max(float(k[name]) for k in kernels) for name in ("registers", "spills", "seconds")
    )
    figures = f"{len(kernels)} | {registers:.0f} | {spills:.0f} | {seconds:.0f}"
    return f"| {' | '.join((*key, *compiled))} | {figures} |"
