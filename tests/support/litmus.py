"""Litmus tests: a few threads with a few accesses each, in PTX.

Threads ``T0``, ``T1``, ... are lane 0 of different CTAs, or of different warps of one CTA. In
programs with a barrier they are all lanes. They have

- plain data at [%rd0], [%rd0+8], ...;
- flags at [%rd1], [%rd1+64], ..., zero at first;
- separate results at [%rd10];
- %r2 to %r15, %p0 to %p9, and shared memory from [0].
"""

from __future__ import annotations

import torch

from simulator import Findings
from tests.support.ptx import execute

SCHEDULES = (
    ("lockstep", 0),
    ("run-ahead", 0),
    ("run-ahead", 1),
    ("random", 0),
    ("random", 1),
    ("random", 2),
)


def poll(load: str, value: int = 1, label: str = "WAIT") -> str:
    """Load into %r4 until it equals a value; ``@`` in a body is the number of the thread."""
    return f"\n{label}@:\n{load} setp.ne.s32 %p0, %r4, {value}; @%p0 bra {label}@;"


def body(threads: tuple[str, ...], one_cta: bool) -> str:
    who = "shr.u32 %r20, %r0, 5;" if one_cta else "mov.b32 %r20, %r1;"
    lanes = "0" if any("bar." in text for text in threads) else "31"
    lines = [
        who,
        f"and.b32 %r21, %r0, {lanes}; setp.ne.s32 %p20, %r21, 0; @%p20 bra DONE;",
        "mul.wide.u32 %rd9, %r20, 8; add.s64 %rd10, %rd2, %rd9;",
    ]
    for k in range(len(threads)):
        lines.append(f"setp.eq.s32 %p21, %r20, {k}; @%p21 bra T{k};")
    lines.append("bra DONE;")
    for k, text in enumerate(threads):
        lines += [f"T{k}:", text.replace("@:", f"{k}:").replace("@;", f"{k};"), "bra DONE;"]
    return "\n".join([*lines, "DONE:"])


def races(threads: tuple[str, ...], one_cta: bool = False, **options) -> list[str]:
    """The first finding of each schedule; "" if there is none."""
    found = []
    for schedule, seed in SCHEDULES:
        tensors = (torch.zeros(n, dtype=torch.int32) for n in (16, 64, 16))
        count = len(threads)
        size = {"grid": 1, "threads": 32 * count} if one_cta else {"grid": count, "threads": 32}
        try:
            execute(
                body(threads, one_cta), *tensors, schedule=schedule, seed=seed, **size, **options
            )
            found.append("")
        except Findings as findings:
            found.append(str(findings).splitlines()[1])
    return found
