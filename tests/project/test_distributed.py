"""The example of several processes learns, in each of its three ways, on two processes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PROGRAM = ("tests/support/left_threads.py", "examples", "distributed")


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "stateful"])
def test_two_processes_learn(kind):
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch is built without distributed")
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launch, *PROGRAM, kind, "--steps", "100"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, last = map(
        float, re.findall(r"loss ([\d.]+) at first, ([\d.]+) at last", done.stdout)[0]
    )
    assert last < first / 2, done.stdout
    assert done.stdout.count("left: []") == 2, done.stdout
