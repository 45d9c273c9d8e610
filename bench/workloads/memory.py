"""The memory that one call takes."""

from __future__ import annotations

import contextlib
import ctypes
import re
from collections.abc import Callable
from pathlib import Path

import torch

MB = 1e6
_PROCESS = Path("/proc/self")


def peak(call: Callable[[], object], device: torch.device) -> float | None:
    """MB at the peak of a call, above what was held before; None where the system tells no peak.

    On a GPU these are the bytes of PyTorch's allocator, on a CPU the resident memory of the
    process: what any library allocates is in it.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / MB
    with contextlib.suppress(OSError, AttributeError):  # give freed pages back first
        ctypes.CDLL(None).malloc_trim(0)
    try:
        (_PROCESS / "clear_refs").write_text("5")  # the peak begins at the present size
        before = _status("VmRSS")
        call()
        return max(0.0, (_status("VmHWM") - before) / MB)
    except OSError:
        return None


def _status(name):
    found = re.search(rf"^{name}:\s+(\d+) kB", (_PROCESS / "status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {name}")
    return int(found[1]) * 1024
