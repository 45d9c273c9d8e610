"""Loads, stores, atomics and fences, and the parts common to all memory accesses."""

from __future__ import annotations

import numpy as np

from ..errors import SimulatorError, Unsupported
from ..findings import Finding
from ..ptx import SCOPES, SIZE, Instruction
from ..registers import DTYPE, address, vector
from ..synchronization import REACH
from .arithmetic import find

_ORDERS = ("relaxed", "acquire", "release", "acq_rel", "volatile")
# Cache operators change no value. "nc" promises that nothing writes, which races.py checks.
_CACHING = ("ca", "cg", "cs", "cv", "lu", "wb", "wt", "nc", "weak", "L1::no_allocate")


class Access:
    """The parts of a memory instruction, all modifiers accounted for.

    Args:
        context: of the machine.
        instruction: whose modifiers are read.
        known: further modifiers, which the caller handles.
    """

    def __init__(self, context, instruction: Instruction, known: tuple[str, ...] = ()):
        self.context, self.machine, self.instruction = context, context.machine, instruction
        kinds = list(instruction.modifiers)
        self.kind = kinds.pop() if kinds[-1] in SIZE else None
        self.space = self.order = ""
        self.count = 1
        self.hint = False  # whether there is an operand with a cache policy
        for kind in kinds:
            base = kind.split("::")[0]
            if base in ("global", "shared") and kind in (base, "shared::cta"):
                self.space = base
            elif kind in _ORDERS:
                self.order = kind
            elif kind in SCOPES:
                pass  # Instruction.scope has it
            elif kind in ("v2", "v4", "v8"):
                self.count = int(kind[1:])
            elif kind == "L2::cache_hint":
                self.hint = True
            elif kind not in known and kind not in _CACHING and base not in ("L1", "L2"):
                raise Unsupported(f"modifier .{kind}")
        if instruction.guesses:
            self.order = "relaxed"
        self.reach = REACH[instruction.scope()]
        self.acquires = self.order in ("acquire", "acq_rel")
        self.releases = self.order in ("release", "acq_rel")

    def at(self, operand: str):
        """A function (warps, lanes) -> (byte offsets, the thread of each) of the active lanes.

        Threads are numbered through all CTAs, 32 for each warp.
        """
        base, offset = address(operand)
        machine, threads = self.machine, self.machine.threads
        if self.space == "shared":
            register = self.context.registers.operand(base, "u32")

            def offsets(warps):
                return register[warps].astype(np.int64) + (machine.shared_begin[warps] + offset)

        elif self.space == "global":
            register = self.context.registers.operand(base, "u64")
            shift = np.uint64((offset - machine.memory["global"].base) % (1 << 64))

            def offsets(warps):
                return (register[warps] + shift).astype(np.int64)

        else:
            raise Unsupported("an access without .global or .shared")

        def places(warps, lanes):
            found = offsets(warps)
            shape = (warps.stop - warps.start, 32)
            if found.shape != shape:
                found = np.broadcast_to(found, shape)
            owners = threads[warps]
            if lanes is None:
                return found.ravel(), owners.ravel()
            return found[lanes], owners[lanes]

        return places

    def check(self, offsets, size, owners, write: bool) -> None:
        """Check bounds, alignment, and that shared memory is the CTA's own; count the access."""
        machine, memory = self.machine, self.machine.memory[self.space]
        memory.check(offsets, size, self.instruction)
        warps = owners >> 5
        if self.space == "shared" and offsets.size:
            begin = machine.shared_begin[warps, 0]
            if ((offsets < begin) | (offsets >= begin + machine.shared_stride)).any():
                raise SimulatorError(f"{self.instruction}: the shared memory of another CTA")
        if machine.options.trace is not None:
            machine.options.trace.access(self.space, offsets, size, warps, write)
        if machine.options.count:
            atomic = self.instruction.opcode in ("atom", "red")
            machine.counters.access(memory, offsets, size, warps, write, atomic)

    def read(self, offsets, size, owners, engine: str = "", proxied: bool = False) -> None:
        """Check and record a read; the caller takes the values."""
        self.arrives(offsets, size, owners)
        if self.machine.history:
            self.machine.history[self.space].reads(
                offsets, size, owners, self.instruction, engine, proxied
            )

    def arrives(self, offsets, size, owners) -> None:
        """Check a read except for races: its bounds, and that its bytes were written."""
        self.check(offsets, size, owners, write=False)
        machine, memory = self.machine, self.machine.memory[self.space]
        ready = memory.initialised(offsets, size)
        if not ready.all():
            at = np.flatnonzero(~ready)[0]
            if machine.report.is_new("uninitialised read", self.instruction.index):
                machine.report.append(
                    Finding(
                        "uninitialised read",
                        memory.where(offsets[at]),
                        machine.describe(int(owners[at]) >> 5, self.instruction.index),
                    )
                )

    def write(self, offsets, owners, values, engine: str = "", **issued) -> None:
        """Store (accesses, bytes) values; ``issued`` as ``History.writes`` takes it."""
        size = values.shape[1]
        self.check(offsets, size, owners, write=True)
        machine, memory = self.machine, self.machine.memory[self.space]
        changes = (memory.read_bytes(offsets, size) != values).any(1)
        if self.order:
            self._write_strongly(offsets, owners, values)
        else:
            if machine.history:
                history = machine.history[self.space]
                history.writes(offsets, size, owners, self.instruction, changes, engine, **issued)
                strongly = history.strongly_written(offsets)
                if strongly.any():
                    machine.synchronization.overwritten(self.space, offsets[strongly], size)
            memory.write_bytes(offsets, values)
            if machine.history:
                disagree = (memory.read_bytes(offsets, size) != values).any(1)
                if disagree.any():
                    history.overwritten(offsets, size, owners, self.instruction, disagree)
        if self.space == "global" and changes.any():
            machine.note_change(np.unique(owners >> 5))

    def _write_strongly(self, offsets, owners, values) -> None:
        """Store lane after lane; each element of a vector is a strong write of its own."""
        machine, memory = self.machine, self.machine.memory[self.space]
        if machine.history:
            machine.history[self.space].strong_writes(
                offsets, values.shape[1], owners, self.instruction
            )
        size = values.shape[1] // self.count
        for offset, thread, value in zip(offsets.tolist(), owners.tolist(), values, strict=True):
            for k in range(self.count):
                at, new = offset + k * size, value[k * size : (k + 1) * size]
                old = int.from_bytes(memory.bytes[at : at + size].tobytes(), "little")
                machine.synchronization.store(
                    thread >> 5,
                    (self.space, at),
                    self.reach,
                    size,
                    self.releases,
                    old,
                    int.from_bytes(new.tobytes(), "little"),
                )
                memory.write_bytes(np.array([at]), new[None])

    def load_strongly(self, offsets, owners, values: list[np.ndarray], size: int) -> None:
        """Record strong loads, and replace the values of those that return an older write.

        Args:
            values: for each element of a vector, the newest words.
        """
        machine = self.machine
        for i, (offset, thread) in enumerate(zip(offsets.tolist(), owners.tolist(), strict=True)):
            for k, words in enumerate(values):
                late = machine.synchronization.load(
                    thread >> 5, (self.space, offset + k * size), self.reach, size, self.acquires
                )
                if late is not None:
                    words[i] = late
                    machine.changed = True  # the next load may return a newer one


