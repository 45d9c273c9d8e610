"""A device for Triton: what is launched inside ``with simulate(90):`` runs in the simulator.

Triton itself binds, specializes and compiles the launch, as for a GPU of that compute capability,
up to the PTX; the simulator takes the PTX instead of the assembler, and torch CPU tensors for the
GPU's.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver as active

from . import ptx
from .chips import CHIPS, Chip
from .counters import Counters
from .errors import Findings, LaunchError
from .findings import Report
from .machine import GLOBAL_BASE, Machine, Options
from .memory import Memory, Region
from .schedulers import scheduler

# Between tensors, and before the first: who strays finds nothing allocated.
_REDZONE = 4096
# What new memory is filled with: NaN as bf16, fp16, fp32 and fp64.
_POISON = 0xFFF5


@dataclass
class Device:
    """The simulated device, and what was launched on it.

    Args:
        capability: 80 for 8.0, and so on.
        options: how launches are executed.
        strict: raise Findings after a launch with findings; else they are only kept.
        change: see ``simulate``.
        report: the findings of all launches.
        counters: of all launches, summed.
        launches: the name and the counters of each, in order.
        fresh: addresses of memory that was new inside the ``with``.
    """

    capability: int
    options: Options
    strict: bool = True
    change: object = None
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
            grid: CTAs along x, and y, and z.
            arguments: by name, in the order of the parameters: CPU tensors and numbers.
            shared_bytes: of a CTA, at address 0, which ``global_smem`` names.
        """
        grid = (*grid, 1, 1)[:3]
        return run(self, _parsed(text), grid, list(arguments.items()), shared_bytes)


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
    change=None,
    stretches: int = 10_000_000,
    trace=None,
) -> Iterator[Device]:
    """Triton kernels launched inside the ``with`` are executed here, on torch CPU tensors.

    Args:
        capability: the GPU: 80, 86, 89 or 90.
        schedule: "lockstep", the fastest; "random"; or "run-ahead", which runs one CTA as far ahead
            as its synchronization lets it.
        seed: of the schedule.
        races: look for races.
        count: count bytes, sectors and bank conflicts.
        resident: how many CTAs fit on the chip at once; default: as many as its shared memory and
            threads allow.
        strict: raise on findings.
        change: a function of the program that returns the one to run, to plant a mistake.
        stretches: give up after so many stretches of code.
        trace: is told of every access and barrier, see ``mutations.Trace``.

    Raises:
        Findings: a launch had races, read what nothing had written, and so on.
        MemoryFault, Deadlock, LaunchError, KernelTrap, Unsupported: a launch could not go on.
        ValueError: no such capability or schedule.
    """
    if capability not in CHIPS:
        raise ValueError(f"capability: expected one of {sorted(CHIPS)}, got {capability!r}")
    scheduler(schedule, seed)
    options = Options(schedule, seed, races, count, resident, stretches, trace)
    device = Device(capability, options, strict, change)
    before = active._active
    active.set_active(_Driver(device))
    try:
        with triton.knobs.cache.scope(), triton.knobs.runtime.scope(), _new_memory(device):
            # The assembler is left out, so what is cached must not be taken for a GPU's.
            triton.knobs.cache.dir = f"{triton.knobs.cache.dir}/simulator"
            triton.knobs.runtime.add_stages_inspection_hook = _stop_at_ptx
            yield device
    finally:
        active._active = before


def _stop_at_ptx(backend=None, stages=None, *_):
    """Triton's hook: a PTX is all the simulator needs of a binary."""
    if stages is None:
        return "simulator", "simulator"
    stages["cubin"] = lambda source, metadata: source.encode()
    return None


class _Driver:
    """What Triton asks of a driver."""

    def __init__(self, device: Device):
        self.device = device
        self.utils = self

    def get_current_device(self):
        return ("simulator", self.device.capability)  # a key of Triton's, apart from any GPU's

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", self.device.capability, 32)

    def get_device_properties(self, device):
        chip = self.device.chip
        return {
            "max_shared_mem": chip.shared_memory,
            "multiprocessor_count": chip.multiprocessors,
            "warpSize": 32,
        }

    def load_binary(self, name, binary, shared, device):
        return None, _parsed(binary.decode()), 0, 0, 1024

    def launcher_cls(self, source, metadata):
        # The kernel outlives this driver: whichever is active then has the device.
        def launch(x, y, z, stream, program, packed, launch_metadata, enter, leave, *arguments):
            active.active.launch(source, metadata, (x, y, z), program, arguments)

        return launch

    def launch(self, source, metadata, grid, program, arguments) -> None:
        named = _flatten(source.signature, arguments)
        run(
            self.device,
            program,
            grid,
            named,
            metadata.shared,
            cooperative=metadata.launch_cooperative_grid,
        )


