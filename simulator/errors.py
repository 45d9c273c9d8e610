"""Exceptions of the simulator. Findings about a kernel are in findings.py."""


class SimulatorError(Exception):
    """The base of all errors of the simulator."""


class Unsupported(SimulatorError):
    """The PTX has an instruction, or a modifier of one, that the simulator does not model."""


class MemoryFault(SimulatorError):
    """An access outside of all tensors, or a misaligned one: it aborts the launch on a GPU."""


class Deadlock(SimulatorError):
    """Warps, or programs, wait for something that can no longer happen."""


class LaunchError(SimulatorError):
    """The chip would refuse the launch: a cooperative grid that is not co-resident, and so on."""


class KernelTrap(SimulatorError):
    """The kernel executed ``trap``."""


class Findings(SimulatorError):
    """The kernel ran to its end, but had races or other findings."""
