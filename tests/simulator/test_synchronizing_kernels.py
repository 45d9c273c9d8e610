"""Triton kernels whose programs wait for each other: which ``sem`` and ``scope`` they need."""

import pytest
import torch
import triton
import triton.language as tl

from simulator import Findings, simulate
from tests.support.ptx import execute

SCHEDULES = (("lockstep", 0), ("run-ahead", 0), ("run-ahead", 1), ("random", 1))


@triton.jit
def _wait(flag_ptr, value, SEM: tl.constexpr, SCOPE: tl.constexpr, BY: tl.constexpr):
    if BY == "cas":
        while tl.atomic_cas(flag_ptr, value, value, sem=SEM, scope=SCOPE) != value:
            pass
    else:
        while tl.atomic_add(flag_ptr, 0, sem=SEM, scope=SCOPE) != value:
            pass


@triton.jit
def _message(x_ptr, flag_ptr, out_ptr, SEND: tl.constexpr, RECEIVE: tl.constexpr,
             SCOPE: tl.constexpr, BY: tl.constexpr):  # fmt: skip
    if tl.program_id(0) == 0:
        tl.store(x_ptr, 7)
        tl.debug_barrier()
        tl.atomic_xchg(flag_ptr, 1, sem=SEND, scope=SCOPE)
    else:
        _wait(flag_ptr, 1, RECEIVE, SCOPE, BY)
        tl.debug_barrier()
        tl.store(out_ptr, tl.load(x_ptr))


@triton.jit
def _relay(x_ptr, flag_ptr, out_ptr, SEND: tl.constexpr, RECEIVE: tl.constexpr,
           SCOPE: tl.constexpr, BY: tl.constexpr):  # fmt: skip
    """Each program adds one to x and passes it on to the next."""
    turn = tl.program_id(0)
    _wait(flag_ptr, turn, RECEIVE, SCOPE, BY)
    tl.debug_barrier()
    tl.store(x_ptr, tl.load(x_ptr) + 7)
    tl.debug_barrier()
    tl.atomic_add(flag_ptr, 1, sem=SEND, scope=SCOPE)
    if turn == 2:
        tl.store(out_ptr, 7)


@triton.jit
def _gather(x_ptr, flag_ptr, out_ptr, SEND: tl.constexpr, RECEIVE: tl.constexpr,
            SCOPE: tl.constexpr, BY: tl.constexpr):  # fmt: skip
    """The last of four reads what three have written: a chain of atomics."""
    if tl.program_id(0) == 3:
        _wait(flag_ptr, 3, RECEIVE, SCOPE, BY)
        tl.debug_barrier()
        part = tl.arange(0, 4)
        tl.store(out_ptr, tl.sum(tl.load(x_ptr + part, mask=part < 3, other=0)))
    else:
        tl.store(x_ptr + tl.program_id(0), 2 + (tl.program_id(0) == 2))
        tl.debug_barrier()
        tl.atomic_add(flag_ptr, 1, sem=SEND, scope=SCOPE)


@triton.jit
def _lock(x_ptr, flag_ptr, out_ptr, SEND: tl.constexpr, RECEIVE: tl.constexpr,
          SCOPE: tl.constexpr, BY: tl.constexpr):  # fmt: skip
    while tl.atomic_cas(flag_ptr, 0, 1, sem=RECEIVE, scope=SCOPE) != 0:
        pass
    tl.debug_barrier()
    tl.store(x_ptr, tl.load(x_ptr) + 1)
    tl.debug_barrier()
    tl.atomic_xchg(flag_ptr, 0, sem=SEND, scope=SCOPE)
    if tl.program_id(0) == 0:
        tl.store(out_ptr, 7)


def run(kernel, schedule, seed, *how, **options):
    programs = {_message: 2, _relay: 3, _gather: 4, _lock: 3}[kernel]
    x, flag, out = (torch.zeros(n, dtype=torch.int32) for n in (4, 1, 1))
    with simulate(80, schedule=schedule, seed=seed):
        kernel[(programs,)](x, flag, out, *how, **options)
    assert out.item() == 7


KERNELS = pytest.mark.parametrize(
    "kernel", (_message, _relay, _gather, _lock), ids=lambda kernel: kernel.fn.__name__[1:]
)


@KERNELS
@pytest.mark.parametrize("by", ("add", "cas"))
def test_programs_that_wait_rightly(kernel, by):
    for scope, (schedule, seed) in zip(("gpu", "sys") * 2, SCHEDULES, strict=True):
        run(kernel, schedule, seed, "release", "acquire", scope, by, num_warps=1)


@KERNELS
@pytest.mark.parametrize("by", ("add", "cas"))
@pytest.mark.parametrize(
    "how",
    (
        ("release", "acquire", "cta"),
        ("relaxed", "acquire", "gpu"),
        ("release", "relaxed", "gpu"),
        ("acq_rel", "relaxed", "gpu"),
    ),
    ids="-".join,
)
def test_programs_that_do_not_wait_rightly(kernel, by, how):
    for schedule, seed in SCHEDULES[:2]:
        with pytest.raises(Findings, match=r"race: (x|flag)_ptr\["):
            run(kernel, schedule, seed, *how, by, num_warps=1)


@triton.jit
def _exchange(x_ptr, SCOPE: tl.constexpr):
    tl.atomic_xchg(x_ptr, tl.program_id(0), sem="relaxed", scope=SCOPE)


@pytest.mark.parametrize(("schedule", "seed"), SCHEDULES)
def test_atomics_of_the_cta_by_two_ctas(schedule, seed):
    x = torch.zeros(1, dtype=torch.int32)
    with simulate(80, schedule=schedule, seed=seed):
        _exchange[(2,)](x, "gpu", num_warps=1)
        with pytest.raises(Findings, match="write-write race(.|\n)*scopes do not include each oth"):
            _exchange[(2,)](x, "cta", num_warps=1)


@pytest.mark.parametrize("pending", (0, 1, 2))
def test_a_buffer_filled_anew(pending):
    """The third copy goes where the first one went, of which one is still pending or none."""
    body = f"""
      shl.b32 %r2, %r0, 4;
      mul.wide.u32 %rd8, %r2, 1;
      add.s64 %rd9, %rd0, %rd8;
      cp.async.cg.shared.global [%r2], [%rd9], 16;
      cp.async.commit_group;
      cp.async.cg.shared.global [%r2+1024], [%rd9], 16;
      cp.async.commit_group;
      cp.async.wait_group {pending};
      cp.async.cg.shared.global [%r2], [%rd9], 16;
      cp.async.commit_group;
      cp.async.wait_group 0;
    """
    source = torch.arange(256, dtype=torch.int32)
    if pending < 2:
        execute(body, source)
    else:
        with pytest.raises(Findings, match="write-write race(.|\n)*through cp.async"):
            execute(body, source)
