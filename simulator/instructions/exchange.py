"""Instructions by which the lanes of a warp exchange values."""

from __future__ import annotations

import numpy as np

from ..errors import Unsupported
from ..ptx import Instruction
from ..registers import LANES

_LANE = LANES.astype(np.int64)


def shuffle(values, mode: str, lane_or_offset, clamp) -> np.ndarray:
    """``shfl.sync``: give each lane of (warps, 32) values another lane's value or its own.

    Args:
        mode: "idx", "up", "down" or "bfly".
        clamp: bits 0-4 the last lane of a segment (its first for "up"), bits 8-12 the segment mask.
    """
    offset, clamp = np.int64(lane_or_offset) & 31, np.int64(clamp)
    segment, limit = clamp >> 8 & 31, clamp & 31
    last = (_LANE & segment) | (limit & ~segment)
    source = {
        "bfly": _LANE ^ offset,
        "up": _LANE - offset,
        "down": _LANE + offset,
        "idx": (_LANE & segment) | (offset & ~segment),
    }[mode]
    inside = source >= last if mode == "up" else source <= last
    source = np.broadcast_to(np.where(inside, source, _LANE) & 31, values.shape)
    return np.take_along_axis(values, source, 1)


def _full(context, values, instruction: Instruction) -> None:
    if not (np.asarray(values) == 0xFFFFFFFF).all():
        raise Unsupported(f"{instruction}: a member mask that is not all lanes")


def _shuffle(context, instruction: Instruction):
    kinds = instruction.modifiers
    if len(kinds) != 3 or kinds[0] != "sync" or kinds[2] != "b32":
        raise Unsupported("modifiers")
    name = instruction.operands[0].split("|")[0]
    put, check = context.target(name, "u32"), context.all_lanes(instruction)
    value, offset, clamp, members = (
        context.registers.operand(text, "u32") for text in instruction.operands[1:]
    )

    def run(warps, active):
        lanes = check(warps, active)
        _full(context, members[warps], instruction)
        shape = (warps.stop - warps.start, 32)
        values = np.broadcast_to(value[warps], shape)
        put(warps, shuffle(values, kinds[1], offset[warps], clamp[warps]), lanes)

    return run


_VOTES = {
    "any": lambda votes: votes.any(1, keepdims=True),
    "all": lambda votes: votes.all(1, keepdims=True),
    "uni": lambda votes: votes.all(1, keepdims=True) | ~votes.any(1, keepdims=True),
    "ballot": lambda votes: (votes.astype(np.uint32) << LANES).sum(1, dtype=np.uint32)[:, None],
}


def _vote(context, instruction: Instruction):
    kinds = instruction.modifiers
    if kinds[0] != "sync" or kinds[1] not in _VOTES or kinds[2] not in ("pred", "b32"):
        raise Unsupported("modifiers")
    put = context.target(instruction.operands[0], "pred" if kinds[2] == "pred" else "u32")
    text = instruction.operands[1]
    vote = context.registers.operand(text.lstrip("!"), "pred")
    members = context.registers.operand(instruction.operands[2], "u32")
    check = context.all_lanes(instruction)

    def run(warps, active):
        lanes = check(warps, active)
        _full(context, members[warps], instruction)
        shape = (warps.stop - warps.start, 32)
        votes = np.broadcast_to(vote[warps], shape)
        result = _VOTES[kinds[1]](~votes if text.startswith("!") else votes)
        put(warps, np.broadcast_to(result, shape), lanes)

    return run


_REDUCE = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _reduce(context, instruction: Instruction):
    kinds = instruction.modifiers
    if kinds[0] != "sync" or kinds[1] not in _REDUCE or len(kinds) != 3:
        raise Unsupported("modifiers")
    kind = "u32" if kinds[2] == "b32" else kinds[2]
    put, check = context.target(instruction.operands[0], kind), context.all_lanes(instruction)
    value = context.registers.operand(instruction.operands[1], kind)
    members = context.registers.operand(instruction.operands[2], "u32")

    def run(warps, active):
        lanes = check(warps, active)
        _full(context, members[warps], instruction)
        shape = (warps.stop - warps.start, 32)
        values = np.broadcast_to(value[warps], shape)
        put(warps, np.broadcast_to(_REDUCE[kinds[1]].reduce(values, 1)[:, None], shape), lanes)

    return run


def _elect(context, instruction: Instruction):
    if instruction.modifiers != ("sync",):
        raise Unsupported("modifiers")
    leader, predicate = instruction.operands[0].split("|")
    put_leader, put = context.target(leader, "u32"), context.target(predicate, "pred")
    check = context.all_lanes(instruction)

    def run(warps, active):
        lanes = check(warps, active)
        shape = (warps.stop - warps.start, 32)
        put_leader(warps, np.zeros(shape, np.uint32), lanes)
        put(warps, np.broadcast_to(LANES == 0, shape), lanes)

    return run


def _warp_barrier(context, instruction: Instruction):
    """``bar.warp.sync``: what each lane wrote before it, all may read after it."""
    check, clocks = context.all_lanes(instruction), context.machine.clocks

    def run(warps, active):
        check(warps, active)
        clocks.lanes_meet(warps)

    return run


BINDERS = {
    "shfl": _shuffle,
    "vote": _vote,
    "redux": _reduce,
    "elect": _elect,
    "bar": _warp_barrier,
    "barrier": _warp_barrier,
}
