"""A Triton driver for a device that does not exist."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver as active


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

    def load(self, binary: bytes):
        """Load a compiled kernel; returns what ``launch`` gets."""
        raise NotImplementedError

    def spilled(self, binary: bytes) -> int:
        """The local memory of a thread, in words, as a GPU's driver reports it."""
        return 0

    def launch(self, source, metadata, grid: tuple[int, int, int], loaded, arguments) -> None:
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

    def get_current_device(self):
        return (self.name, self.capability)  # a key in Triton's caches, unlike any GPU's index

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_device_properties(self, device):
        return {
            "max_shared_mem": self.shared_memory,
            "multiprocessor_count": self.multiprocessors,
            "warpSize": 32,
        }

    def load_binary(self, name, binary, shared, device):
        return self, self.load(binary), 0, self.spilled(binary), 1024

    def launcher_cls(self, source, metadata):
        # A compiled kernel may outlive this driver: launch on the one that is active.
        def launch(x, y, z, stream, loaded, packed, launch_metadata, enter, leave, *arguments):
            active.active.launch(source, metadata, (x, y, z), loaded, arguments)

        return launch
