"""How many registers a thread of a kernel may have.

Left to itself the assembler spills a few values to make room for one more program on a
multiprocessor; allowed all registers, it may load the weights of many products ahead, and spill
more. Which it does, and of which kernel, differs from version to version of it. So a kernel that
spills is compiled again with other limits.
"""

from __future__ import annotations

import triton
from torch import Tensor

from ... import once

# Of a multiprocessor, and the most that a thread can have.
_ALL, MOST = 65536, 255
# What is tried of a kernel until nothing is spilled; None leaves it to the assembler.
LIMITS = (None, MOST, 232, 224, 192)

_chosen: dict[tuple, dict] = {}


def limit(registers: int, warps: int) -> dict:
    """The option of a launch for so many registers per thread, or as many as there are for all."""
    return {"maxnreg": min(_ALL // (32 * warps), registers)}


def fewest_spills(kernel, grid: tuple[int, int, int], arguments: list, constants: dict) -> dict:
    """The option, of LIMITS, with which a kernel spills least; the first of several.

    Compiles at the first call; takes some 10 us at any other.

    Args:
        kernel, grid, arguments, constants: of the launch.
    """
    device = triton.runtime.driver.active.get_current_device()
    key = (device, kernel, signature(arguments), tuple(constants.values()))
    if key not in _chosen:
        with once.making():
            if key not in _chosen:
                _chosen[key] = _choose(kernel, grid, arguments, constants)
    return _chosen[key]


def _choose(kernel, grid, arguments, constants):
    options = {}
    for registers in LIMITS:
        option = {} if registers is None else limit(registers, constants["num_warps"])
        compiled = kernel.warmup(*arguments, grid=grid, **constants, **option)
        compiled._init_handles()  # loads it, since it is the driver who knows of local memory
        options.setdefault(compiled.n_spills, option)
        if compiled.n_spills == 0:
            break
    return options[min(options)]


def signature(argument):
    """What of an argument of a launch the machine code depends on: no number is specialized."""
    if isinstance(argument, Tensor):
        return argument.dtype
    if isinstance(argument, (tuple, list)):
        return tuple(map(signature, argument))
    return type(argument)
