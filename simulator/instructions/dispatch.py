"""Instructions bound to a machine: each becomes a function of (warps, active).

``warps`` is a slice of adjacent warps; ``active`` is (warps, 32), the mask of active lanes, or
None for all. ``arithmetic`` has the pointwise instructions. This module has moves and the dispatch;
memory, exchanges between lanes and the tensor cores have modules of their own.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from ..errors import Unsupported
from ..ptx import SIZE, Instruction, Program
from ..registers import vector
from . import arithmetic, copies, exchange, matrices, transfers

# Instructions that end a stretch; the machine executes them.
_CONTROL = ("bra", "ret", "exit", "trap")
# Instructions that all lanes of a warp execute together.
COLLECTIVE = frozenset((*exchange.BINDERS, *matrices.BINDERS))
# Instructions without effect on results.
_HINTS = ("nop", "nanosleep", "createpolicy", "prefetch", "prefetchu", "discard", "applypriority")

find = functools.cache(arithmetic.find)


class Context:
    """The machine's registers, memory and clocks, which bound instructions share."""

    def __init__(self, machine):
        self.machine, self.registers = machine, machine.registers
        self.copies: list = []  # of cp.async, in flight
        self.engine = None  # of wgmma, see matrices

    def bind(self, instruction: Instruction):
        """A function of (warps, active), or None where there is nothing to do.

        Raises:
            Unsupported: an unknown instruction; the text names it.
        """
        opcode = instruction.opcode
        try:
            if opcode in _CONTROL or opcode in _HINTS or instruction.is_barrier():
                return None
            if _is_of_assertions(instruction):
                return None
            if opcode == "mov":
                return self._move(instruction)
            operation = find(opcode, instruction.modifiers)
            if operation is not None:
                return self._pointwise(instruction, operation)
            for module in (transfers, copies, exchange, matrices):
                if opcode in module.BINDERS:
                    return module.BINDERS[opcode](self, instruction)
        except Unsupported as error:
            raise Unsupported(f"{instruction}: {error}") from None
        raise Unsupported(str(instruction))

    # ---- operands

    def guard(self, instruction: Instruction, warps: slice, active) -> np.ndarray | None:
        """The lanes that execute an instruction, by its guard and the mask; None for all."""
        return self.mask(instruction)(warps, active)

    def mask(self, instruction: Instruction):
        """The same as a function of (warps, active), for instructions that run often."""
        if instruction.guard is None:
            return lambda warps, active: active
        predicate, negated = self.registers.register(instruction.guard, "pred"), instruction.negated

        def taken(warps, active):
            lanes = ~predicate[warps] if negated else predicate[warps]
            return lanes if active is None else lanes & active

        return taken

    def all_lanes(self, instruction: Instruction):
        """The same for instructions that all lanes of a warp must execute together."""
        taken = self.mask(instruction)

        def check(warps, active):
            lanes = taken(warps, active)
            if lanes is not None and not (lanes.all(1) | ~lanes.any(1)).all():
                self.machine.miss(instruction, warps)
            return lanes

        return check

    def target(self, name: str, kind: str):
        """A function (warps, values, lanes) that stores values of a type into a register."""
        if name == "_":
            return lambda warps, values, lanes: None
        width = self.registers.width(name)
        if width is None:
            raise Unsupported(f"destination {name!r}")
        if kind != "pred" and width > SIZE[kind]:  # extended, by the sign if the type is signed
            kind = f"{'s' if kind[0] == 's' else 'u'}{8 * width}"
        register = self.registers.register(name, kind)

        def put(warps, values, lanes):
            if lanes is None:
                register[warps] = values
            else:
                np.copyto(register[warps], values, where=lanes, casting="unsafe")

        return put

    # ---- instructions

    def _pointwise(self, instruction: Instruction, operation):
        names = instruction.operands[0].split("|")
        operands = instruction.operands[1:]
        if len(operands) != len(operation.sources):
            raise Unsupported(f"{len(operands)} sources, {len(operation.sources)} are known")
        if any(text.startswith("!") for text in operands):
            raise Unsupported("a negated source")
        if len(names) < operation.results or any(n != "_" for n in names[operation.results :]):
            raise Unsupported(f"{len(names)} destinations, {operation.results} are known")
        sources = [
            self.registers.operand(text, kind)
            for text, kind in zip(operands, operation.sources, strict=True)
        ]
        puts = [self.target(name, operation.result) for name in names[: operation.results]]
        put, compute, taken = puts[0], operation.compute, self.mask(instruction)
        if len(puts) > 1:

            def run(warps, active):
                values, lanes = (
                    compute(*[source[warps] for source in sources]),
                    taken(warps, active),
                )
                for put, value in zip(puts, values, strict=True):
                    put(warps, value, lanes)

            return run
        return lambda warps, active: put(
            warps, compute(*[source[warps] for source in sources]), taken(warps, active)
        )

    def _move(self, instruction: Instruction):
        """``mov``, also of ``{low, high}`` into a wide register and back."""
        kind = instruction.modifiers[-1]
        if instruction.modifiers != (kind,):
            raise Unsupported("mov with modifiers")
        targets, sources = (vector(operand) for operand in instruction.operands)
        taken = self.mask(instruction)
        if len(targets) == len(sources) == 1:
            put, source = self.target(targets[0], kind), self.registers.operand(sources[0], kind)
            return lambda warps, active: put(warps, source[warps], taken(warps, active))
        parts = max(len(targets), len(sources))
        bits = 8 * SIZE[kind] // parts
        whole, part = f"u{8 * SIZE[kind]}", f"u{bits}"
        places = [np.dtype(f"u{SIZE[kind]}").type(bits * k) for k in range(parts)]
        if len(targets) > 1:
            source = self.registers.operand(sources[0], whole)
            puts = [self.target(name, part) for name in targets]

            def unpack(warps, active):
                value, lanes = source[warps], taken(warps, active)
                for put, place in zip(puts, places, strict=True):
                    put(warps, (value >> place).astype(f"u{bits // 8}"), lanes)

            return unpack
        put = self.target(targets[0], whole)
        halves = [self.registers.operand(name, part) for name in sources]

        def pack(warps, active):
            value = 0
            for half, place in zip(halves, places, strict=True):
                value = value | (half[warps].astype(f"u{SIZE[kind]}") << place)
            put(warps, value, taken(warps, active))

        return pack

    def barrier(
        self, instruction: Instruction, warps: slice, threads: int
    ) -> tuple[bool, int, int]:
        """(whether the warps wait there, the number of the barrier, how many threads meet)."""
        kinds = [k for k in instruction.modifiers if k not in ("cta", "aligned")]
        if kinds not in (["sync"], ["arrive"]):
            raise Unsupported(str(instruction))
        values = []
        for operand in instruction.operands:
            value = np.unique(self.registers.operand(operand, "u32")[warps])
            if value.size != 1:
                raise Unsupported(f"{instruction}: a barrier that differs by warp")
            values.append(int(value[0]))
        return kinds == ["sync"], values[0], values[1] if len(values) > 1 else threads


def _is_of_assertions(instruction: Instruction) -> bool:
    """Whether it calls ``__assertfail``, the only function supported, or stores its arguments."""
    if instruction.opcode == "call":
        return "__assertfail" in instruction.operands
    return instruction.opcode == "st" and "param" in instruction.modifiers


def smallest_access(program: Program, space: str) -> int:
    """Bytes of the narrowest access to an address space."""
    sizes = [8]
    for i in program.instructions:
        if i.opcode in ("ld", "st", "atom", "red") and re.match(space, space_of(i)):
            sizes.append(SIZE[i.modifiers[-1]])
        elif i.opcode in ("ldmatrix", "stmatrix", "wgmma", "cp"):
            sizes.append(4)
    return max(1, min(sizes))


def space_of(instruction: Instruction) -> str:
    """ "global", "shared" or "", by the modifiers."""
    for kind in instruction.modifiers:
        if kind.split("::")[0] in ("global", "shared"):
            return kind.split("::")[0]
    return ""
