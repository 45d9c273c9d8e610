"""A newcomer's path, timed: from a clone to a first result, a converted model and a cell.

    python -m bench.reports.newcomer            # writes bench/results/newcomer.md
    python -m bench.reports.newcomer --print    # prints it

The steps are those of docs/quickstart.md, whose code runs as it stands: a clone of this checkout,
the installation into an environment that has PyTorch already, then each section in a process of its
own, first with an empty cache folder and then again.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ..progress import over
from ..race import environment

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "newcomer.md"
STEPS = {
    "A layer": "first result: a layer forward and backward, and why it ran as it did",
    "A model that you have": "first converted model",
    "A cell of your own": "first own cell: 50 steps of training, and its check on every engine",
}


def code(section: str) -> str:
    """The Python blocks of a section of the quickstart, one after the other."""
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    text = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return "".join(re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S))


def timed(command: list[str], **options) -> float:
    """Seconds of a command, which has to succeed."""
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr[-2000:]}")
    return time.perf_counter() - begin


def measure(folder: Path) -> list[tuple[str, float, float | None]]:
    """Per step its seconds, the first time and again, in an empty ``folder``."""
    checkout, venv = folder / "fused_rnn", folder / "venv"
    rows = [("clone", timed(["git", "clone", "--quiet", str(ROOT), str(checkout)]), None)]
    python = venv / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    here = next(str(Path(p)) for p in sys.path if (Path(p) / "torch" / "__init__.py").exists())
    options = {"cwd": folder, "env": _clean(folder, here)}
    pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(checkout)]
    rows.append(("pip install, PyTorch is there already", timed(pip, **options), None))
    for section, what in over(STEPS.items(), "steps"):
        run = [str(python), "-c", code(section)]
        rows.append((what, timed(run, **options), timed(run, **options)))
    return rows


def _clean(folder: Path, here: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return kept | {"FUSED_RNN_CACHE": str(folder / "cache"), "PYTHONPATH": here}


def report(rows) -> str:
    """The page of results."""
    facts = environment.in_words(environment.facts(torch.device("cpu")))
    lines = [
        "# A newcomer's path",
        "",
        "Written by `python -m bench.reports.newcomer`. The sections of",
        "[the quickstart](../../docs/quickstart.md), each in a process of its own: seconds from",
        "its start to its end, the import of PyTorch included. The first time the cache folder is",
        "empty, so cells are compiled, and layers timed beside `torch.nn`; the second time it is",
        "not. The clone is of a checkout on the same disk. PyTorch was installed before.",
        "",
        facts,
        "",
        "| step | first time, s | again, s |",
        "| --- | --: | --: |",
    ]
    for what, first, again in rows:
        lines.append(f"| {what} | {first:.1f} | {'' if again is None else f'{again:.1f}'} |")
    total = sum(first for _, first, _ in rows)
    return "\n".join([*lines, f"| together | {total:.1f} | |", ""])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="print, and write nothing")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        page = report(measure(Path(folder)))
    if args.print:
        print(page)
    else:
        RESULTS.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
