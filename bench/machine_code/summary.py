"""The summary of all compiled kernels, bench/results/compiled.md: a section per Triton version."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from .grid import BATCHES, CAPABILITIES, CELLS, HIDDEN

FILE = "compiled.md"
ABOUT = f"""
    Written by `make check-compiled`: the launches that `plan()` returns for B in {BATCHES} and
    H in {HIDDEN}, for {", ".join(CELLS)} and {len(CAPABILITIES)} chips, compiled without a GPU:
    a forward for training, which saves what the backward needs, the backward, and a forward for
    inference, which saves nothing. Each kernel is checked for: no trap, no spill, shared memory
    within the chip's, tensor-core instructions as many as the PTX has, no load of exchanged values
    before the loop over time, and a barrier of the CTA between the stores of such values and the
    release. "Seconds" are the most that a kernel took to be compiled and examined, where the page
    was written, less where Triton's cache had it. The command also writes a table with a row for
    each kernel, compiled-VERSION.csv, which git ignores.
"""
INTRODUCTION = f"# Every plan, compiled\n\n{textwrap.fill(' '.join(ABOUT.split()), 100)}\n"


def section(version: str, kernels: Iterable[Mapping], total: int) -> str:
    """Summarize the kernels compiled by one Triton.

    Args:
        version: of Triton.
        kernels: rows with the names of ``COLUMNS`` in ``__main__.py``.
        total: number of kernels in the grid.
    """
    kernels = list(kernels)
    bad = [k for k in kernels if k["faults"]]
    plain = sum(int(k["spills"]) == 0 for k in kernels)
    lines = [
        f"## Triton {version}",
        "",
        f"{len(kernels)} of {total} kernels were compiled, explicit layouts first, each in",
        f"random order: {plain} have no spill, {len(bad)} have faults.",
        "",
        "| dtype | strategy | layouts | kernels | spills: kernels | registers | shared memory | "
        "seconds | faults |",
        "| --- | --- | --- | --: | --- | --: | --: | --: | --: |",
    ]
    groups = defaultdict(list)
    for kernel in kernels:
        groups[kernel["dtype"], kernel["strategy"], kernel["layouts"]].append(kernel)
    for (dtype, strategy, layouts), group in sorted(groups.items()):
        spills = sorted(Counter(int(k["spills"]) for k in group).items())
        row = (
            dtype,
            strategy,
            layouts,
            len(group),
            ", ".join(f"{count}: {times}" for count, times in spills),
            max(int(k["registers"]) for k in group),
            f"{max(int(k['shared']) for k in group):,}",
            f"{max(float(k['seconds']) for k in group):.0f}",
            sum(bool(k["faults"]) for k in group),
        )
        lines.append(f"| {' | '.join(map(str, row))} |")
    return "\n".join([*lines, *faults(bad)]) + "\n"


def faults(bad: Iterable[Mapping]) -> list[str]:
    """The lines of a section that name the kernels with faults."""
    found = []
    for k in bad:
        where = f"{k['cell']}, {k['dtype']}, H {k['H']}, sm_{k['chip']}, {k['strategy']}"
        found.append(f"- {where}, {k['kernel']}: {k['faults']}")
    return ["", *found] if found else []


def replaced(text: str, new: str, introduction: str = INTRODUCTION) -> str:
    """The page ``text`` with ``new`` replacing the earlier section of the same Triton."""
    sections = {part.partition("\n")[0]: part for part in text.split("\n## ")[1:]}
    heading, _, _ = new.removeprefix("## ").partition("\n")
    sections[heading] = new.removeprefix("## ")
    parts = [f"## {sections[heading].rstrip()}\n" for heading in sorted(sections)]
    return "\n".join([introduction, *parts])
