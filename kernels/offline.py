"""Compile a launch for a GPU that is not here, and look at what came out.

``triton.compile`` needs no GPU, but it checks neither shared memory nor spills: ``audit`` reads
them from the cubin with the tools that Triton ships.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import backward, forward

_TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
}


@dataclass(frozen=True)
class Audit:
    """What the machine code of a kernel uses.

    Args:
        registers: per thread.
        spills: instructions that read or write local memory.
        shared: bytes of shared memory.
        tensor_core: tensor-core instructions.
        exits: 0 where the kernel is nothing but a trap.
    """

    registers: int
    spills: int
    shared: int
    tensor_core: int
    exits: int


@contextmanager
def recorded() -> Iterator[list]:
    """Launches inside the ``with`` are not run, but put in a list.

    Yields:
        The list, of (kernel, grid, arguments, constants).
    """
    launches = []

    def record(kernel, grid, arguments, constants):
        launches.append((kernel, grid, arguments, dict(constants)))

    with mock.patch.object(forward, "start", record), mock.patch.object(backward, "start", record):
        yield launches


def compile_launch(kernel, arguments: list, constants: dict, capability: int):
    """Compile one recorded launch for compute capability ``capability`` (90 for 9.0).

    Returns:
        Triton's compiled kernel, with ``asm["ptx"]``, ``asm["cubin"]`` and ``metadata.shared``.
    """
    options = {name: constants[name] for name in ("num_warps", "num_stages")}
    names = kernel.arg_names
    values = dict(zip(names, arguments, strict=False)) | constants
    signature, constexprs, attributes = {}, {}, {}
    for i, name in enumerate(names):
        value = values[name]
        if name in constants or value is None:
            signature[name], constexprs[(i,)] = "constexpr", value
        elif isinstance(value, tuple):
            signature[name] = tuple("constexpr" if v is None else _TYPES[v.dtype] for v in value)
            constexprs |= {(i, k): v for k, v in enumerate(value) if v is None}
            attributes |= {(i, k): _ALIGNED for k, v in enumerate(value) if v is not None}
        elif isinstance(value, Tensor):
            signature[name], attributes[(i,)] = _TYPES[value.dtype], _ALIGNED
        else:
            signature[name] = "i32"
    source = ASTSource(kernel, signature, constexprs, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


# What Triton learns from the addresses at run time: PyTorch's tensors start at multiples of 16.
_ALIGNED = [["tt.divisibility", 16]]


def audit(compiled) -> Audit:
    """Read the machine code of a compiled kernel."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", file.name)
        code = _output(tools / "cuobjdump", "-sass", file.name)
    names = re.findall(
        r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", code, re.MULTILINE
    )

    def count(pattern):
        return sum(bool(re.match(pattern, name)) for name in names)

    return Audit(
        registers=int(re.search(r"REG:(\d+)", usage).group(1)),
        spills=count("LDL|STL"),
        shared=compiled.metadata.shared,
        tensor_core=count("HMMA|HGMMA|DMMA|UTC.*MMA"),
        exits=count("EXIT"),
    )


def _output(*command) -> str:
    return subprocess.run(map(str, command), capture_output=True, text=True, check=True).stdout
