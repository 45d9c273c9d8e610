"""Execute and examine Triton kernels without a GPU; see docs/simulator.md."""

from .device import Device, simulate
from .errors import (
    Deadlock,
    Findings,
    KernelTrap,
    LaunchError,
    MemoryFault,
    SimulatorError,
    Unsupported,
)

__all__ = [
    "Deadlock",
    "Device",
    "Findings",
    "KernelTrap",
    "LaunchError",
    "MemoryFault",
    "SimulatorError",
    "Unsupported",
    "simulate",
]
