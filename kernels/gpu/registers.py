"""Options of a launch that decide about registers, chosen so that a kernel spills least.

By default the assembler spills a few values to fit one more program on a multiprocessor. With the
maximum of registers it may load the weights of many products ahead, and spill more. Which happens
depends on the kernel and on the assembler's version. So a kernel that spills is compiled again: one
with explicit layouts, which has all registers that there are, with fewer matrices in them; one in
Triton's language, or whose matrices fit nowhere else, with other limits of registers per thread.
"""

from __future__ import annotations

from typing import Any

import triton
from torch import Tensor

from ... import once

# Registers of a multiprocessor, and the maximum per thread.
_ALL, MOST = 65536, 255
# Limits to try until nothing spills; None leaves the number to the assembler.
LIMITS = (None, MOST, 248, 232, 224, 192)

_chosen: dict[tuple, dict] = {}


def limit(registers: int, warps: int) -> dict:
    """The launch option for a limit per thread, at most what this number of warps can have."""
    return {"maxnreg": min(_ALL // (32 * warps), registers)}


def options(constants: dict) -> list[dict]:
    """What to try for a launch, the first choice first."""
    held = constants.get("HELD", ())
    if len(held) > 1 or (held and not constants["ALONE"]):
        return [{"HELD": choice} for choice in held]
    if "maxnreg" in constants and not held:
        return [{}]
    warps = constants["num_warps"]
    if held:
        return [{"HELD": held[0]} | limit(number, warps) for number in LIMITS[1:]]
    return [{} if number is None else limit(number, warps) for number in LIMITS]


def fewest_spills(
    kernel: Any, grid: tuple[int, int, int], arguments: list, constants: dict
) -> dict:
    """The one of ``options`` with which a kernel spills least; the first of equals.

    Compiles at the first call; a later call takes about 10 us.

    Args:
        kernel, grid, arguments, constants: of the launch.
    """
    tried = options(constants)
    if len(tried) == 1:
        return tried[0]
    driver: Any = triton.runtime.driver.active
    device = driver.get_current_device()
    key = (device, kernel, signature(arguments), tuple(constants.values()))
    if key not in _chosen:
        with once.making():
            if key not in _chosen:
                _chosen[key] = _choose(kernel, grid, arguments, constants, tried)
    return _chosen[key]


def _choose(kernel, grid, arguments, constants, tried):
    found = {}
    for option in tried:
        compiled = kernel.warmup(*arguments, grid=grid, **(constants | option))
        compiled._init_handles()  # load it: only the driver knows the local memory
        found.setdefault(compiled.n_spills, option)
        if compiled.n_spills == 0:
            break
    return found[min(found)]


def signature(argument: object) -> object:
    """What the machine code depends on in a launch argument; numbers are not specialized."""
    if isinstance(argument, Tensor):
        return argument.dtype
    if isinstance(argument, (tuple, list)):
        return tuple(map(signature, argument))
    return type(argument)
