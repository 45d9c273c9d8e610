"""Find the C++ compiler, build shared libraries with it, and cache them on disk.

The name of a library has a digest of everything that it depends on, and one of its content. The
second is checked before the library is loaded, so a damaged one is built again. Nothing is loaded
that other users could have written. A library is moved into place when it is complete, and a
process that finds another one building it waits.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ... import machine, once

_SHARED = ("-shared", "-fPIC", "-std=c++17")
# Sums and products may be fused. Nothing may be reordered, and NaN and inf keep their meaning.
_FAST = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
# For this processor; a compiler refuses the options of another kind.
_NATIVE = ("-march=native", "-mcpu=native", "-mprefer-vector-width=512")
# Time-outs of the compiler in seconds: without using the processor, of processor time, and of
# elapsed time where processor time cannot be read.
IDLE, BUSY, WALL = 10.0, 60.0, 120.0


class Fault(str):
    """The reason why something cannot be built or loaded although there is a compiler."""


class BuildError(RuntimeError):
    """A compiler failed, or its output cannot be loaded."""


class Compiler(NamedTuple):
    """A compiler that works.

    Attributes:
        command: its path.
        version: the output of ``--version``.
        flags: its options, without the user's.
    """

    command: str
    version: str
    flags: tuple[str, ...]


def find() -> Compiler | None:
    """Find the first working one of $FUSED_RNN_CXX, $CXX, c++, g++ and clang++, or None.

    The variables may hold options, or a launcher before the compiler: "ccache g++ -m64".
    """
    wanted, usual = (os.environ.get(name, "").strip() for name in ("FUSED_RNN_CXX", "CXX"))
    return _find(wanted, usual, os.environ.get("PATH", ""))


@once.once
def _find(wanted, usual, path) -> Compiler | None:
    if os.name != "posix":
        return None
    for command in filter(None, (wanted, usual, "c++", "g++", "clang++")):
        found = _try(command, path)
        if found is not None:
            return found
        if command == wanted:
            warnings.warn(
                f"fused_rnn: $FUSED_RNN_CXX is {wanted!r}, which does not work as a C++ compiler; "
                "trying others",
                RuntimeWarning,
                stacklevel=2,
            )
    return None


def _try(command, path) -> Compiler | None:
    where, words = shutil.which(command, path=path), []
    if where is None:
        try:
            first, *words = shlex.split(command)
        except ValueError:
            return None
        where = shutil.which(first, path=path)
    version = _said(where, *words, "--version") if where else None
    if not where or not version or not _accepts(where, *words, *_SHARED, *_FAST):
        return None
    # The options of one kind of processor are alternatives.
    native = [flag for flag in _NATIVE if _accepts(where, *words, flag)]
    if "-march=native" in native and platform.machine() in ("arm64", "aarch64"):
        native = [flag for flag in native if flag == "-mcpu=native"] or native
    else:
        native = [flag for flag in native if flag != "-mcpu=native"]
    return Compiler(where, version, (*words, *_SHARED, *_FAST, *native))


def _said(*command) -> str | None:
    try:
        status, said = _run(command)
    except (OSError, TimeoutError):
        return None
    return None if status else said


def _accepts(command, *flags) -> bool:
    source = ("-Werror", "-fsyntax-only", "-x", "c++", os.devnull)
    return _said(command, *flags, *source) is not None


def _run(command, folder: str | None = None) -> tuple[int, str]:
    """Run a command; return its exit status and its output, which may be any bytes.

    Raises:
        OSError: it cannot be started.
        TimeoutError: it hangs; it and its children were killed.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(process)
        except BaseException:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        output.seek(0)
        return process.returncode, output.read(1 << 20).decode(errors="replace").strip()


def _wait(process):
    begin = moved = time.monotonic()
    spent = 0.0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
            return
        now, before, spent = time.monotonic(), spent, _cpu_seconds(process.pid)
        if spent is None:
            spent = 0.0
            hangs = now - begin > WALL
        else:
            moved = now if spent > before else moved
            hangs = now - moved > IDLE or spent > BUSY
        if hangs:
            raise TimeoutError(f"no end after {now - begin:.0f} s")


def _cpu_seconds(session) -> float | None:
    """The processor time of a session's processes; None where the system does not report it."""
    total, found = 0, False
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session:
                found = True
                total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK") if found else None


# Why a library cannot be built, by its digest; or by a compiler's path, that it hangs.
_failed: dict[str, str] = {}


