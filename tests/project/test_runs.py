"""How the tests are started: every way that docs/install.md and the Makefile name works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
LEFT_OUT = "this run interprets the kernels; `pytest tests/compiled tests/simulator` tests"
PAIR = ("tests/kernels/test_activations.py", "tests/compiled/test_compiled_activations.py")
CHEAP = "tests/compiled/test_registers.py"


def run(*options, **environment):
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET" and "PYTEST" not in k}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def passed(done):
    """How many tests passed, in a run without failures and errors."""
    assert done.returncode == 0, done.stdout + done.stderr
    return int(re.search(r"(\d+) passed", done.stdout)[1])


@pytest.mark.slow
def test_plain_pytest_collects_every_file():
    done = run("--collect-only", "-q", "-m", "")
    assert done.returncode == 0, done.stdout
    files = {path.name for path in ROOT.glob("tests/test_*.py")}
    assert files <= set(re.findall(r"^tests/(\w+\.py)::", done.stdout, re.M))


def test_files_of_one_name():
    pytest.importorskip("triton")
    done = run(*PAIR, "--collect-only", "-q", TRITON_INTERPRET="0")
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU, kernels are compiled anyway")
def test_files_of_both_kinds():
    pytest.importorskip("triton")
    done = run(*PAIR)
    assert passed(done) >= 5
    assert LEFT_OUT in done.stdout


def test_compiled_kernels_need_no_variable():
    pytest.importorskip("triton")
    done = run(CHEAP, "-n", "1")  # the workers decide as their controller does
    assert passed(done) >= 5
    assert "skipped" not in done.stdout


def test_the_variable_decides():
    pytest.importorskip("triton")
    done = run(CHEAP, TRITON_INTERPRET="1")
    assert LEFT_OUT in done.stdout
    assert "passed" not in done.stdout
