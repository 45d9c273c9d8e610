"""The page and the plot of variants.py's results."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))
import char_lm_peers

from bench.race import environment


def facts() -> dict:
    found = environment.facts(torch.device("cpu"))
    return {name: found[name] for name in ("cpu", "cores", "torch", "commit", "date")}


def progress_bar(jobs: int):
    return char_lm_peers.progress_bar(0, jobs, disable=False)


def write(out, results, asked):
    return ""
