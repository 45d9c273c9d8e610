"""Audit the machine code of kernels: registers, spills, shared memory, tensor-core instructions.

``triton.compile`` needs no GPU, but does not check whether the shared memory fits the chip, whether
registers were spilled, or whether the kernel was reduced to a trap.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass

from fused_rnn.kernels.gpu.offline import Compiled, dump, resources

from . import ptx


@dataclass(frozen=True)
class Audit:
    """The resources that the machine code of a kernel uses.

    Args:
        registers: per thread.
        spills: instructions that read or write local memory.
        shared: bytes of shared memory.
        tensor_core: tensor-core instructions in the machine code.
        expected: tensor-core instructions in the PTX. For float64 the machine code may have several
            for each; otherwise the numbers agree.
        exits: ``EXIT`` instructions; none if the kernel is only a trap.
    """

    registers: int
    spills: int
    shared: int
    tensor_core: int
    expected: int
    exits: int


# The lowest 12 bits of an instruction, from Volta to Blackwell.
_EXIT, _HMMA = 0x94D, 0x23C


def audit(compiled: Compiled) -> Audit:
    """Read the machine code of a kernel with the tools that Triton ships."""
    products = r"^\s*(?:@\S+\s+)?(?:mma\.sync|wgmma\.mma_async|tcgen05\.mma)"
    expected = len(re.findall(products, compiled.ptx, re.M))
    return _sound(compiled, expected) or _disassembled(compiled, expected)


def _sound(compiled, expected) -> Audit | None:
    """The audit of a kernel without a fault, or None where the code must be disassembled.

    A kernel without local memory has no spills, and its instructions can be counted by their
    opcodes. The disassembler would take twice as long as the assembler.
    """
    registers, local = resources(compiled)
    opcodes = _opcodes(compiled.cubin)
    if local or not opcodes[_EXIT] or opcodes[_HMMA] != expected:
        return None
    return Audit(registers, 0, compiled.shared, expected, expected, opcodes[_EXIT])


def _disassembled(compiled, expected) -> Audit:
    text = dump(compiled.cubin, "-sass")
    names = [re.sub(r"^@!?U?P\w+\s+", "", i) for i in _instructions(text)]

    def count(pattern):
        return sum(bool(re.match(pattern, name)) for name in names)

    return Audit(
        registers=int(re.search(r"REG:(\d+)", text).group(1)),
        spills=count("LDL|STL"),
        shared=compiled.shared,
        tensor_core=count("HMMA|HGMMA|DMMA|IMMA|UTC.*MMA"),
        expected=expected,
        exits=count("EXIT"),
    )


def _opcodes(cubin: bytes) -> Counter:
    """How often each opcode stands in the code of a cubin, an ELF file of 64 bits."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    number, names = struct.unpack_from("<HH", cubin, 60)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + 64 * s) for s in range(number)]
    found: Counter = Counter()
    for name, _, _, _, begin, size in sections:
        if cubin.startswith(b".text.", sections[names][4] + name):
            halves = struct.unpack_from(f"<{size // 2}H", cubin, begin)
            found.update(half & 0xFFF for half in halves[::8])
    return found


def _instructions(text):
    return re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", text, re.MULTILINE)


def hoisted_loads(program: ptx.Program, lines: range) -> list[ptx.Instruction]:
    """Find loads from global memory that are in a loop in the source, but in no loop of the PTX.

    The pipeliner hoists loads above the loop and the barriers in it, where their data may not have
    been written yet. Loads of data that the kernel never writes are harmless.

    Args:
        lines: of the loop's body, in the file of the kernel.
    """
    loops = [
        range(program.labels[i.operands[-1]], i.index + 1)
        for i in program.instructions
        if i.opcode == "bra" and program.labels[i.operands[-1]] <= i.index
    ]
    found, matters = [], ptx.reads_what_is_written(program)
    for i in program.instructions:
        loads = i.opcode in ("ld", "cp") and "global" in i.modifiers
        if loads and matters(i) and not any(i.index in loop for loop in loops):
            # The outermost call of "blocks.py:21:19 @[ forward.py:72:77 ]" comes last.
            at = re.findall(r":(\d+):\d+", i.location)
            if at and int(at[-1]) in lines:
                found.append(i)
    return found


def unordered_releases(program: ptx.Program) -> list[tuple[ptx.Instruction, ptx.Instruction]]:
    """Find stores to global memory that reach a release without a barrier of the CTA in between.

    A release orders the stores of its own thread. Without a barrier it does not order those of
    other warps.

    Returns:
        (store, release) of each.
    """
    if program.threads <= 32:
        return []
    code, before = program.instructions, _predecessors(program)
    found = []
    for release in code:
        if "global" not in release.modifiers or not {"release", "acq_rel"} & {*release.modifiers}:
            continue
        seen, waiting = set(), [release.index]
        while waiting:
            for at in before[waiting.pop()] - seen:
                seen.add(at)
                if code[at].opcode == "st" and "global" in code[at].modifiers:
                    found.append((code[at], release))
                if not code[at].is_barrier():
                    waiting.append(at)
    return found


def _predecessors(program: ptx.Program) -> list[set[int]]:
    """The possible predecessors of each instruction."""
    before = [set() for _ in range(len(program.instructions) + 1)]
    for i in program.instructions:
        if i.opcode == "bra":
            before[program.labels[i.operands[-1]]].add(i.index)
        if i.opcode not in ("bra", "ret", "exit", "trap") or i.guard:
            before[i.index + 1].add(i.index)
    return before
