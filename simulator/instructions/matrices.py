"""Tensor-core instructions: synchronous ``mma.sync``, asynchronous ``wgmma``, and the loads and
stores that distribute operands over the lanes."""

from __future__ import annotations

import itertools

import numpy as np

from ..errors import Unsupported
from ..findings import Finding
from ..ptx import Instruction
from ..registers import vector
from . import warpgroup
from .tensor_cores import lanes_to_matrices, matrices_to_lanes, mma
from .transfers import Access


def _multiply(context, instruction: Instruction):
    operation = mma(instruction.modifiers)
    count, kind = operation.c
    puts = [context.target(name, kind) for name in vector(instruction.operands[0])]
    groups = []
    for operand, (number, register) in zip(
        instruction.operands[1:], (operation.a, operation.b, operation.c), strict=True
    ):
        names = vector(operand)
        if len(names) != number:
            raise Unsupported(f"{len(names)} registers, {number} are known")
        groups.append([context.registers.operand(name, register) for name in names])
    if len(puts) != count:
        raise Unsupported(f"{len(puts)} results, {count} are known")
    check = context.all_lanes(instruction)

    def run(warps, active):
        lanes = check(warps, active)
        shape = (warps.stop - warps.start, 32)
        a, b, c = ([np.broadcast_to(r[warps], shape) for r in group] for group in groups)
        for put, values in zip(puts, operation.compute(a, b, c), strict=True):
            put(warps, values, lanes)

    return run


class Engine:
    """The outstanding work of the tensor core of each warpgroup.

    Results are kept here and reach the registers at ``wgmma.wait_group``. Until then the registers
    hold NaN, so that reading them too early is detected. The registers at ``wgmma.mma_async`` are
    compared with those at ``wgmma.fence``: they must not have been written in between.
    """

    def __init__(self, machine):
        self.machine = machine
        self.results = []  # tuples (registers, values, warps, group)
        self._used = [
            name
            for i in machine.program.instructions
            if i.opcode == "wgmma" and i.modifiers[0] == "mma_async"
            for operand in i.operands[:2]
            if operand.startswith("{")
            for name in vector(operand)
        ]
        self._used = list(dict.fromkeys(self._used))
        self._seen = np.zeros((len(self._used), machine.warps, 32), np.uint32)
        self._fenced = np.zeros(machine.warps, bool)

    def fence(self, warps: slice) -> None:
        for k, name in enumerate(self._used):
            self._seen[k, warps] = self.machine.registers.register(name, "u32")[warps]
        self._fenced[warps] = True

    def check(self, names: list[str], warps: slice, instruction: Instruction) -> None:
        """Check that registers are as at the last fence, or hold the engine's results."""
        for name in names:
            now = self.machine.registers.register(name, "u32")[warps]
            same = (now == self._seen[self._used.index(name), warps]).all(1) & self._fenced[warps]
            for registers, _, owners, _ in self._within(warps):
                if name in registers:
                    same[owners.start - warps.start : owners.stop - warps.start] = True
            if not same.all() and self.machine.report.is_new("register race", instruction.index):
                warp = warps.start + int(np.flatnonzero(~same)[0])
                self.machine.report.append(
                    Finding(
                        "register race",
                        f"{name} was written after the last wgmma.fence",
                        self.machine.describe(warp, instruction.index),
                    )
                )

    def accumulators(self, names: list[str], warps: slice) -> list[np.ndarray]:
        """What the next product adds to: results in flight, or the registers."""
        found = [self.machine.registers.register(name, "f32")[warps].copy() for name in names]
        for registers, values, owners, _ in self._within(warps):
            if registers == names:
                for into, value in zip(found, values, strict=True):
                    into[owners.start - warps.start : owners.stop - warps.start] = value
        return found

    def start(self, names: list[str], warps: slice, values: list[np.ndarray]) -> None:
        group = self.machine.clocks.group("wgmma", warps).copy()
        replaced = [r for r in self._within(warps) if r[0] == names]
        self.results = [r for r in self.results if not any(r is other for other in replaced)]
        self.results.append((names, values, warps, group))
        for name in names:
            self.machine.registers.register(name, "f32")[warps] = np.nan

    def wait(self, warps: slice, pending: int) -> None:
        done = self.machine.clocks.group("wgmma", slice(None)) - 1 - pending
        arrived = []
        for result in self._within(warps):
            names, values, owners, group = result
            ready = group <= done[owners]
            if ready.any() != ready.all():
                raise Unsupported("warps that wait for different wgmma groups together")
            if not ready.all():
                continue
            arrived.append(result)
            for name, value in zip(names, values, strict=True):
                self.machine.registers.register(name, "f32")[owners] = value
                # The results are the engine's: reading them in the next product needs no fence.
                self._seen[self._used.index(name), owners] = value.view(np.uint32)
        self.results = [r for r in self.results if not any(r is other for other in arrived)]
        self.machine.clocks.complete("wgmma", warps, pending)

    def _within(self, warps: slice) -> list[tuple]:
        """The results of these warps, split from those of warps that started together with them."""
        parts = []
        for names, values, owners, group in self.results:
            inside = {e for e in (warps.start, warps.stop) if owners.start < e < owners.stop}
            edges = sorted({owners.start, owners.stop} | inside)
            for begin, end in itertools.pairwise(edges):
                of = slice(begin - owners.start, end - owners.start)
                parts.append((names, [v[of] for v in values], slice(begin, end), group[of]))
        self.results = parts
        return [r for r in parts if warps.start <= r[2].start and r[2].stop <= warps.stop]


