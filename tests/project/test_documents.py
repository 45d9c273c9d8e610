"""Every block of code in the documents runs, and prints what the page says it prints.

A section's Python blocks run in one process, one after the other. What a page shows as printed is
the text block after the code, or the comments after its prints. A block that cannot run here has a
comment before it, which says why, and which test runs it where that is possible:
``<!-- not run: it needs skorch, see tests/integrations/test_skorch.py -->``.
"""

import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fused_rnn import plan, use_backend
from tests.support.problems import make_problem
from tests.support.tolerances import assert_as_good_as_eager

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
MARK = "-- here a block begins --"
FENCE = re.compile(
    r"^## (?P<heading>[^\n]+)\n"
    r"|(?:^<!-- not run: (?P<why>[^\n]+?) -->\n+)?"
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.M | re.S,
)
NEVER_RUN = {"text", "math", ""}  # what is printed, equations


@dataclasses.dataclass(frozen=True)
class Block:
    """A block of code of a page: its section, language and text, why it is not run."""

    page: str
    section: str
    language: str
    code: str
    why: str | None = None
    shown: str = ""

    @property
    def interprets(self):
        return "# TRITON_INTERPRET=1\n" in self.code

    @property
    def expected(self):
        """The lines that the page says it prints."""
        said = re.findall(r"^print\(.*\)  # (.*)$", self.code, re.M)
        return self.shown.splitlines() or said


def blocks(page):
    """Every block of a page, in its order."""
    found, section = [], page.stem
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        if match["heading"]:
            section = match["heading"]
        elif match["language"] == "text" and found:
            found[-1] = dataclasses.replace(found[-1], shown=match["code"])
        else:
            name = str(page.relative_to(ROOT))
            found.append(Block(name, section, match["language"], match["code"], match["why"]))
    return found


BLOCKS = [block for page in PAGES for block in blocks(page)]
RUN = [b for b in BLOCKS if b.language == "python" and b.why is None]


def programs():
    """By name the blocks that run in one process: a section's, and those that are interpreted.

    The latter follow only their section's first block: to train in the interpreter takes minutes.
    """
    found = {}
    for block in RUN:
        name = re.sub(r"\W+", "-", f"{block.page}-{block.section}".lower()).strip("-")
        if block.interprets:
            found[f"{name}-interpreted"] = [*found.get(name, [])[:1], block]
        else:
            found.setdefault(name, []).append(block)
    return found


PROGRAMS = programs()


def test_there_are_blocks_of_every_kind():
    assert len(RUN) > 25
    assert sum(bool(block.expected) for block in RUN) >= 8
    assert sum(block.interprets for block in RUN) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_line_breaks_an_address(page):
    """Such a link is printed as text."""
    for target in re.findall(r"\]\((https?://[^)]*)\)", page.read_text(encoding="utf-8")):
        assert not re.search(r"\s", target), target


def test_every_block_is_run_or_says_why_not():
    assert {b.language for b in BLOCKS} <= {"python", "bash"} | NEVER_RUN
    left_out = [b for b in BLOCKS if b.why]
    assert all(len(b.why) > 10 for b in left_out)
    elsewhere = {b: re.search(r"see (tests/integrations/\w+\.py)$", b.why) for b in left_out}
    assert all((ROOT / found[1]).is_file() for found in elsewhere.values() if found)
    left_out = [b for b in left_out if not elsewhere[b]]
    assert len(left_out) <= 6, "a block that is not run has to be rare"


@pytest.mark.parametrize("name", PROGRAMS)
def test_code_runs_and_prints_what_the_page_says(name, tmp_path):
    run = PROGRAMS[name]
    if any("triton" in block.code for block in run):
        pytest.importorskip("triton")
    if any("onnx" in block.code for block in run):
        pytest.importorskip("onnxscript")
    file = tmp_path / "section.py"  # a file, since Triton reads the source of a kernel
    file.write_text("".join(f"print({MARK!r})\n{b.code}" for b in run), encoding="utf-8")
    kept = {n: os.environ[n] for n in ("PATH", "HOME", "TMPDIR") if n in os.environ}
    own = {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "PYTHONPATH": str(ROOT)}
    if run[-1].interprets:
        own["TRITON_INTERPRET"] = "1"
    result = subprocess.run(
        [sys.executable, file],
        cwd=tmp_path,
        env=kept | own,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    printed = result.stdout.split(f"{MARK}\n")[1:]
    for block, text in zip(run, printed, strict=True):
        if block.expected:
            assert text.splitlines() == block.expected, block.code


def commands():
    """The commands of the blocks for a shell, without their comments."""
    for block in BLOCKS:
        if block.language == "bash" and block.why is None:
            for line in re.sub(r"\\\n", " ", block.code).splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield pytest.param(words, id=f"{block.page}-{' '.join(words)}")


@pytest.mark.parametrize("words", list(commands()))
def test_what_a_command_names_is_there(words):
    """They set up environments or take minutes, so they are read instead of run."""
    while "=" in words[0]:
        words = words[1:]
    program, arguments = Path(words[0]).name, words[1:]
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in (a for a in arguments if "=" not in a):
            assert re.search(rf"^{target}:", makefile, re.M)
    elif program == "pytest":
        assert all((ROOT / a).exists() for a in arguments if not a.startswith("-"))
    elif program == "pip":
        project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert arguments[0] == "install"
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
            assert all(re.search(rf"^{e} = \[", project, re.M) for e in extra.split(","))
    elif program == "python" and arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]) is not None
    elif program in ("python", "torchrun"):
        arguments = [a for a in arguments if not a.startswith("-")]
        assert (ROOT / arguments[0]).exists()
    else:
        assert program in ("git", "cd")


def test_the_cell_of_one_s_own(interpreter):
    code = "".join(b.code for b in RUN if b.section == "Your own cell" and not b.interprets)
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
