"""Parse PTX text: instructions in order, registers with their types, targets of labels.

Reads the output of Triton's backend: one ``.visible .entry``, registers declared at its head, and
``.loc`` lines whose comment has the source line and the calls through which it was inlined.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass

from .errors import Unsupported

# Bytes of a PTX type.
SIZE = {
    **dict.fromkeys(("b8", "u8", "s8"), 1),
    **dict.fromkeys(("b16", "u16", "s16", "f16", "bf16"), 2),
    **dict.fromkeys(("b32", "u32", "s32", "f32", "f16x2", "bf16x2", "tf32"), 4),
    **dict.fromkeys(("b64", "u64", "s64", "f64"), 8),
    "b128": 16,
}

SCOPES = ("cta", "cluster", "gpu", "sys")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Args:
        index: its place in the program, which is also its address.
        opcode: up to the first dot.
        modifiers: what follows, dot by dot.
        operands: as written; a vector stays one operand, "{%r1, %r2}".
        guard: the register of ``@%p`` or None; ``negated`` for ``@!%p``.
        line: its number in the PTX.
        location: its place in the source, "kernel.py:12:8 @[ kernel.py:30:4 ]".
        guesses: whether it is a weak load of the value that a compare-and-swap then checks. The
            compiler emulates atomics that the GPU lacks by such pairs; the race is harmless.
    """

    index: int
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str | None
    negated: bool
    line: int
    location: str
    guesses: bool = False

    @property
    def name(self) -> str:
        return ".".join((self.opcode, *self.modifiers))

    def __str__(self):
        return f"{self.name} at {self.location or f'line {self.line} of the PTX'}"

    def is_barrier(self) -> bool:
        """Whether the warps of a CTA meet here."""
        return self.opcode in ("bar", "barrier") and "warp" not in self.modifiers

    def is_strong(self) -> bool:
        """Whether it is a strong access in the memory model, or a fence."""
        if self.opcode in ("atom", "red") or self.guesses:
            return True
        strong = {"acquire", "release", "relaxed", "volatile"}
        return self.opcode in ("ld", "st") and not strong.isdisjoint(self.modifiers)

    def scope(self) -> str:
        """The scope of a strong access, explicit or by default."""
        if self.guesses or "volatile" in self.modifiers:
            return "sys"
        return next((kind for kind in self.modifiers if kind in SCOPES), "gpu")


@dataclass(frozen=True)
class Program:
    """A kernel.

    Args:
        parameters: the type of each, in order.
        threads: of a CTA.
        registers: the type of each, "pred", "b32", ...
        labels: the index of the instruction that follows each.
        strings: the text of each constant: messages of assertions.
    """

    name: str
    parameters: tuple[str, ...]
    threads: int
    registers: dict[str, str]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]
    strings: dict[str, str] = dataclasses.field(default_factory=dict)

    def without(self, index: int) -> Program:
        """The program with one instruction made a no-op; all addresses stay."""
        return self.with_changed(index, opcode="nop", modifiers=(), operands=(), guard=None)

    def with_changed(self, index: int, **changes) -> Program:
        changed = dataclasses.replace(self.instructions[index], **changes)
        instructions = (*self.instructions[:index], changed, *self.instructions[index + 1 :])
        return dataclasses.replace(self, instructions=instructions)


def parse(text: str) -> Program:
    """Read the PTX of one kernel.

    Raises:
        Unsupported: a device function besides the entry, or a statement of unknown form.
    """
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    entry = re.search(r"\.visible\s+\.entry\s+([\w$]+)\s*\((.*?)\)", text, re.DOTALL)
    if entry is None:
        raise Unsupported("PTX without a .visible .entry")
    if re.search(r"^\s*(\.visible\s+|\.weak\s+)?\.func\b", text, re.MULTILINE):
        raise Unsupported("PTX with a device function: .func")
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", text)
    body_at = text.index("{", entry.end())
    registers, instructions, labels = _read_body(
        text[body_at + 1 :].split("\n"), first_line=text.count("\n", 0, body_at) + 1
    )
    return Program(
        entry.group(1),
        tuple(re.findall(r"\.param\s+\.(\w+)", entry.group(2))),
        int(threads.group(1)),
        registers,
        tuple(_with_guesses(instructions)),
        labels,
        _strings(text),
    )


def _strings(text: str) -> dict[str, str]:
    constants = re.findall(r"\.global\s+\.align\s+1\s+\.b8\s+([\w$]+)\[\d+\] = \{([^}]*)\}", text)
    return {
        name: bytes(map(int, numbers.split(","))).rstrip(b"\0").decode(errors="replace")
        for name, numbers in constants
    }


def _with_guesses(instructions: list[Instruction]) -> list[Instruction]:
    """Mark guesses: load and compare-and-swap come from one line, unlike those that users write."""
    swaps = {
        (i.operands[1], i.modifiers[-1], i.location)
        for i in instructions
        if i.opcode == "atom" and "cas" in i.modifiers and i.location
    }
    return [
        dataclasses.replace(i, guesses=True)
        if i.opcode == "ld"
        and not i.is_strong()
        and (i.operands[1], i.modifiers[-1], i.location) in swaps
        else i
        for i in instructions
    ]


