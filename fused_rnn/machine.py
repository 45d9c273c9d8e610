"""The machine at hand, as far as results hold for it alone, and the folder that remembers them."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import platform
import re
import sys
import tempfile
from pathlib import Path

import torch

from . import backends


@functools.cache
def device_facts(device: torch.device) -> dict[str, str] | None:
    """What the machine code and its behaviour depend on; None where nothing is remembered."""
    if device.type != "cuda":
        return None
    return {
        "gpu": torch.cuda.get_device_name(device),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
        "driver": driver_version(),
        **versions(),
    }


@functools.cache
def processor() -> str:
    """A digest of all that is known of the processor: names alone are given to several."""
    return hashlib.sha256(processor_facts().encode()).hexdigest()[:16]


@functools.cache
def processor_facts() -> str:
    """What code for the processor at hand depends on: a cache may be shared by machines."""
    facts = [platform.system(), platform.machine(), platform.processor()]
    info = Path("/proc/cpuinfo")
    if info.exists():
        kinds = ("flags", "Features", "model name", "CPU part", "isa")
        lines = info.read_text().splitlines()
        facts += sorted({line for line in lines if line.startswith(kinds)})
    return "\n".join(facts)


def versions() -> dict[str, str]:
    """Of this package, torch and Triton, which may be absent."""
    return {
        "fused_rnn": sys.modules[__package__].__version__,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda or torch.version.hip),
        "triton": importlib.import_module("triton").__version__
        if backends.triton_installed()
        else "absent",
    }


def driver_version() -> str:
    """Of the kernel module; where it does not say, the newest CUDA that the driver knows."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
        return re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text).group(1)
    except (OSError, AttributeError):
        get = getattr(torch._C, "_cuda_getDriverVersion", None)
        return f"CUDA {get()}" if get else "unknown"


@functools.cache
def kernels_digest() -> str:
    """Of the files that the kernels come from: a checkout changes without a new version."""
    kernels = Path(importlib.import_module(f"{__package__}.kernels").__file__).parent
    own = [Path(__file__).with_name(name) for name in ("cells.py", "plan.py", "plans.json")]
    files = [*sorted(kernels.glob("*.py")), *own]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@functools.cache
def loop_digest() -> str:
    """Of the files that the C++ loop comes from."""
    kernels = Path(importlib.import_module(f"{__package__}.kernels").__file__).parent
    kinds = ("*.h", "*.cpp", "cpu.py", "emit_c.py")
    files = sorted(file for kind in kinds for file in kernels.glob(kind))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def uses_tf32(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products of the kernels round float32 to TF32; Triton's interpreter does not."""
    if dtype != torch.float32 or device.type != "cuda":
        return False
    return torch.backends.cudnn.rnn.fp32_precision == "tf32"


def cache_directory() -> Path | None:
    """Where results are remembered; None where there is no home."""
    if os.environ.get("FUSED_RNN_CACHE"):
        return Path(os.environ["FUSED_RNN_CACHE"])
    base = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return base / "fused_rnn" if base.is_absolute() else None


def digest(key: dict) -> str:
    """The name of what is remembered under a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def file_of(key: dict, folder: str = "") -> Path | None:
    """Where ``remember`` puts what it is given under a key; None where there is no home."""
    directory = cache_directory()
    return directory and directory / folder / f"{digest(key)}.json"


def recall(key: dict, folder: str = "") -> dict | None:
    """What ``remember`` was given under an equal key; None for nothing.

    Raises:
        ValueError: there is a file, but it is none of ``remember``'s; names it.
    """
    file = file_of(key, folder)
    if file is None:
        return None
    try:
        known = json.loads(file.read_text())
    except OSError:
        return None
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(known, dict) or known.get("key") != key:
        raise ValueError(f"{file} is of another key than its name says")
    return known


def remember(key: dict, content: dict, folder: str = "") -> bool:
    """Write one file, whole or not at all, whoever else writes it at the time.

    Returns:
        Whether it could be written.
    """
    file = file_of(key, folder)
    if file is None:
        return False
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, suffix=".part")
        with os.fdopen(handle, "w") as part:
            json.dump({"key": key} | content, part, indent=1)
        os.replace(name, file)
    except OSError:
        return False
    return True
