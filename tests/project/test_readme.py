"""The code in the README and in two pages of docs/ runs, and prints what they say it prints."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fused_rnn import plan, use_backend
from tests.support.problems import make_problem
from tests.support.tolerances import assert_as_good_as_eager

ROOT = Path(__file__).parents[2]
MARK = "-- here the snippet begins --"


@dataclasses.dataclass(frozen=True)
class Snippet:
    """Code of a document with the earlier code of its section, and the lines that it prints."""

    name: str
    code: str
    before: str = ""
    expected: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


def snippets(document):
    """Every python block of a document, in its order."""
    found, section, first, before = [], "", "", ""
    text = (ROOT / document).read_text(encoding="utf-8")
    pattern = re.compile(
        r"^## ([^\n]+)\n|^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S
    )
    for heading, code, shown in pattern.findall(text):
        if heading:
            section, first, before = heading, "", ""
            continue
        expected = shown.splitlines() or re.findall(r"^print\(.*\)  # (.*)$", code, re.M)
        environment = re.findall(r"^# (TRITON_INTERPRET)=(\d)$", code, re.M)
        # In the interpreter only with the first block: training there would take minutes.
        needed = first if environment else before
        found.append(Snippet(section, code, needed, tuple(expected), tuple(environment)))
        first, before = first or code, before + code
    return found


SNIPPETS = [s for d in ("README.md", "docs/usage.md", "docs/cells.md") for s in snippets(d)]
IDS = [f"{n}-{s.name.lower().replace(' ', '-')}" for n, s in enumerate(SNIPPETS)]


def test_there_are_snippets_of_every_kind():
    assert sum(bool(s.before) for s in SNIPPETS) >= 4
    assert sum(bool(s.expected) for s in SNIPPETS) >= 8
    assert sum(bool(s.environment) for s in SNIPPETS) >= 2


@pytest.mark.parametrize("snippet", SNIPPETS, ids=IDS)
def test_snippet(snippet):
    if "triton" in snippet.code:
        pytest.importorskip("triton")
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    result = subprocess.run(
        [sys.executable, "-c", f"{snippet.before}\nprint({MARK!r})\n{snippet.code}"],
        cwd=ROOT,
        env=kept | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"} | dict(snippet.environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    printed = result.stdout.partition(f"{MARK}\n")[2]
    if snippet.expected:
        assert tuple(printed.splitlines()) == snippet.expected


def test_the_cell_of_one_s_own(interpreter):
    code = "".join(s.code for s in SNIPPETS if s.name == "Your own cell" and not s.environment)
    names = {}
    with use_backend("sequence"):  # what "auto" picks for readers without a GPU
        exec(code, names)
    cell, losses = names["UGRNN"], names["losses"]
    assert losses[-1] < losses[0] / 5

    layer, x = names["layer"], names["x"]
    inputs = (x, *layer.parameters())
    with use_backend("sequence"):
        assert torch.autograd.gradcheck(lambda x, *_: layer(x)[0], inputs)

    problem = make_problem(cell, 3, 3, 17)
    eager, exact = problem.run("reference"), problem.to(torch.float64).run("reference")
    for strategy in ("resident", "step"):
        with plan.use_strategy(strategy):
            assert_as_good_as_eager(problem.run("triton"), eager, exact, strategy)