def _gather(sources, warps, lanes) -> list[np.ndarray]:
    """The values of the active lanes, for each operand."""
    shape = (warps.stop - warps.start, 32)
    values = (np.broadcast_to(source[warps], shape) for source in sources)
    return [v.ravel() if lanes is None else v[lanes] for v in values]


def _spread(values, lanes) -> np.ndarray:
    """(warps, 32) of the values of the active lanes."""
    if lanes is None:
        return values.reshape(-1, 32)
    spread = np.zeros(lanes.shape, values.dtype)
    spread[lanes] = values
    return spread


def _plain(context, instruction: Instruction, values: int, place: int):
    """The parts common to loads and stores; ``values`` and ``place`` number the operands.

    Returns:
        (access, its places, names of the registers, bytes of each).
    """
    access = Access(context, instruction)
    if len(instruction.operands) != 2 + access.hint or access.kind is None:
        raise Unsupported("operands")
    names = vector(instruction.operands[values])
    if len(names) != access.count:
        raise Unsupported("a vector of another length")
    return access, access.at(instruction.operands[place]), names, SIZE[access.kind]


def _load(context, instruction: Instruction):
    if "param" in instruction.modifiers:
        return _load_parameter(context, instruction)
    access, places, names, size = _plain(context, instruction, values=0, place=1)
    kind = access.kind if access.kind[0] == "s" else f"u{8 * size}"
    puts, taken = [context.target(name, kind) for name in names], context.mask(instruction)
    memory, dtype, total = context.machine.memory[access.space], DTYPE[kind], size * len(names)

    def run(warps, active):
        lanes = taken(warps, active)
        offsets, owners = places(warps, lanes)
        access.read(offsets, total, owners)
        values = [memory.read(offsets + k * size, size) for k in range(len(puts))]
        if access.order:
            access.load_strongly(offsets, owners, values, size)
        for put, words in zip(puts, values, strict=True):
            put(warps, _spread(words.view(dtype), lanes), lanes)

    return run


