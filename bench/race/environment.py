"""Facts that figures depend on besides the code: device, versions, commit and date."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
import textwrap
from importlib import metadata
from pathlib import Path

import torch

import fused_rnn
from fused_rnn import machine


def in_words(found: dict) -> str:
    """Facts as a sentence for a page of Markdown."""
    told = ", ".join(f"{key} {value}" for key, value in found.items())
    return textwrap.fill(f"{told}.", 100, break_long_words=False, break_on_hyphens=False)


def facts(device: torch.device) -> dict[str, str | int | bool]:
    facts = {
        "device_name": device_name(device),
        "cpu": cpu_name(),
        "processor": machine.processor(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        "fused_rnn": fused_rnn.__version__,
        "commit": _commit(),
        "load": load(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = str(torch.backends.cudnn.version())
        facts["tf32"] = torch.backends.cudnn.allow_tf32
    return facts


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def load() -> float:
    """The load average of the last minute, which includes this process."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else 0.0


def _cores():
    # The cores that this process may use, if the system reports them.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _commit():
    def git(*args):
        root = Path(__file__).parents[2]
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        # This run itself writes the results, so they do not make the checkout dirty.
        changed = git("status", "--porcelain", "--", ".", ":!bench/results")
        return git("rev-parse", "--short", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
