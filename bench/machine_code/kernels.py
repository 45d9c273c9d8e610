"""Facts about the kernels of a launch, compiled for a GPU that is absent.

Shared by the tests of the machine code, by ``bench.machine_code`` and by ``bench.tune``. Needs
TRITON_INTERPRET=0 before Triton is imported.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import time
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import triton
from fused_rnn.kernels.gpu import launch as kernel_launch
from fused_rnn.kernels.gpu import registers
from fused_rnn.kernels.gpu.offline import Compiled, compiling

from bench.machine_code.launches import launch_both, planned_for
from fused_rnn import Cell
from fused_rnn.plan import chips
from fused_rnn.plan.chips import Launch
from simulator import ptx
from simulator.audit import audit, hoisted_loads, unordered_releases

from .grid import products_of, torch_dtype

# The allowed instructions on local memory. float64, which takes twice the registers, may spill five
# values, with a store and a load each.
MOST_SPILLS = {"bfloat16": 0, "float16": 0, "tf32": 0, "float32": 0, "float64": 10}


# Part of a key: increase it when ``examine`` records something else.
_VERSION = 1


@dataclass(frozen=True)
class Facts:
    """Facts about one compiled kernel.

    Args:
        kernel: its kind, see ``Kernel``.
        registers, spills, shared, tensor_core, expected, exits: see ``simulator.audit.Audit``.
        hoisted: loads of other programs' values that were moved out of the loop over time.
        unordered: stores that reach a release without a barrier.
        multiplies: whether it has a product with a matrix.
        seconds: the time to compile and examine it.
        error: why it could not be compiled; empty otherwise.
    """

    kernel: str
    registers: int = 0
    spills: int = 0
    shared: int = 0
    tensor_core: int = 0
    expected: int = 0
    exits: int = 0
    hoisted: int = 0
    unordered: int = 0
    multiplies: bool = True
    seconds: float = 0.0
    error: str = ""

    def faults(self, dtype: str, capability: int) -> list[str]:
        """Descriptions of all faults."""
        if self.error:
            return [f"does not compile: {self.error}"]
        found, limit = [], chips.chip(divmod(capability, 10)).shared_memory
        if self.exits < 1:
            found.append("only a trap")
        if self.spills > MOST_SPILLS[dtype]:
            found.append(f"{self.spills} spills, {MOST_SPILLS[dtype]} are allowed")
        if self.shared > limit:
            found.append(f"{self.shared} bytes of shared memory, the chip has {limit}")
        wanted = self.multiplies and dtype in ("bfloat16", "float16", "tf32")
        if wanted and not self.tensor_core == self.expected > 0:
            found.append(f"{self.tensor_core} tensor-core instructions, {self.expected} in the PTX")
        if self.hoisted:
            found.append(f"{self.hoisted} loads of what others store stand before the loop")
        if self.unordered:
            found.append(f"{self.unordered} stores reach a release without a barrier")
        return found


@dataclass(frozen=True)
class Kernel:
    """A kernel with the arguments of its launch.

    Args:
        kind: "forward", "backward", or "inference" for a forward that keeps nothing.
    """

    kind: str
    function: triton.JITFunction
    grid: tuple[int, int, int]
    arguments: list
    constants: dict

    def key(self, dtype: str, capability: int) -> str:
        """A digest of everything that the machine code depends on."""
        what = (
            _VERSION, triton.__version__, dtype, capability, self.function.cache_key,
            registers.signature(self.arguments), _plain(sorted(self.constants.items())),
            registers.LIMITS,
        )  # fmt: skip
        return hashlib.sha256(repr(what).encode()).hexdigest()[:24]


def kernels(
    cell: Cell,
    dtype: str,
    H: int,
    launch: Launch,
    T: int = 2,
    save: bool = True,
    capability: int = 90,
) -> list[Kernel]:
    """The distinct kernels of a forward and a backward, without compiling any.

    Args:
        save: False for a forward alone, which keeps nothing for a backward.
        capability: of the chip, whose shared memory decides what an explicit kernel may be
            compiled with instead, if it spills.
    """
    called = {}

    def start(function, grid, arguments, constants):
        kind = "forward" if save else "inference"
        if "backward" in function.__name__:
            kind = "backward"
        kernel = Kernel(kind, function, grid, arguments, constants)
        called.setdefault(kernel.key(dtype, 0), kernel)

    with (
        planned_for(capability, launch),
        mock.patch.object(kernel_launch, "start", start),
        products_of(dtype),
    ):
        launch_both(cell, torch_dtype(dtype), H, T, 1, save, device="meta")
    return list(called.values())


def examine(kernel: Kernel, capabilities: list[int]) -> Iterator[tuple[int, Facts]]:
    """Compile a kernel for each of the chips and examine the code."""
    for capability in capabilities:
        yield capability, _facts(kernel, capability)


def _facts(kernel, capability) -> Facts:
    begin = time.perf_counter()
    try:
        made = compiled(kernel, capability)
        found, program = audit(made), ptx.parse(made.ptx)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        return Facts(kernel.kind, error=text)
    return Facts(
        kernel.kind,
        **dataclasses.asdict(found),
        hoisted=len(hoisted_loads(program, time_loop(kernel.function))),
        unordered=len(unordered_releases(program)),
        multiplies=_multiplies(kernel.constants),
        seconds=round(time.perf_counter() - begin, 1),
    )


def _multiplies(constants) -> bool:
    """Whether a stage of the parts that a launch takes has a matrix that is not fixed."""
    parts, first, last = (constants[name] for name in ("PARTS", "FIRST", "LAST"))
    stages = range(parts[first], parts[last])
    if "EARLY" in constants:
        later = [parts[-1 - p] for p in range(max(first, 1), last)]
        stages = [*(constants["EARLY"] if first == 0 else ()), *later]
    return any(isinstance(constants["MATRICES"][s], int) for s in stages)


def compiled(kernel: Kernel, capability: int) -> Compiled:
    with compiling(capability) as launches:
        kernel_launch.start(kernel.function, kernel.grid, kernel.arguments, kernel.constants)
    return launches[0]


def time_loop(function: triton.JITFunction) -> range:
    """The lines of a kernel's loop over time."""
    source, first = inspect.getsourcelines(function.fn)
    loops = ("in tl.range(begin, end", "for pair in range(")
    begin = next(i for i, line in enumerate(source) if any(loop in line for loop in loops))
    inside = len(source[begin]) - len(source[begin].lstrip())
    end = next(
        i
        for i, line in enumerate(source[begin + 1 :], begin + 1)
        if line.strip() and len(line) - len(line.lstrip()) <= inside
    )
    return range(first + begin + 1, first + end)


def _plain(value):
    """The value as plain data, without addresses."""
    if isinstance(value, (tuple, list)):
        return tuple(map(_plain, value))
    if isinstance(value, triton.JITFunction):
        return value.cache_key
    return value if isinstance(value, (str, bool, int, type(None))) else str(value)