def _warpgroup(context, instruction: Instruction):
    kinds = instruction.modifiers
    machine = context.machine
    if context.engine is None and "wgmma" in machine.engines:
        context.engine = Engine(machine)
    engine = context.engine
    if engine is None:
        return None  # without a product there is nothing to order
    if kinds[1:] != ("sync", "aligned") and kinds[0] != "mma_async":
        raise Unsupported("modifiers")
    check = context.all_lanes(instruction)
    if kinds[0] == "fence":
        act = engine.fence
    elif kinds[0] == "commit_group":
        act = lambda warps: machine.clocks.commit("wgmma", warps)  # noqa: E731
    elif kinds[0] == "wait_group":
        pending = int(instruction.operands[0], 0)
        act = lambda warps: engine.wait(warps, pending)  # noqa: E731
    elif kinds[0] == "mma_async":
        act = _product(context, instruction, engine)
    else:
        raise Unsupported("wgmma of another kind")

    def run(warps, active):
        check(warps, active)
        act(warps)

    return run


def _product(context, instruction: Instruction, engine: Engine):
    machine = context.machine
    operation = warpgroup.parse(instruction.modifiers)
    names = vector(instruction.operands[0])
    if len(names) != operation.d_count:
        raise Unsupported(f"{len(names)} results, {operation.d_count} are known")
    scale_d = context.registers.operand(instruction.operands[3], "pred")
    scale_a, scale_b, *transposed = (int(text, 0) for text in instruction.operands[4:])
    a_registers = vector(instruction.operands[1]) if instruction.operands[1][0] == "{" else None
    if a_registers:
        a_operands = [context.registers.operand(name, "u32") for name in a_registers]
        transposed = [0, *transposed]
    else:
        a_descriptor = context.registers.operand(instruction.operands[1], "u64")
    b_descriptor = context.registers.operand(instruction.operands[2], "u64")
    transposed = [bool(t) for t in (*transposed, 0, 0)[:2]]
    access = Access(context, instruction, instruction.modifiers)
    access.space = "shared"
    memory = machine.memory["shared"]

    def tile(warps, descriptor, rows, kind, flip, part):
        """(warps, rows, k) values of an operand in shared memory."""
        size = 2 if kind in ("f16", "bf16") else 4
        bits = np.broadcast_to(descriptor[warps], (warps.stop - warps.start, 32))
        if (bits != bits[:, :1]).any():
            raise Unsupported(f"{instruction}: a descriptor that differs by lane")
        places = np.empty((bits.shape[0], rows, operation.k), np.int64)
        for value in np.unique(bits[:, 0]):
            found = warpgroup.addresses(
                warpgroup.decode(int(value)), 64 if part else rows, operation.k, size, flip
            )
            for row in np.flatnonzero(bits[:, 0] == value):
                warp = warps.start + row
                first = 16 * (warp % 4) if part else 0
                places[row] = found[first : first + rows] + machine.shared_begin[warp]
        owners = np.repeat(machine.threads[warps, 0], rows * operation.k)
        flat = places.ravel()
        access.read(flat, size, owners, "wgmma", proxied=True)
        return warpgroup.widen(memory.read(flat, size), kind).reshape(places.shape)

    def run(warps):
        used = [*names, *(a_registers or ())]
        engine.check(used, warps, instruction)
        scale = np.broadcast_to(scale_d[warps], (warps.stop - warps.start, 32))
        if a_registers:
            a = operation.a_from_registers([operand[warps] for operand in a_operands])
        else:
            a = tile(warps, a_descriptor, 16, operation.a_type, transposed[0], part=True)
        b = tile(warps, b_descriptor, operation.n, operation.b_type, transposed[1], part=False)
        values = operation.compute(a, b, scale_a, scale_b)
        if scale.any():
            d = engine.accumulators(names, warps)
            # Warps that run together may be in different iterations of a loop.
            values = [np.where(scale, new + old, new) for new, old in zip(values, d, strict=True)]
        engine.start(names, warps, values)

    return run


