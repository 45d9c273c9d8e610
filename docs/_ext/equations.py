"""Write docs/equations.md: ``python docs/_ext/equations.py > docs/equations.md``.

The equations come from the cells' graphs, the sources from the tables of the README and of
docs/literature.md.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

from latex import equations

from fused_rnn import cells

ROOT = Path(__file__).parents[2]

INTRODUCTION = r"""# Equations

Every built-in cell, as the kernels compute it: these equations are printed from the same graphs as
the kernels (`python docs/_ext/equations.py > docs/equations.md`; a test compares them). On the
documentation site each has a drawing of its data flow too, made from the same graph;
`python docs/_ext/drawings.py build/drawings` writes them. [Literature](literature.md) has one line
for each cell, in the notation of its paper.

$x_t$ is the input of a step and $h_{t-1}$ a state of the step before; $t$ counts from 0 where it is
a value. $\odot$ is the product per hidden unit. $W$, $R$ and $b$ are what the modules learn:
`weight_ih`, `weight_hh`, and the sum of `bias_ih` and `bias_hh`, whose rows belong to gates.
$R\,[h, c]$ is a product with both vectors, one after the other. A hat marks a gate before its
activation; $\tilde{R}$ is made of $R$, see [stages](cells.md#stages). Other letters with an index
but no time are learned vectors. $v_1, v_2, ...$ are values that are used more than once. $\sigma$
is the logistic function; mean, sum and cumsum run over the hidden units.

Options, such as the depth of `rhn`, have their defaults. Where a module has several heads, each $R$
is block-diagonal.
"""


def sources() -> dict[str, str]:
    """By the name of a cell the last column of its row: where it comes from."""
    found: dict[str, str] = {}
    for page in ("README.md", "docs/literature.md"):
        last = ""
        for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
            row = re.match(r"\| `(\w+)` \|.*\| ([^|]+) \|$", line)
            if row:
                last = last if row[2] == "the same" else row[2]
                found[row[1]] = last
    return found


def page() -> str:
    """The text of docs/equations.md."""
    found, out = sources(), [INTRODUCTION]
    for name in cells.names():
        lines = " \\\\\n".join(map(_wrapped, equations(cells.get(name))))
        math = f"```math\n\\begin{{aligned}}\n{lines}\n\\end{{aligned}}\n```"
        source = textwrap.fill(
            f"Source: {found[name]}.", 100, break_on_hyphens=False, break_long_words=False
        )
        out.append(f"## `{name}`\n\n{source}\n\n{math}\n")
    return "\n".join(out)


def _wrapped(equation: str) -> str:
    return textwrap.fill(
        equation, 96, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    sys.stdout.write(page())
