"""Small kernels in PTX, for instructions that Triton does not emit on demand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch
import triton

from simulator import simulate

PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"


def ptx(body: str, parameters: int = 1, threads: int = 64, registers: int = 24) -> str:
    """A kernel with pointers ``p0``, ``p1``, ... in %rd0, %rd1, ..., and tid in %r0, ctaid in %r1.

    Args:
        body: instructions, which may use %r2, %rd8, %f0, %rs0, %p0 and later registers.
    """
    declared = ",\n".join(f"  .param .u64 test_param_{k}" for k in range(parameters))
    loads = "\n".join(f"  ld.param.b64 %rd{k}, [test_param_{k}];" for k in range(parameters))
    return f"""
.version 8.5
.target sm_80
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry test(
{declared}
)
.reqntid {threads}
{{
  .reg .pred %p<{registers}>;
  .reg .b16 %rs<{registers}>;
  .reg .b32 %r<{registers}>;
  .reg .b64 %rd<{registers}>;
{loads}
  mov.u32 %r0, %tid.x;
  mov.u32 %r1, %ctaid.x;
{body}
  ret;
}}
"""


def execute(
    body: str,
    *tensors: torch.Tensor,
    grid: int = 1,
    threads: int = 64,
    shared: int = 4096,
    capability: int = 80,
    **options,
):
    """Run a body on tensors, and return the machine.

    Raises:
        The errors of ``simulate``.
    """
    text = ptx(body, len(tensors), threads)
    with simulate(capability, **options) as device:
        named = {f"p{k}": tensor for k, tensor in enumerate(tensors)}
        return device.run(text, (grid,), named, shared)


def assemble(body: str, folder: Path, capability: int = 80, **options) -> bytes:
    """Make machine code of a body with Triton's assembler.

    Args:
        folder: for its files.
        options: of ``ptx``.
    """
    source, cubin = folder / "test.ptx", folder / "test.cubin"
    source.write_text(ptx(body, **options))
    command = [str(PTXAS), f"-arch=sm_{capability}", str(source), "-o", str(cubin)]
    subprocess.run(command, check=True, capture_output=True)
    return cubin.read_bytes()
