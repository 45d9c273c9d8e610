"""The machine at hand, as far as results hold for it alone, and the folder that remembers them."""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import platform
import re
import stat
import sys
import tempfile
import warnings
from pathlib import Path

import torch

from . import context

_PACKAGE = __name__.rpartition(".")[0]


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
        "fused_rnn": sys.modules[_PACKAGE].__version__,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda or torch.version.hip),
        "triton": importlib.import_module("triton").__version__
        if context.triton_installed()
        else "absent",
    }


def driver_version() -> str:
    """Of the kernel module; where it does not say, the newest CUDA that the driver knows."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        text = ""
    found = re.search(r"\s(\d+\.\d+(\.\d+)?)\s", text)
    if found:
        return found.group(1)
    get = getattr(torch._C, "_cuda_getDriverVersion", None)
    return f"CUDA {get()}" if get else "unknown"


def _kernels() -> Path:
    """The folder of the kernels."""
    file = importlib.import_module(f"{_PACKAGE}.kernels").__file__
    assert file is not None  # it is no namespace package
    return Path(file).parent


@functools.cache
def kernels_digest() -> str:
    """A digest of the kernels' source files: a checkout changes without a new version."""
    own = [Path(__file__).parent / name for name in ("cells", "plan")]
    files = [file for folder in (_kernels(), *own) for file in sorted(folder.rglob("*.py"))]
    files += [Path(__file__).with_name("numerics.py"), own[1] / "chips.json"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@functools.cache
def loop_digest() -> str:
    """Of the files that the C++ loop comes from."""
    kernels = _kernels()
    files = [*sorted(kernels.glob("cpu/*.*")), *sorted(kernels.glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def cache_directory() -> Path | None:
    """Where results are remembered; None where there is no home."""
    if os.environ.get("FUSED_RNN_CACHE"):
        return Path(os.environ["FUSED_RNN_CACHE"]).expanduser().absolute()
    home = os.environ.get("HOME", os.path.expanduser("~"))
    base = Path(os.environ.get("XDG_CACHE_HOME") or (home and os.path.join(home, ".cache")))
    return base / "fused_rnn" if base.is_absolute() else None


_refused: set[Path] = set()


def own_directory(make: bool = False) -> Path | None:
    """``cache_directory`` if it exists and no other user can write to it; else None.

    Warns once of one that others may write to.

    Args:
        make: create it if it does not exist, for this user alone.
    """
    folder = cache_directory()
    if folder is None:
        return None
    try:
        if make:
            _make(folder)
        why = _mistrust(folder.stat())
        why = why if folder.is_dir() else "it is no folder"
    except OSError:
        return None
    if why is None:
        return folder
    if folder not in _refused:
        _refused.add(folder)
        warnings.warn(
            f"fused_rnn: the cache {folder} is not used, since {why}. What is built is kept for "
            "this process alone, and nothing is remembered. Take the right away (chmod go-w), or "
            "set FUSED_RNN_CACHE to a folder of your own.",
            RuntimeWarning,
            stacklevel=2,
        )
    return None


def _make(folder):
    """For this user alone, its parents too."""
    if not folder.exists():
        _make(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _mistrust(status: os.stat_result) -> str | None:
    """Why a file or folder may have been written by others; None where it was not."""
    if os.name != "posix":
        return None
    if status.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user {status.st_uid}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others may write to it (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def read(file: Path, most: int = 1 << 20) -> bytes | None:
    """The content of a regular file that no other user could write; None for anything else."""
    try:
        flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # each has one of them
        handle = os.open(file, os.O_RDONLY | flags)
        with os.fdopen(handle, "rb") as opened:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode) or status.st_size > most or _mistrust(status):
                return None
            return opened.read(most)
    except OSError:
        return None


def write(file: Path, content: bytes) -> bool:
    """Write a file, whole or not at all, even if other processes write it at the same time.

    Returns:
        Whether it could be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=file.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as part:
                part.write(content)
            os.replace(name, file)
        except BaseException:
            os.unlink(name)
            raise
    except OSError:
        return False
    return True


def digest(key: dict) -> str:
    """The name of what is remembered under a key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def file_of(key: dict, folder: str = "") -> Path | None:
    """Where ``remember`` puts what it is given under a key; None where there is no home."""
    directory = cache_directory()
    return directory and directory / folder / f"{digest(key)}.json"


def recall(key: dict, folder: str = "") -> dict | None:
    """What ``remember`` was given under an equal key; None for nothing, and for anything else."""
    file = file_of(key, folder) if own_directory() else None
    content = None if file is None else read(file)
    if content is None:
        return None
    try:
        known = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return known if isinstance(known, dict) and known.get("key") == key else None


def remember(key: dict, content: dict, folder: str = "") -> bool:
    """Write one file, whole or not at all, even if other processes write it at the same time.

    Returns:
        Whether it could be written.
    """
    text = json.dumps({"key": key} | content, indent=1)
    file = file_of(key, folder) if own_directory(make=True) else None
    try:
        if file is not None:
            _make(file.parent)
    except OSError:
        return False
    return file is not None and write(file, text.encode())
