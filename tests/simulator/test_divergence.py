"""Lanes of a warp that part, and where they are together again."""

import pytest
import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from simulator import Deadlock, Findings, SimulatorError, flow, ptx, simulate
from tests.support.ptx import execute

OUT = "mul.wide.u32 %rd8, %r0, 4; add.s64 %rd9, %rd0, %rd8; st.global.b32 [%rd9], %r4;"
SHUFFLE = "shfl.sync.idx.b32 %r4, %r3, 0, 31, -1;"


def run(body, **options):
    out = torch.full((64,), -1, dtype=torch.int32)
    execute(body, out, **options)
    return out.tolist()


def test_lanes_meet_at_a_lower_address():
    """The block where they meet stands before one of the two that lead to it."""
    body = f"""
      mov.b32 %r3, 5;
      setp.lt.u32 %p0, %r0, 40;
      bra START;
    MEET:
      {SHUFFLE}
      {OUT}
      bra END;
    START:
      @%p0 bra FEW;
      add.s32 %r3, %r3, 1;
      bra MEET;
    FEW:
      add.s32 %r3, %r3, 2;
      bra MEET;
    END:
    """
    assert run(body) == [7] * 64


def test_a_rotated_loop():
    """Lane by lane another number of rounds; the loop's body stands before its entry."""
    body = f"""
      and.b32 %r2, %r0, 7;
      mov.b32 %r3, 0;
      bra TEST;
    AFTER:
      {SHUFFLE}
      bar.sync 0;
      {OUT}
      bra END;
    ROUND:
      add.s32 %r3, %r3, 3;
      sub.s32 %r2, %r2, 1;
    TEST:
      setp.ge.s32 %p0, %r2, 0;
      @%p0 bra ROUND;
      bra AFTER;
    END:
    """
    assert run(body) == [3] * 64


def test_a_loop_within_a_loop():
    body = f"""
      and.b32 %r2, %r0, 3;
      mov.b32 %r3, 0;
    OUTER:
      and.b32 %r5, %r0, 1;
    INNER:
      add.s32 %r3, %r3, 1;
      sub.s32 %r5, %r5, 1;
      setp.ge.s32 %p0, %r5, 0;
      @%p0 bra INNER;
      sub.s32 %r2, %r2, 1;
      setp.ge.s32 %p1, %r2, 0;
      @%p1 bra OUTER;
      bar.sync 0;
      mov.b32 %r4, %r3;
      {OUT}
    """
    rounds = [(1 + lane % 4) * (1 + lane % 2) for lane in range(64)]
    assert run(body) == rounds


@pytest.mark.parametrize("where", ("bar.sync 0;", "bar.warp.sync -1;", SHUFFLE), ids=str)
def test_a_barrier_in_one_branch(where):
    body = f"setp.lt.u32 %p0, %r0, 40; @%p0 bra OVER;\n{where}\nOVER:\n mov.b32 %r4, 0;"
    with pytest.raises(SimulatorError, match="only some lanes of a warp are here"):
        run(body)


def test_every_block_comes_before_its_post_dominator():
    text = """
    .visible .entry test(
      .param .u64 test_param_0
    )
    .reqntid 32
    {
      .reg .pred %p<4>;
      bra C;
    D:
      ret;
    B:
      @%p1 bra D;
      bra B;
    C:
      @%p2 bra B;
      @%p3 bra E;
      bra D;
    E:
      trap;
    }
    """
    program = ptx.parse(text)
    ranks = flow.ranks(program)
    at = {name: ranks[index] for name, index in program.labels.items()}
    assert ranks[0] < at["C"] < at["D"] < ranks[-1]
    assert at["B"] < at["D"]
    assert at["E"] == 0  # no path leads from there to the end
    assert sorted(ranks) == list(range(ranks.size))


LOCK = """
  mov.b32 %r4, 0;
{take}
  ld.global.b32 %r3, [%rd1];
  add.s32 %r3, %r3, 1;
  st.global.b32 [%rd1], %r3;
  atom.release.gpu.global.exch.b32 %r5, [%rd1+8], 0;
  bar.sync 0;
  ld.global.b32 %r4, [%rd1];
"""
TAKE = """
WAIT:
  atom.acquire.gpu.global.cas.b32 %r5, [%rd1+8], 0, 1;
  setp.ne.s32 %p0, %r5, 0;
  @%p0 bra WAIT;
"""


