"""The machine code of a kernel, with the assembler's control codes.

Since Volta an instruction has 128 bits, of which 21 are for the scheduler: the cycles until the
warp's next instruction, the scoreboards that it sets and those it waits for (Jia et al. 2018,
arXiv 1804.06826). Latencies that are fixed stand in the former, the others in the latter.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fused_rnn.kernels.gpu.offline import dump

from .errors import Unsupported

# Where the scheduler's bits begin in the upper half of an instruction, and their layout there.
_CONTROL = 41
NO_BOARD = 7

_LINE = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s+/\* 0x[0-9a-f]{16} \*/\s*\n"
    r"\s+/\* 0x([0-9a-f]{16}) \*/",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Instruction:
    """An instruction of a warp.

    Args:
        text: as the disassembler writes it.
        opcode: with its modifiers, without the guard: "LDG.E.128".
        operands: the rest.
        stall: cycles until the warp may issue its next instruction.
        sets: the scoreboard that is set until the result is there, or ``NO_BOARD``.
        holds: the scoreboard that is set until the operands are read, or ``NO_BOARD``.
        waits: the scoreboards that must be clear before it is issued.
        target: the index of the instruction that it jumps to, if it is a branch.
        polls: whether it is in a loop that waits, inside of the loop that is timed.
    """

    text: str
    opcode: str
    operands: str
    stall: int
    sets: int
    holds: int
    waits: tuple[int, ...]
    target: int | None = None
    polls: bool = False

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    def is_product(self) -> bool:
        """Whether it runs on the tensor cores."""
        return self.name.endswith("MMA")


@functools.lru_cache(maxsize=64)
def read(cubin: bytes) -> tuple[Instruction, ...]:
    """Disassemble a kernel.

    Args:
        cubin: of one kernel, as Triton or ptxas make it.
    """
    lines = _LINE.findall(dump(cubin, "-sass"))
    places = {int(address, 16): index for index, (address, _, _) in enumerate(lines)}
    code = []
    for _, text, bits in lines:
        control = int(bits, 16) >> _CONTROL
        opcode, _, operands = re.sub(r"^@!?U?P\w+\s+", "", text).partition(" ")
        jump = re.search(r"0x[0-9a-f]+", operands) if opcode.startswith("BRA") else None
        code.append(
            Instruction(
                text,
                opcode,
                operands,
                stall=control & 15,
                sets=control >> 5 & 7,
                holds=control >> 8 & 7,
                waits=tuple(b for b in range(6) if control >> 11 >> b & 1),
                target=places.get(int(jump[0], 16)) if jump else None,
            )
        )
    return tuple(code)


def loops(code: Sequence[Instruction]) -> list[range]:
    """The loops, each from the target of a branch backwards to this branch, longest first."""
    found = [
        range(x.target, place + 1)
        for place, x in enumerate(code)
        if x.target is not None and x.target < place
    ]
    return sorted(found, key=len, reverse=True)


def time_loop(code: Sequence[Instruction], inner: int = 1) -> list[Instruction]:
    """One pass of the longest loop with a product in it, or of the longest loop if none has one.

    The pass goes straight through: no branch inside it is taken, except that loops inside it that
    have a product are passed ``inner`` times. Other loops inside it wait for something, by
    assumption; they are passed once, and their instructions are marked.

    Raises:
        Unsupported: the kernel has no loop.
    """
    found = loops(code)
    if not found:
        raise Unsupported("a kernel without a loop has no pass to time")
    multiply = [loop for loop in found if any(code[i].is_product() for i in loop)]
    whole = (multiply or found)[0]
    inside = [a for a in found if whole[0] <= a[0] and a[-1] < whole[-1]]
    polling = {i for loop in inside if loop not in multiply for i in loop}
    # Longest first: of loops inside each other the outermost, with what is in it once per pass.
    repeated: list[range] = []
    for loop in inside:
        if loop in multiply and not any(loop[0] in other for other in repeated):
            repeated.append(loop)
    places: list[int] = []
    begin = whole[0]
    for loop in sorted(repeated, key=lambda a: a[0]):
        places += [*range(begin, loop[0]), *list(loop) * inner]
        begin = loop[-1] + 1
    places += range(begin, whole[-1] + 1)
    return [replace(code[i], polls=i in polling) for i in places]


def products_before(body: Sequence[Instruction]) -> list[tuple[int, ...]]:
    """For each instruction of a loop, the products whose results it reads, as places in the loop.

    The assembler leaves the wait for a product to the hardware: no scoreboard shows it. A place
    that is not before the instruction is of the previous pass.
    """
    writer: dict[int, int] = {}
    result: list[tuple[int, ...]] = []
    for _ in range(2):  # the second pass knows what the first one wrote
        result = []
        for place, x in enumerate(body):
            written, used = _registers(x)
            result.append(tuple(sorted({writer[r] for r in used if r in writer})))
            for register in written:
                writer.pop(register, None)
                if x.is_product():
                    writer[register] = place
    return result


def _registers(x: Instruction) -> tuple[set[int], set[int]]:
    """The registers that an instruction writes and reads."""
    wide = 4 if ".128" in x.opcode else 2 if ".64" in x.opcode else 1
    if x.name in ("LDSM", "STSM"):
        wide = int(x.opcode[-1]) if x.opcode[-1] in "24" else 1
    values = [wide] * 4  # of each operand, the result first
    if x.is_product():
        # A short product has half as many values of its first and second matrix.
        short = ".1684" in x.opcode or (".1688" in x.opcode and "TF32" not in x.opcode)
        values = [4, 2, 1, 4] if short else [4, 4, 2, 4]
    elif x.name.startswith("D"):
        values = [2] * 4
    elif ".WIDE" in x.opcode:
        values = [2, 1, 1, 2]
    written, used = set(), set()
    for k, operand in enumerate(x.operands.split(",")):
        named = re.search(r"(?<!U)R(\d+)", operand)
        if named:
            # Addresses of global memory have two registers.
            count = 2 if "[" in operand else values[min(k, 3)]
            registers = range(int(named[1]), int(named[1]) + count)
            result = k == 0 and "[" not in operand and x.name not in ("BAR", "R2UR")
            (written if result else used).update(registers)
    return written, used