def _load_parameter(context, instruction: Instruction):
    kind = instruction.modifiers[-1]
    if instruction.modifiers != ("param", kind):
        raise Unsupported("ld.param with modifiers")
    kind = kind if kind[0] == "s" else f"u{8 * SIZE[kind]}"
    put = context.target(instruction.operands[0], kind)
    source = context.registers.operand(instruction.operands[1][1:-1].strip(), kind)
    taken = context.mask(instruction)
    return lambda warps, active: put(warps, source[warps], taken(warps, active))


def _store(context, instruction: Instruction):
    access, places, names, size = _plain(context, instruction, values=1, place=0)
    sources = [context.registers.operand(name, f"u{8 * size}") for name in names]
    taken = context.mask(instruction)

    def run(warps, active):
        lanes = taken(warps, active)
        offsets, owners = places(warps, lanes)
        if offsets.size == 0:
            return
        values = np.stack(_gather(sources, warps, lanes), -1)
        access.write(offsets, owners, values.view(np.uint8))

    return run


_COMBINE = {
    "add": lambda old, x: old + x,
    "min": lambda old, x: np.fmin(old, x),
    "max": lambda old, x: np.fmax(old, x),
    "and": lambda old, x: old & x,
    "or": lambda old, x: old | x,
    "xor": lambda old, x: old ^ x,
    "exch": lambda old, x: x,
    "cas": lambda old, compare, x: x if old == compare else old,
    "inc": lambda old, x: old + type(old)(1) if old < x else type(old)(0),
    "dec": lambda old, x: old - type(old)(1) if 0 < old <= x else x,
}