@pytest.mark.parametrize("schedule", ("lockstep", "random", "run-ahead"))
def test_lanes_that_wait_for_each_other(schedule):
    """A lock that all lanes of both warps want: who has it goes on though others poll."""
    out, words = torch.zeros(64, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    execute(LOCK.format(take=TAKE) + OUT, out, words, schedule=schedule)
    assert out.tolist() == [64] * 64


def test_lanes_that_wait_for_ever():
    words = torch.zeros(4, dtype=torch.int32)
    body = LOCK.format(take=TAKE).replace("exch.b32 %r5, [%rd1+8], 0", "exch.b32 %r5, [%rd1+8], 1")
    with pytest.raises(Deadlock, match="polling, atom.acquire.gpu.global.cas"):
        execute(body, torch.zeros(64), words)


# Lane l writes word l of shared memory and reads word 31 - l.
LANES = """
  shl.b32 %r2, %r0, 2;
  {before}
  st.shared.b32 [%r2], %r0;
  {between}
  sub.s32 %r3, 124, %r2;
  {read} %r4, [%r3];
"""


@pytest.mark.parametrize("barrier", ("bar.warp.sync -1;", "bar.sync 0;"))
def test_lanes_exchange_through_memory(barrier):
    parts = {"between": barrier, "read": "ld.shared.b32"}
    assert run(LANES.format(before="", **parts) + OUT, threads=32)[:32] == list(range(31, -1, -1))
    racy = LANES.format(before=barrier, between="", read="ld.shared.b32")
    with pytest.raises(Findings, match="read-write race(.|\n)*different lanes of one warp"):
        run(racy + OUT, threads=32)


def test_a_lane_overwrites_what_another_wrote():
    body = (
        "shl.b32 %r2, %r0, 2; sub.s32 %r3, 124, %r2;"
        "st.shared.b32 [%r2], %r0; {} st.shared.b32 [%r3], %r0;"
    )
    run(body.format("bar.warp.sync -1;"), threads=32)
    with pytest.raises(Findings, match="write-write race(.|\n)*different lanes of one warp"):
        run(body.format(""), threads=32)


@triton.jit
def _tanh(x_ptr, y_ptr, B: tl.constexpr):
    y = libdevice.tanh(tl.load(x_ptr + tl.arange(0, B)))
    tl.store(y_ptr + tl.arange(0, B), y)
    tl.store(y_ptr + B, tl.sum(y))  # all lanes are needed again


@triton.jit
def _atan(x_ptr, y_ptr, B: tl.constexpr):
    y = libdevice.atan(tl.load(x_ptr + tl.arange(0, B)))
    tl.store(y_ptr + tl.arange(0, B), y)
    tl.store(y_ptr + B, tl.sum(y))


@triton.jit
def _log1p(x_ptr, y_ptr, B: tl.constexpr):
    y = libdevice.log1p(tl.load(x_ptr + tl.arange(0, B)) + 7)
    tl.store(y_ptr + tl.arange(0, B), y)
    tl.store(y_ptr + B, tl.sum(y))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize(
    ("kernel", "exact"),
    ((_tanh, torch.tanh), (_atan, torch.atan), (_log1p, lambda x: torch.log1p(x + 7))),
    ids=("tanh", "atan", "log1p"),
)
def test_functions_that_branch_lane_by_lane(kernel, exact, dtype):
    x = torch.linspace(-6, 6, 128, dtype=dtype)
    y = torch.empty(129, dtype=dtype)
    for warps in (1, 4):
        with simulate(80) as device:
            kernel[(1,)](x, y, 128, num_warps=warps)
        assert not device.report
        wanted = exact(x.double())
        wanted = torch.cat((wanted, wanted.sum()[None]))
        torch.testing.assert_close(y.double(), wanted, rtol=8 * torch.finfo(dtype).eps, atol=1e-5)
