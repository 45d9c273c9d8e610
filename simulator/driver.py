"""What Triton asks of the driver of a device, answered for a device that is not there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver as active


class Driver:
    """Triton binds, specializes and compiles launches for it as for a GPU.

    A subclass says what becomes of a compiled kernel (``load``) and of a launch (``launch``).

    Args:
        name: kernels that Triton keeps for drivers of one name and capability are shared.
        capability: 90 for 9.0.
        shared_memory: bytes that a CTA may use; Triton refuses launches that ask for more.
        multiprocessors: how many.
    """

    def __init__(self, name: str, capability: int, shared_memory: int, multiprocessors: int):
        self.name, self.capability = name, capability
        self.shared_memory, self.multiprocessors = shared_memory, multiprocessors
        self.utils = self

    def load(self, binary: bytes):
        """What a launch is given of the compiled kernel."""
        raise NotImplementedError

    def spilled(self, binary: bytes) -> int:
        """Words of local memory of a thread, as the driver of a GPU knows them of a kernel."""
        return 0

    def launch(self, source, metadata, grid: tuple[int, int, int], loaded, arguments) -> None:
        """A launch, with the arguments as the kernel was called with, constants too."""
        raise NotImplementedError

    @contextlib.contextmanager
    def activated(self) -> Iterator[None]:
        """Triton launches on this device inside the ``with``."""
        before = active._active
        active.set_active(self)
        try:
            yield
        finally:
            active._active = before

    # ---- for Triton

    def get_current_device(self):
        return (self.name, self.capability)  # a key of Triton's, apart from any GPU's number

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
        # The kernel outlives this driver: whichever is active then has the device.
        def launch(x, y, z, stream, loaded, packed, launch_metadata, enter, leave, *arguments):
            active.active.launch(source, metadata, (x, y, z), loaded, arguments)

        return launch
