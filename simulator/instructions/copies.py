"""``cp.async``: asynchronous copies from global to shared memory."""

from __future__ import annotations

import numpy as np

from ..errors import Unsupported
from ..ptx import Instruction
from .transfers import Access


def _copy_async(context, instruction: Instruction):
    """Bind a copy; its data arrives when its group is waited for, not before."""
    kinds = instruction.modifiers
    if kinds[0] != "async":
        raise Unsupported("cp other than cp.async")
    if kinds[1:] in (("commit_group",), ("wait_group",), ("wait_all",)):
        return _copy_groups(context, instruction)
    if "bulk" in kinds or (kinds[-1] != "global" and "global" not in kinds):
        raise Unsupported("a bulk copy")
    known = ("async", "shared", "global", "shared::cta")
    source = Access(context, instruction, known)
    source.space = "global"
    target = Access(context, instruction, known)
    target.space = "shared"
    to, from_ = target.at(instruction.operands[0]), source.at(instruction.operands[1])
    size = int(instruction.operands[2], 0)
    kept = (
        context.registers.operand(instruction.operands[3], "u32")
        if len(instruction.operands) > 3
        else None
    )
    taken, machine = context.mask(instruction), context.machine
    memory = machine.memory["global"]

    def run(warps, active):
        lanes = taken(warps, active)
        targets, owners = to(warps, lanes)
        sources, _ = from_(warps, lanes)
        data = np.zeros((targets.size, size), np.uint8)  # bytes that are not copied are zeros
        if kept is None:
            copied = np.ones(targets.size, bool)
        else:
            count = np.broadcast_to(kept[warps], (warps.stop - warps.start, 32))
            count = count.ravel() if lanes is None else count[lanes]
            if not np.isin(count, (0, size)).all():
                raise Unsupported(f"{instruction}: a part of {size} bytes")
            copied = count == size
        source.read(sources[copied], size, owners[copied], "cp.async")
        data[copied] = memory.read_bytes(sources[copied], size)
        clocks = machine.clocks
        issued = (clocks.group("cp.async", owners >> 5), clocks.at_issue())
        machine.context.copies.append((target, targets, owners, data, *issued))
        clocks.tick(warps)  # what the warps do next may come before the copy or after it

    return run


def _copy_groups(context, instruction: Instruction):
    clocks, machine = context.machine.clocks, context.machine
    if instruction.modifiers[1] == "commit_group":
        return lambda warps, active: clocks.commit("cp.async", warps)
    all_groups = instruction.modifiers[1] == "wait_all"
    pending = 0 if all_groups else int(instruction.operands[0], 0)

    def run(warps, active):
        if all_groups:
            clocks.commit("cp.async", warps)
        done = clocks.group("cp.async", slice(None)) - 1 - pending
        waiting = []
        for target, offsets, owners, data, group, known in machine.context.copies:
            of = owners >> 5
            arrived = (of >= warps.start) & (of < warps.stop) & (group <= done[of])
            if arrived.any():
                landed = offsets[arrived], owners[arrived], data[arrived]
                target.write(*landed, "cp.async", group=group[arrived], known=known)
            if not arrived.all():
                rest = ~arrived
                waiting.append(
                    (target, offsets[rest], owners[rest], data[rest], group[rest], known)
                )
        machine.context.copies = waiting
        clocks.complete("cp.async", warps, pending)

    return run


BINDERS = {"cp": _copy_async}
