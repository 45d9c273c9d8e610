"""Compile the kernels for a GPU that is absent: Triton needs none, but wants a driver."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

# Triton declares drivers that it never asks for, and a driver of its own class.
active: Any = driver


class Driver:
    """A driver for which Triton binds, specializes and compiles launches as for a GPU.

    A subclass implements ``load`` for a compiled kernel and ``launch`` for a launch.

    Args:
        name: drivers of the same name and capability share Triton's cached kernels.
        capability: 90 for 9.0.
        shared_memory: bytes that a CTA may use; Triton refuses launches that ask for more.
        multiprocessors: their number.
    """

    def __init__(self, name: str, capability: int, shared_memory: int, multiprocessors: int):
        self.name, self.capability = name, capability
        self.shared_memory, self.multiprocessors = shared_memory, multiprocessors
        self.utils = self

    def load(self, binary: bytes) -> Any:
        """Load a compiled kernel; returns what ``launch`` gets."""
        raise NotImplementedError

    def spilled(self, binary: bytes) -> int:
        """The local memory of a thread, in words, as a GPU's driver reports it."""
        return 0

    def launch(
        self, source: Any, metadata: Any, grid: tuple[int, int, int], loaded: Any, arguments: Any
    ) -> None:
        """Launch a kernel, with all arguments of the call, constants too."""
        raise NotImplementedError

    @contextlib.contextmanager
    def activated(self) -> Iterator[None]:
        """Make Triton launch on this device inside the ``with``."""
        before = active._active
        active.set_active(self)
        try:
            yield
        finally:
            active._active = before

    # ---- for Triton

    def get_current_device(self) -> tuple[str, int]:
        return (self.name, self.capability)  # a key in Triton's caches, unlike any GPU's index

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_device_properties(self, device: object) -> dict[str, int]:
        return {
            "max_shared_mem": self.shared_memory,
            "multiprocessor_count": self.multiprocessors,
            "warpSize": 32,
        }

    def load_binary(self, name: str, binary: bytes, shared: int, device: object) -> tuple:
        return self, self.load(binary), 0, self.spilled(binary), 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        # A compiled kernel may outlive this driver: launch on the one that is active.
        def launch(x, y, z, stream, loaded, packed, launch_metadata, enter, leave, *arguments):
            active.active.launch(source, metadata, (x, y, z), loaded, arguments)

        return launch


@dataclass(frozen=True)
class Compiled:
    """A kernel as it would be launched.

    Args:
        name: of the kernel.
        grid: CTAs along x, y, z.
        shared: bytes of shared memory.
        ptx, cubin: the output of Triton and of the assembler.
    """

    name: str
    grid: tuple[int, int, int]
    shared: int
    ptx: str
    cubin: bytes


@contextlib.contextmanager
def compiling(capability: int) -> Iterator[list[Compiled]]:
    """Compile the Triton kernels that are launched inside the ``with``, without running them.

    Args:
        capability: the GPU to compile for: 80, 86, 89, 90, 100 or 120.
    """
    launches: list[Compiled] = []
    with _Recorder(capability, launches).activated():
        yield launches


class _Recorder(Driver):
    """Records launches."""

    def __init__(self, capability: int, launches: list[Compiled]):
        # Triton is to compile kernels too that need more shared memory than the chip has.
        super().__init__("compiler", capability, shared_memory=1 << 30, multiprocessors=1)
        self.launches = launches

    def load(self, binary):
        return binary

    def spilled(self, binary):
        return _resource("STACK", dump(binary)) // 4

    def launch(self, source, metadata, grid, loaded, arguments):
        text = _cached_ptx(metadata)
        self.launches.append(Compiled(metadata.name, grid, metadata.shared, text, loaded))


def _cached_ptx(metadata) -> str:
    """The PTX of a compilation: Triton keeps every stage in its cache."""
    files = triton.runtime.cache.get_cache_manager(metadata.hash)
    group: Any = files.get_group(f"{metadata.name}.json")
    return Path(group[f"{metadata.name}.ptx"]).read_text()


def dump(cubin: bytes, *more: str) -> str:
    """Run cuobjdump for the resources of a kernel, and with further options of it.

    Triton ships the tool. A kernel uses "REG" registers and "STACK" bytes of local memory.
    """
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", *more, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(compiled: Compiled) -> tuple[int, int]:
    """The registers and the words of local memory (spills) of a thread of a kernel."""
    text = dump(compiled.cubin)
    return _resource("REG", text), _resource("STACK", text) // 4


def _resource(name: str, text: str) -> int:
    """A number in the output of ``dump``."""
    return int(re.findall(rf"{name}:(\d+)", text)[0])


def why_not() -> str | None:
    """The reason why this process cannot compile the kernels, or None where it can."""
    from . import forward

    if isinstance(forward._forward_kernel, triton.JITFunction):
        return None
    return "the kernels of this process are interpreted (TRITON_INTERPRET=1)"