@functools.lru_cache(maxsize=64)
def _parsed(text: str) -> ptx.Program:
    return ptx.parse(text)


def _flatten(signature: dict, arguments) -> list[tuple[str, object]]:
    """Names and values of what is passed at run time: no constants, tuples taken apart."""
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


def run(
    device: Device,
    program: ptx.Program,
    grid: tuple[int, int, int],
    arguments: list[tuple[str, object]],
    shared_bytes: int,
    cooperative: bool = False,
) -> Machine:
    """Execute a program on named arguments: CPU tensors, which are read and written, and numbers.

    Raises:
        see ``simulate``.
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
    memory, bits, places = _place(program, arguments, device.fresh)
    options = Options(**{**vars(options), "resident": fit if fit < ctas else None})
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
    for storage, begin, end in places:
        storage[:] = torch.from_numpy(memory.bytes[begin:end])
    if device.strict and machine.report:
        raise Findings(f"{program.name}:\n{machine.report}")
    return machine


def _place(program, arguments, fresh):
    """Global memory with the tensors in it, the bits of each parameter, and where to copy back."""
    written = ptx.written_parameters(program)
    storages: dict[int, list] = {}
    for k, (name, value) in enumerate(arguments):
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            entry = storages.setdefault(storage.data_ptr(), [storage, name, 0, False])
            entry[2] = max(entry[2], value.element_size())
            entry[3] |= k in written
    begin, regions = _REDZONE, {}
    for place, (storage, name, itemsize, is_written) in storages.items():
        end = begin + storage.nbytes()
        regions[place] = (Region(name, begin, end, itemsize, is_written), storage)
        begin = -(-end // 256) * 256 + _REDZONE
    memory = Memory("global", begin, GLOBAL_BASE)
    places = []
    for place, (region, storage) in regions.items():
        content = torch.empty(0, dtype=torch.uint8).set_(storage)
        memory.add(region, content.numpy())
        if place in fresh:
            _forget_poison(memory, region)
        if region.written:
            places.append((content, region.begin, region.end))
    bits = []
    for _, value in arguments:
        if isinstance(value, Tensor):
            offset = value.data_ptr() - value.untyped_storage().data_ptr()
            begin = regions[value.untyped_storage().data_ptr()][0].begin
            bits.append(GLOBAL_BASE + begin + offset)
        elif isinstance(value, float):
            bits.append(int(np.float32(value).view(np.uint32)))
        else:
            bits.append(int(value or 0))
    # What follows Triton's own parameters: scratch memory that our kernels do not ask for.
    bits += [0] * (len(program.parameters) - len(bits))
    return memory, bits, places


def _forget_poison(memory: Memory, region: Region) -> None:
    """Elements that still are the filling of new memory were never written."""
    size = max(2, region.itemsize)
    end = region.begin + (region.end - region.begin) // size * size
    words = memory.bytes[region.begin : end].view(np.uint16).reshape(-1, size // 2)
    status = memory.status[region.begin : end].reshape(-1, size)
    status[(words == _POISON).all(1)] = 1


@contextlib.contextmanager
def _new_memory(device: Device):
    """``torch.empty`` and its kin mark what they return as not written."""

    def marking(make):
        @functools.wraps(make)
        def wrapped(*args, **kwargs):
            tensor = make(*args, **kwargs)
            # Not the stand-ins of tracing, which have no memory.
            if type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.numel():
                storage = tensor.untyped_storage()
                _fill(storage)
                device.fresh.add(storage.data_ptr())
            return tensor

        return wrapped

    with contextlib.ExitStack() as stack:
        for owner, name in (
            (torch, "empty"),
            (torch, "empty_like"),
            (torch, "empty_strided"),
            (Tensor, "new_empty"),
        ):
            stack.enter_context(mock.patch.object(owner, name, marking(getattr(owner, name))))
        yield


def _fill(storage) -> None:
    if storage.nbytes() % 2 == 0:
        words = torch.tensor([], dtype=torch.uint16).set_(storage)
        words.view(torch.int16).fill_(_POISON - (1 << 16))