def _matrix_rows(context, instruction: Instruction, operand: str):
    """The common parts of ldmatrix and stmatrix: (count, transposed, access, rows of addresses)."""
    kinds = list(instruction.modifiers)
    for kind in ("sync", "aligned", "m8n8"):
        if kind not in kinds:
            raise Unsupported(f"without .{kind}")
        kinds.remove(kind)
    transposed = "trans" in kinds
    if transposed:
        kinds.remove("trans")
    count = {"x1": 1, "x2": 2, "x4": 4}[kinds.pop(0)]
    if kinds not in (["shared", "b16"], ["shared::cta", "b16"]):
        raise Unsupported("elements other than .b16")
    access = Access(context, instruction, ("sync", "aligned", "m8n8", "trans", "x1", "x2", "x4"))
    places = access.at(operand)
    check = context.all_lanes(instruction)
    threads = context.machine.threads

    def rows(warps, active):
        lanes = check(warps, active)
        if lanes is not None:
            raise Unsupported(f"{instruction}: under a guard or in divergent code")
        offsets, _ = places(warps, None)
        offsets = offsets.reshape(-1, 32)[:, : 8 * count]
        return offsets.ravel(), threads[warps, : 8 * count].ravel()

    return count, transposed, access, rows


def _load_matrix(context, instruction: Instruction):
    count, transposed, access, rows = _matrix_rows(context, instruction, instruction.operands[1])
    puts = [context.target(name, "u32") for name in vector(instruction.operands[0])]
    memory = context.machine.memory["shared"]

    def run(warps, active):
        offsets, owners = rows(warps, active)
        access.read(offsets, 16, owners)
        tiles = memory.read_bytes(offsets, 16).view(np.uint16).reshape(-1, count, 8, 8)
        for put, value in zip(puts, matrices_to_lanes(tiles, transposed), strict=True):
            put(warps, value, None)

    return run


def _store_matrix(context, instruction: Instruction):
    count, transposed, access, rows = _matrix_rows(context, instruction, instruction.operands[0])
    sources = [context.registers.operand(n, "u32") for n in vector(instruction.operands[1])]

    def run(warps, active):
        offsets, owners = rows(warps, active)
        shape = (warps.stop - warps.start, 32)
        values = [np.broadcast_to(source[warps], shape) for source in sources]
        tiles = lanes_to_matrices(values, transposed)
        access.write(offsets, owners, np.ascontiguousarray(tiles).reshape(-1, 8).view(np.uint8))

    return run


BINDERS = {
    "mma": _multiply,
    "wgmma": _warpgroup,
    "ldmatrix": _load_matrix,
    "stmatrix": _store_matrix,
}
