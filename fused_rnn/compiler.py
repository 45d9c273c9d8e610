"""The C++ compiler of this machine: found, asked to build, and its results kept on disk.

What is built is named by a digest of everything that it depends on, and put in place whole: so
processes that build the same thing at once do not disturb each other.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

from . import machine

_SHARED = ("-shared", "-fPIC", "-std=c++17")
# Sums and products may be fused; nothing may be reordered, and NaN and inf are what they are.
_FAST = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
# For the processor at hand; a compiler refuses those of another.
_NATIVE = ("-march=native", "-mcpu=native", "-mprefer-vector-width=512")

_lock = threading.Lock()


class Compiler(NamedTuple):
    """
    Attributes:
        command: its path.
        version: what it says of itself.
        flags: those that it is given, without the user's.
    """

    command: str
    version: str
    flags: tuple[str, ...]


def find() -> Compiler | None:
    """The first that works of $FUSED_RNN_CXX, $CXX, c++, g++ and clang++, or None."""
    chosen = tuple(os.environ.get(name, "") for name in ("FUSED_RNN_CXX", "CXX"))
    return _find((*chosen, "c++", "g++", "clang++"), os.environ.get("PATH", ""))


@functools.cache
def _find(commands, path) -> Compiler | None:
    if os.name != "posix":
        return None
    for command in filter(None, commands):
        where = shutil.which(command, path=path)
        version = where and _said(where, "--version")
        if version and _accepts(where, *_SHARED, *_FAST):
            # The options of one kind of processor are alternatives.
            native = [flag for flag in _NATIVE if _accepts(where, flag)]
            if "-march=native" in native and platform.machine() in ("arm64", "aarch64"):
                native = [flag for flag in native if flag == "-mcpu=native"] or native
            else:
                native = [flag for flag in native if flag != "-mcpu=native"]
            return Compiler(where, version, (*_SHARED, *_FAST, *native))
    return None


def _said(*command) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _accepts(command, *flags) -> bool:
    source = ("-Werror", "-fsyntax-only", "-x", "c++", os.devnull)
    return _said(command, *flags, *source) is not None


def build(name: str, text: str, includes: Path) -> Path:
    """The shared library of a C++ source, from the cache or made now.

    $FUSED_RNN_CXXFLAGS is appended to the flags.

    Args:
        name: for people who look into the cache.
        text: the source.
        includes: a folder with the ``*.h`` that it may include.

    Raises:
        RuntimeError: there is no compiler, or it failed; with what it said.
    """
    compiler = find()
    if compiler is None:
        raise RuntimeError(why_not())
    flags = (*compiler.flags, *shlex.split(os.environ.get("FUSED_RNN_CXXFLAGS", "")))
    headers = [header.read_text() for header in sorted(includes.glob("*.h"))]
    parts = (compiler.command, compiler.version, *flags, machine.processor_facts(), text, *headers)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    folder = cache_directory()
    file = folder / f"{name}-{digest}.so"
    with _lock:
        if not file.exists():
            command = [compiler.command, *flags, f"-I{includes}"]
            with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as place:
                source, made = Path(place, f"{name}.cpp"), Path(place, "made.so")
                source.write_text(text)
                _run([*command, str(source), "-o", str(made)])
                os.replace(made, file)
    return file


def load(file: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(file))


def why_not() -> str:
    """What is said where there is no compiler."""
    return "there is no C++ compiler: none of $FUSED_RNN_CXX, $CXX, c++, g++ and clang++ works"


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{shlex.join(command)}: exit status {done.returncode}: {said}")


def cache_directory() -> Path:
    """That of the machine; a folder of this process's where it cannot be used."""
    folder = machine.cache_directory()
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if folder.is_absolute() and os.access(folder, os.W_OK | os.X_OK):
                return folder
    except OSError:
        pass
    return Path(_own_directory().name)


@functools.cache
def _own_directory() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="fused_rnn-")
