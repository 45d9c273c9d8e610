"""Simulate Triton kernels that are launched inside ``with simulate(90):`` on CPU tensors.

Triton binds, specializes and compiles the launch for a GPU of that compute capability, up to the
PTX. The simulator executes the PTX, instead of the assembler.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import triton
from fused_rnn.kernels.gpu.offline import Driver

from . import host, ptx
from .chips import CHIPS, Chip
from .counters import Counters
from .errors import Findings, LaunchError
from .findings import Report
from .machine import Machine, Options
from .schedulers import scheduler


@dataclass
class Device:
    """A simulated device, with the findings and counters of its launches.

    Args:
        capability: 80 for 8.0, and so on.
        options: how launches are executed.
        strict: raise Findings after a launch with findings; otherwise only keep them.
        change: see ``simulate``.
        report: the findings of all launches.
        counters: the sum over all launches.
        launches: the name and the counters of each, in order.
        fresh: addresses of memory allocated inside the ``with``.
    """

    capability: int
    options: Options
    strict: bool = True
    change: Callable[[ptx.Program], ptx.Program] | None = None
    report: Report = field(default_factory=Report)
    counters: Counters = field(default_factory=Counters)
    launches: list[tuple[str, Counters]] = field(default_factory=list)
    fresh: set = field(default_factory=set)

    @property
    def chip(self) -> Chip:
        return CHIPS[self.capability]

    def run(
        self, text: str, grid: tuple[int, ...], arguments: dict, shared_bytes: int = 0
    ) -> Machine:
        """Execute PTX that did not come from Triton.

        Args:
            grid: CTAs along x, y and z; y and z default to 1.
            arguments: by name, in the order of the parameters: CPU tensors and numbers.
            shared_bytes: of a CTA, at address 0, which ``global_smem`` names.
        """
        grid = (*grid, 1, 1)[:3]
        return _run(self, _parsed(text), grid, list(arguments.items()), shared_bytes)


@contextlib.contextmanager
def simulate(
    capability: int,
    *,
    schedule: str = "lockstep",
    seed: int = 0,
    races: bool = True,
    count: bool = True,
    resident: int | None = None,
    strict: bool = True,
    change: Callable[[ptx.Program], ptx.Program] | None = None,
    stretches: int = 10_000_000,
    trace=None,
) -> Iterator[Device]:
    """Execute Triton kernels launched inside the ``with`` on the CPU, on torch CPU tensors.

    Args:
        capability: the GPU: 80, 86, 89 or 90.
        schedule: "lockstep", the fastest; "random"; or "run-ahead", which runs one CTA as far ahead
            as its synchronization lets it.
        seed: of the schedule.
        races: look for races.
        count: count bytes, sectors and bank conflicts.
        resident: the maximum number of resident CTAs; default: as many as shared memory and
            threads allow.
        strict: raise on findings.
        change: a function of the program that returns the one to run, to plant a mistake.
        stretches: give up after this number of stretches of code.
        trace: receives every access and barrier, see ``mutations.Trace``.

    Raises:
        Findings: a launch had races, read uninitialized memory, and so on.
        MemoryFault, Deadlock, LaunchError, KernelTrap, Unsupported: a launch could not continue.
        ValueError: no such capability or schedule.
    """
    if capability not in CHIPS:
        raise ValueError(f"capability: expected one of {sorted(CHIPS)}, got {capability!r}")
    scheduler(schedule, seed)
    options = Options(schedule, seed, races, count, resident, stretches, trace)
    device = Device(capability, options, strict, change)
    with (
        _Simulator(device).activated(),
        triton.knobs.cache.scope(),
        triton.knobs.runtime.scope(),
        host.new_memory(device.fresh),
    ):
        # There is no assembler, so the cache must be separate from a GPU's.
        triton.knobs.cache.dir = f"{triton.knobs.cache.dir}/simulator"
        triton.knobs.runtime.add_stages_inspection_hook = _stop_at_ptx
        yield device


def _stop_at_ptx(backend=None, stages=None, *_):
    """Triton's hook for the stages of a compilation, which ends with the PTX."""
    if stages is None:
        return "simulator", "simulator"
    stages["cubin"] = lambda source, metadata: source.encode()
    return None


class _Simulator(Driver):
    """Runs launches in the simulator."""

    def __init__(self, device: Device):
        chip = device.chip
        super().__init__("simulator", device.capability, chip.shared_memory, chip.multiprocessors)
        self.device = device

    def load(self, binary):
        return _parsed(binary.decode())

    def launch(self, source, metadata, grid, loaded, arguments):
        _run(
            self.device,
            loaded,
            grid,
            _flatten(source.signature, arguments),
            metadata.shared,
            cooperative=metadata.launch_cooperative_grid,
        )


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> ptx.Program:
    return ptx.parse(text)


def _flatten(signature: dict, arguments) -> list[tuple[str, object]]:
    """Names and values of run-time arguments: without constants, tuples flattened."""
    named = []

    def add(name, kind, value):
        if isinstance(kind, tuple):
            for k, (inner, part) in enumerate(zip(kind, value, strict=True)):
                add(f"{name}.{k}", inner, part)
        elif kind != "constexpr":
            named.append((name, value))

    for (name, kind), value in zip(signature.items(), arguments, strict=True):
        add(name, kind, value)
    return named


def _run(
    device: Device,
    program: ptx.Program,
    grid: tuple[int, int, int],
    arguments: list[tuple[str, object]],
    shared_bytes: int,
    cooperative: bool = False,
) -> Machine:
    """Execute a program on named arguments: CPU tensors, which are read and written, and numbers.

    Raises:
        The errors of ``simulate``.
    """
    if device.change is not None:
        program = device.change(program)
    options, chip = device.options, device.chip
    fit = options.resident or chip.resident(program.threads, shared_bytes)
    ctas = int(np.prod(grid))
    if cooperative and ctas > fit:
        raise LaunchError(
            f"{program.name}: cooperative grid: {ctas} CTAs, of which {fit} fit on the {chip.name}"
        )
    memory, bits = host.place(program, arguments, device.fresh)
    options = dataclasses.replace(options, resident=fit if fit < ctas else None)
    machine = Machine(
        program,
        grid,
        bits,
        shared_bytes,
        memory,
        scheduler(options.schedule, options.seed),
        options,
    )
    try:
        machine.run()
    finally:
        device.report.extend(machine.report)
        device.counters = device.counters + machine.counters
        device.launches.append((program.name, machine.counters))
    host.take_back(memory, arguments)
    if device.strict and machine.report:
        raise Findings(f"{program.name}:\n{machine.report}")
    return machine
