"""Reconvergence of diverged lanes of a warp, at immediate post-dominators.

A compiler may lay out blocks in any order, so addresses do not tell which lanes must wait. The
immediate post-dominator of a block is the first block that all its paths to the end share. Lanes
wait there for the others if in each warp those with the lowest of the ``ranks`` run first.
"""

from __future__ import annotations

import numpy as np

from .ptx import Program

_LEAVES = ("ret", "exit")
_STOPS = ("trap", "call")  # the only call is that of a failed assertion, which does not return


def ranks(program: Program) -> np.ndarray:
    """A rank for each instruction, and for the end: lanes at the lowest rank run first.

    Every block ranks before its immediate post-dominator. Blocks that never reach the end, since
    they trap or are endless loops, rank before all others.
    """
    begins, successors = _blocks(program)
    end = len(begins)
    above = _post_dominators(successors)
    children: list[list[int]] = [[] for _ in range(end + 1)]
    for block in sorted(above, key=lambda block: (above[block] is not None, block)):
        children[end if above[block] is None else above[block]].append(block)
    order, waiting = [], [end]
    while waiting:  # parents before children, from the last to the first
        block = waiting.pop()
        order.append(block)
        waiting += children[block]
    result = np.empty(len(program.instructions) + 1, np.int32)
    ends = [*begins[1:], len(program.instructions)]
    rank = 0
    for block in reversed(order[1:]):
        for index in range(begins[block], ends[block]):
            result[index] = rank
            rank += 1
    result[-1] = rank
    return result


def _blocks(program: Program) -> tuple[list[int], list[list[int]]]:
    """(the first instruction of each block, the blocks that may follow it)."""
    code = program.instructions
    firsts = {0, *program.labels.values()}
    for i in code:
        if i.opcode in ("bra", *_LEAVES, *_STOPS):
            firsts.add(i.index + 1)
    begins = sorted(first for first in firsts if first < len(code))
    block_of = {begin: block for block, begin in enumerate(begins)} | {len(code): len(begins)}
    successors = []
    for block, following in enumerate([*begins[1:], len(code)]):
        last = code[following - 1]
        goes_on = last.guard is not None or last.opcode not in ("bra", *_LEAVES, *_STOPS)
        after = [block + 1] if goes_on else []
        if last.opcode == "bra":
            after.append(block_of[program.labels[last.operands[-1]]])
        elif last.opcode in _LEAVES:
            after.append(len(begins))
        successors.append(after)
    return begins, successors


def _post_dominators(successors: list[list[int]]) -> dict[int, int | None]:
    """The immediate post-dominator of each block, which may be the end; None for one without.

    By the method of Cooper, Harvey and Kennedy, on the reversed graph.
    """
    end = len(successors)
    predecessors: list[list[int]] = [[] for _ in range(end + 1)]
    for block, after in enumerate(successors):
        for other in after:
            predecessors[other].append(block)
    order, seen, stack = [], {end}, [(end, iter(predecessors[end]))]
    while stack:
        block, rest = stack[-1]
        following = next((b for b in rest if b not in seen), None)
        if following is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(predecessors[following])))
    number = {block: k for k, block in enumerate(order)}  # the end has the highest
    above = {end: end}

    def common(a, b):
        while a != b:
            while number[a] < number[b]:
                a = above[a]
            while number[b] < number[a]:
                b = above[b]
        return a

    changed = True
    while changed:
        changed = False
        for block in reversed(order[:-1]):
            known = [b for b in successors[block] if b in above]
            found = known[0]
            for other in known[1:]:
                found = common(found, other)
            if above.get(block) != found:
                above[block] = found
                changed = True
    return {block: above.get(block) for block in range(end)}