def _read_body(lines: list[str], first_line: int):
    registers: dict[str, str] = {}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    at = r"(\d+\s+\d+\s+\d+)"  # file, line, column
    places: dict[str, str] = {}
    location, statement = "", ""
    for number, raw in enumerate(lines, first_line):
        place = re.match(rf"\s*\.loc\s+{at}(?:.*\binlined_at\s+{at})?", raw)
        if place:
            here, caller = (" ".join(p.split()) if p else "" for p in place.groups())
            location = raw.partition("//")[2].strip() or raw.strip()
            # Older LLVMs put the callers into the comment, newer ones into the directive.
            if caller:
                location += f" @[ {places.get(caller, caller)} ]"
            places[here] = location
            continue
        line = raw.partition("//")[0].strip()
        if line.startswith(".section"):
            break
        label = re.fullmatch(r"([\w$]+):", line)
        if label:
            labels[label.group(1)] = len(instructions)
            continue
        statement += " " + line
        while ";" in statement:
            text, _, statement = statement.partition(";")
            text = re.sub(r"^[{}\s]+(?=[.@a-z])", "", text.strip())
            if text.startswith(".reg"):
                registers.update(_declared(text))
            elif text.startswith(".") or text.strip("{} ") == "":
                if not re.match(r"\.(pragma|loc|file|param)|$", text):
                    raise Unsupported(f"line {number} of the PTX: {text}")
            else:
                instructions.append(_instruction(len(instructions), text, number, location))
        if statement.strip() in ("{", "}"):
            statement = ""
    return registers, instructions, labels


def _declared(text: str) -> dict[str, str]:
    """The registers of ``.reg .b32 %r<9>`` or ``.reg .b32 a, b``."""
    kind, names = re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text, re.DOTALL).groups()
    declared = {}
    for name in names.split(","):
        many = re.fullmatch(r"(%?[\w$]+)<(\d+)>", name.strip())
        if many:
            declared |= {f"{many.group(1)}{i}": kind for i in range(int(many.group(2)))}
        else:
            declared[name.strip()] = kind
    return declared


def _instruction(index: int, text: str, line: int, location: str) -> Instruction:
    guard = re.match(r"@(!?)([%\w$]+)\s+", text)
    if guard:
        text = text[guard.end() :]
    name, _, operands = text.partition(" ") if " " in text else text.partition("\t")
    opcode, *modifiers = re.split(r"\.", name.strip())
    # "shared::cta" is one modifier; "::" never occurs in an opcode.
    return Instruction(
        index,
        opcode,
        tuple(modifiers),
        tuple(_split(operands)),
        guard.group(2) if guard else None,
        bool(guard and guard.group(1)),
        line,
        location,
    )


def _split(operands: str) -> list[str]:
    """Split at commas outside of brackets."""
    parts, depth = [""], 0
    for character in operands:
        depth += character in "{[("
        depth -= character in "}])"
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def names_in(operand: str) -> list[str]:
    """The registers of an operand, a vector or an address."""
    return re.findall(r"%?[A-Za-z_$][\w$]*(?:\.[xyz])?", operand)


def unwritten_registers(program: Program) -> frozenset[str]:
    """Registers that are read but never written: the compiler left them undefined."""
    written, read = set(), set()
    for i in program.instructions:
        has_result = i.operands and i.opcode not in ("st", "red", "bra")
        if has_result:
            written.update(names_in(i.operands[0]))
        for operand in i.operands[1:] if has_result else i.operands:
            read.update(names_in(operand))
    return frozenset(program.registers.keys() & read - written)


def written_parameters(program: Program) -> frozenset[int]:
    """The parameters from which the address of a store may be computed.

    Memory that is never stored to cannot have a race, so its accesses need not be tracked.
    """
    _, reached = _origins(program)
    return frozenset(k for k in range(len(program.parameters)) if reached >> k & 1)


def reads_what_is_written(program: Program) -> Callable[[Instruction], bool]:
    """Whether a load may be from memory that the kernel stores to."""
    origins, reached = _origins(program)
    return lambda load: any(
        origins.get(name, 0) & reached for operand in load.operands for name in names_in(operand)
    )


def _origins(program: Program) -> tuple[dict[str, int], int]:
    """The parameters from which each register, and each address of a store, may be computed.

    A set of parameters is a bit mask. Addresses are 64 bits wide, and may pass through
    halves and shared memory.
    """
    shared = "[shared]"  # all of it, as one place
    origins = {  # by name: bit k is set if parameter k may be in it
        f"{program.name}_param_{k}": 1 << k
        for k, kind in enumerate(program.parameters)
        if SIZE[kind] == 8
    }
    flows, stored = [], []
    for i in program.instructions:
        wide = [
            [n for n in names_in(o) if program.registers.get(n) in ("b32", "b64") or n in origins]
            for o in i.operands
        ]
        in_shared = any(kind.startswith("shared") for kind in i.modifiers)
        if in_shared and i.opcode in ("st", "stmatrix"):
            flows.append(([shared], wide[1]))
        elif in_shared and i.opcode in ("ld", "ldmatrix"):
            flows.append((wide[0], [shared]))
        elif i.opcode in ("st", "red") or i.opcode == "atom":
            stored += wide[1 if i.opcode == "atom" else 0]
        elif i.opcode != "ld" or "param" in i.modifiers:  # addresses are not read from tensors
            flows += [(target, source) for target in wide[:1] for source in wide[1:] if source]
    changed = True
    while changed:
        changed = False
        for targets, sources in flows:
            found = 0
            for name in sources:
                found |= origins.get(name, 0)
            for name in targets:
                if found & ~origins.get(name, 0):
                    origins[name] = origins.get(name, 0) | found
                    changed = True
    reached = 0
    for name in stored:
        reached |= origins.get(name, 0)
    return origins, reached