def library(name: str, text: str, includes: Path) -> ctypes.CDLL:
    """Load the shared library of a C++ source: from the cache, or built now.

    $FUSED_RNN_CXXFLAGS is appended to the flags.

    Args:
        name: a readable part of the file's name.
        text: the source.
        includes: the folder of the ``*.h`` that it may include.

    Raises:
        BuildError: the compiler failed or hangs, with its output; or the library cannot be
            loaded. Later calls raise the same error.
        RuntimeError: there is no compiler.
    """
    compiler = find()
    if compiler is None:
        raise RuntimeError(why_not())
    try:
        users = shlex.split(os.environ.get("FUSED_RNN_CXXFLAGS", ""))
    except ValueError as error:
        raise BuildError(f"$FUSED_RNN_CXXFLAGS: {error}") from None
    flags = (*compiler.flags, *users)
    headers = [header.read_text() for header in sorted(includes.glob("*.h"))]
    parts = (compiler.command, compiler.version, *flags, machine.processor_facts(), text, *headers)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    command = [compiler.command, *flags, f"-I{includes}"]
    with once.making():
        failure = _failed.get(digest) or _failed.get(compiler.command)
        if failure:
            raise BuildError(failure)
        try:
            return _load(f"{name}-{digest}", name, text, command)
        except TimeoutError as error:
            failure = _failed[compiler.command] = str(error)
        except (BuildError, OSError) as error:
            failure = _failed[digest] = str(error)
        raise BuildError(failure)


def _load(stem, name, text, command) -> ctypes.CDLL:
    # If the library cannot be loaded, build again elsewhere: the folder may be mounted noexec.
    for folder in (cache_directory, _own_directory):
        file = _find_built(folder(), stem)
        if file is None:
            with _alone(folder()):
                file = _find_built(folder(), stem) or _build(folder(), stem, name, text, command)
        try:
            return ctypes.CDLL(str(file))
        except OSError as error:
            reason = error
            with contextlib.suppress(OSError):
                file.unlink()
    raise BuildError(f"{shlex.join(command)}: its output cannot be loaded: {reason}")


def _find_built(folder: Path, stem: str) -> Path | None:
    """Find an intact library that no other user could write; remove others of its name."""
    for file in sorted(folder.glob(f"{stem}-*.so")):
        content = machine.read(file, most=1 << 28)
        if content is not None and file.stem.rpartition("-")[2] == _digest(content):
            return file
        with contextlib.suppress(OSError):
            file.unlink()
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _build(folder: Path, stem: str, name: str, text: str, command: list[str]) -> Path:
    with tempfile.TemporaryDirectory(prefix="fused_rnn-build-") as place:
        made = Path(place, "made.so")
        Path(place, f"{name}.cpp").write_text(text)
        command = [*command, f"{name}.cpp", "-o", made.name]
        words = shlex.join(command)
        try:
            status, said = _run(command, place)
        except TimeoutError as error:
            raise TimeoutError(f"{words}: {error}") from None
        if status:
            raise BuildError(f"{words}: exit status {status}: {said[:4000]}")
        content = made.read_bytes() if made.is_file() else b""
    if not content:
        raise BuildError(f"{words}: exit status 0, but it made nothing: {said[:4000]}")
    for place in (folder, _own_directory()):
        file = place / f"{stem}-{_digest(content)}.so"
        if machine.write(file, content):
            return file
    raise BuildError(f"{file}: cannot be written")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait, for a limited time, while another process builds in this folder."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        end = time.monotonic() + IDLE
        while time.monotonic() < end:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(handle)


def why_not() -> str:
    """The message for a machine without a compiler."""
    if os.name != "posix":
        return f"on {platform.system()} the C++ engine cannot be built yet"
    return "there is no C++ compiler: none of $FUSED_RNN_CXX, $CXX, c++, g++ and clang++ works"


def cache_directory() -> Path:
    """The cache's folder, or a temporary one of this process where that cannot be used."""
    folder = machine.own_directory(make=True)
    if folder is not None and os.access(folder, os.W_OK | os.X_OK):
        return folder
    return _own_directory()


# The process that owns the temporary folder, and its path.
_own: list[tuple[int, str]] = []


def _own_directory() -> Path:
    """A temporary folder of this process, made anew after a fork or if it was removed."""
    if not _own or _own[-1][0] != os.getpid() or not os.path.isdir(_own[-1][1]):
        _own.append((os.getpid(), tempfile.mkdtemp(prefix="fused_rnn-")))
        atexit.register(_remove, *_own[-1])
    return Path(_own[-1][1])


def _remove(process, folder):
    if process == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)