def _atomic(context, instruction: Instruction):
    returns = instruction.opcode == "atom"
    access = Access(context, instruction, known=(*_COMBINE, "noftz"))
    (name,) = [kind for kind in instruction.modifiers if kind in _COMBINE]
    if access.kind not in DTYPE or (name == "cas" and access.count > 1):
        raise Unsupported("an atomic on this type")
    combine, kind = _COMBINE[name], access.kind
    if kind in ("f16", "bf16", "f16x2", "bf16x2"):
        combine = find(name, (kind,)).compute
    operands = instruction.operands[1:] if returns else instruction.operands
    # The sources of each element of a vector; each element is an atomic of its own.
    elements = list(zip(*map(vector, operands[1:]), strict=True))
    names = vector(instruction.operands[0]) if returns else ["_"] * access.count
    if not len(elements) == len(names) == access.count:
        raise Unsupported("a vector of another length")
    sources = [[context.registers.operand(text, kind) for text in texts] for texts in elements]
    puts = [context.target(register, kind) for register in names]
    places, taken = access.at(operands[0]), context.mask(instruction)
    memory = context.machine.memory[access.space]
    size, dtype = SIZE[kind], DTYPE[kind]
    total, words = size * access.count, memory.words[size].view(dtype)
    # A pair of halves is two atomics. Here they are one, since nothing reads only one of them.
    bits = memory.words[size]

    def run(warps, active):
        lanes = taken(warps, active)
        offsets, owners = places(warps, lanes)
        if offsets.size == 0:
            return
        values = [_gather(of_element, warps, lanes) for of_element in sources]
        access.arrives(offsets, total, owners)
        access.check(offsets, total, owners, write=True)
        machine = context.machine
        old = np.empty((access.count, offsets.size), dtype)
        wrote = np.ones(offsets.size, bool)  # a compare-and-swap that fails only reads
        seen = []
        # One lane after the other; a correct kernel does not depend on the order.
        for i, place in enumerate((offsets // size).tolist()):
            for k, of_element in enumerate(values):
                before = words[place + k]
                old[k, i] = before
                was = int(bits[place + k])
                words[place + k] = combine(before, *(v[i] for v in of_element))
                wrote[i] = name != "cas" or before == of_element[0][i]
                seen.append((i, k, was, int(bits[place + k]) if wrote[i] else None))
                if words[place + k] != before:
                    machine.note_change(owners[i : i + 1] >> 5)
        if machine.history:
            history = machine.history[access.space]
            history.strong_writes(offsets[wrote], total, owners[wrote], instruction)
            history.reads(offsets[~wrote], total, owners[~wrote], instruction)
        for i, k, was, now in seen:
            keeps = None
            if returns and now in (None, was):

                def keeps(value, i=i, k=k):
                    before = np.array([value], f"u{size}").view(dtype)[0]
                    return combine(before, *(v[i] for v in values[k])) == before

            late = machine.synchronization.modify(
                int(owners[i]) >> 5,
                (access.space, int(offsets[i]) + k * size),
                access.reach,
                size,
                access.acquires,
                access.releases,
                was,
                now,
                returns,
                keeps,
            )
            if late is not None:
                old[k, i] = np.array([late], f"u{size}").view(dtype)[0]
                machine.changed = True
        for put, value in zip(puts, old, strict=True):
            put(warps, _spread(value, lanes), lanes)

    return run


def _fence(context, instruction: Instruction):
    clocks, index = context.machine.clocks, context.machine.index
    kinds, taken = instruction.modifiers, context.mask(instruction)
    if kinds in (
        ("proxy", "async"),
        ("proxy", "async", "shared::cta"),
        ("proxy", "async", "global"),
    ):
        return lambda warps, active: clocks.fence_proxy(warps)
    # "membar" is "fence.sc" by another name.
    order, scope = "sc", {"gl": "gpu"}.get(kinds[-1], kinds[-1])
    if instruction.opcode == "fence":
        order = kinds[0] if len(kinds) == 2 else ""
    if scope not in SCOPES or order not in ("sc", "acq_rel", "acquire", "release"):
        raise Unsupported("a fence of this kind")

    def run(warps, active):
        lanes = taken(warps, active)
        here = index[warps] if lanes is None else index[warps][lanes.any(1)]
        for warp in here.tolist():
            context.machine.synchronization.fence(
                warp,
                REACH[scope],
                acquires=order != "release",
                releases=order != "acquire",
                sequential=order == "sc",
            )

    return run


BINDERS = {
    "ld": _load,
    "st": _store,
    "atom": _atomic,
    "red": _atomic,
    "fence": _fence,
    "membar": _fence,
}
