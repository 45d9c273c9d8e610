"""Which built-in cell runs where in the tests: their parametrisation, and docs/engines.md.

python -m tests.support.evidence > docs/engines.md
"""

import torch

from fused_rnn import cells, plan
from tests.support.cells import CORE
from tests.support.papers import PAPERS

# Of the cells of the literature, those that `make test` executes. Each has a wiring that no core
# cell has: sources of several vectors, computed first sources, gates before the stages, no product,
# heads, norms, fixed matrices. The sweep takes every cell and strategy.
SAMPLE = {
    ("peephole_lstm_full", "grid"),
    ("fgr_lstm", "stream"),
    ("mut3", "resident"),
    ("mut3", "grid"),
    ("multiplicative_lstm", "step"),
    ("scrn", "grid"),
    ("min_gru", "scan"),
    ("min_lstm", "parallel_scan"),
    ("sru", "scan"),
    ("block_gru", "resident"),
    ("layer_norm_gru", "step"),
    ("layer_norm_gru", "grid"),
    ("layer_norm_lstm", "resident"),
    ("on_lstm", "stream"),
}
LITERATURE = [name for name in cells.names() if name not in CORE]
COLUMNS = (*plan.STRATEGIES, "scan", "parallel_scan")

PAGE = """\
# Which cell is tested on which engine

Made by `python -m tests.support.evidence > docs/engines.md` from the table that the tests take
their cases from; a test compares. [Verification](verification.md) says how each is checked.

`"reference"`, `"sequence"` and `"cpp"` compute every cell in `make test`: *torch.nn* says that the
cell is compared with PyTorch's module or with an eager loop, *paper* with a loop written from its
paper. The other columns are the strategies of the Triton kernels, which no GPU has run yet:

| mark | the kernels, forward and backward, were | by |
| --- | --- | --- |
| I | run in Triton's interpreter | `make test` |
| i | run in Triton's interpreter | `make test-all` |
| X | compiled for 8.0 or 9.0 and executed in the simulator | `make test` |
| x | compiled for 8.0 or 9.0 and executed in the simulator | `make test-sweep` |

A strategy without a mark is none of the cell's.

"""


def interpreted() -> list[tuple[str, str, bool]]:
    """Name, strategy and whether `make test` runs it, for the cells of the literature.

    Each cell has one of its strategies in `make test`, in turn.
    """
    return [
        (name, strategy, i % len(known) == j)
        for i, name in enumerate(LITERATURE)
        for known in (plan.strategies(cells.get(name)),)
        for j, strategy in enumerate(known)
    ]


def executed() -> list[tuple[str, str, int, bool]]:
    """Name, strategy, capability and whether `make test` runs it, for those that fit there."""
    found = []
    for i, name in enumerate(cells.names()):
        capability = (80, 90)[i % 2]
        launches = plan.launches(cells.get(name), 2, 17, torch.bfloat16, divmod(capability, 10))
        for strategy, (fit, _) in launches.items():
            if fit and name not in CORE:
                found.append((name, strategy, capability, (name, strategy) in SAMPLE))
    return found


def page() -> str:
    """docs/engines.md."""
    marks = {(name, s): ["I", "X"] for name in CORE for s in plan.STRATEGIES}
    for name, strategy, quick in interpreted():
        marks[name, strategy] = ["I" if quick else "i"]
    for name, strategy, _, quick in executed():
        marks[name, strategy].append("X" if quick else "x")
    heads = ["cell", "`reference`, `sequence`, `cpp`", *(f"`{s}`" for s in COLUMNS)]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for name in cells.names():
        oracle = "torch.nn" if name in CORE else "paper" if name in PAPERS else ""
        row = [f"`{name}`", oracle, *(" ".join(marks.get((name, s), ())) for s in COLUMNS)]
        lines.append(f"| {' | '.join(row)} |")
    return PAGE + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
