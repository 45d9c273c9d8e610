"""Kernels with one mistake each, beside the same without it: each mistake gets its own report."""

import pytest
import torch

from simulator import (
    Deadlock,
    Findings,
    KernelTrap,
    LaunchError,
    MemoryFault,
    SimulatorError,
    Unsupported,
    simulate,
)
from tests.support.ptx import execute

# Thread t writes shared word t and reads word 63 - t, of the other warp.
EXCHANGE = """
  shl.b32 %r2, %r0, 2;
  {early}
  st.shared.b32 [%r2], %r0;
  {barrier}
  sub.s32 %r3, 252, %r2;
  ld.shared.b32 %r4, [%r3];
  {second}
  mul.wide.u32 %rd8, %r2, 1;
  add.s64 %rd9, %rd0, %rd8;
  st.global.b32 [%rd9], %r4;
  {again}
"""


def exchange(early="", barrier="bar.sync 0;", second="", again="", **options):
    out = torch.zeros(64, dtype=torch.int32)
    body = EXCHANGE.format(early=early, barrier=barrier, second=second, again=again)
    execute(body, out, **options)
    return out


def test_exchange_is_right():
    for options in ({}, {"schedule": "random", "seed": 1}, {"schedule": "run-ahead"}):
        assert exchange(**options).tolist() == list(range(63, -1, -1))
    exchange(second="bar.sync 0;", again="st.shared.b32 [%r2], %r4;")


def test_missing_barrier():
    with pytest.raises(Findings, match="read-write race.*shared memory of CTA 0"):
        exchange(barrier="")


def test_misplaced_barrier():
    with pytest.raises(Findings, match="read-write race"):
        exchange(early="bar.sync 0;", barrier="")


def test_overwritten_before_it_was_read():
    with pytest.raises(Findings, match="write-read race"):
        exchange(again="st.shared.b32 [%r2], %r4;")


@pytest.mark.parametrize("schedule", ("lockstep", "random", "run-ahead"))
def test_two_warps_write_the_same_word(schedule):
    with pytest.raises(Findings, match="write-write race"):
        execute("and.b32 %r2, %r0, 31; shl.b32 %r2, %r2, 2; st.shared.b32 [%r2], %r0;",
                torch.zeros(1), schedule=schedule)  # fmt: skip


def test_two_warps_write_the_same_value():
    """Harmless: replicated layouts do this."""
    execute("and.b32 %r2, %r0, 31; shl.b32 %r3, %r2, 2; st.shared.b32 [%r3], %r2;", torch.zeros(1))


def test_lanes_of_a_store_disagree():
    with pytest.raises(Findings, match="lanes disagree: p0"):
        execute("st.global.b32 [%rd0], %r0;", torch.zeros(1), threads=32)


def test_two_ctas_write_the_same_word():
    with pytest.raises(Findings, match=r"write-write race: p0\[0\]"):
        execute("setp.eq.s32 %p0, %r0, 0; @%p0 st.global.b32 [%rd0], %r1;", torch.zeros(1), grid=2)


# CTA 0 writes 7 and raises a flag; CTA 1 waits for the flag and copies the 7. By thread 0 alone.
MESSAGE = """
  setp.ne.s32 %p0, %r0, 0;
  @%p0 bra DONE;
  setp.ne.s32 %p1, %r1, 0;
  @%p1 bra WAIT;
  mov.b32 %r2, 7;
  st.global.b32 [%rd0], %r2;
  mov.b32 %r3, 1;
  {send}
  bra DONE;
WAIT:
  {poll}
  setp.eq.s32 %p2, %r4, 0;
  @%p2 bra WAIT;
  {after}
  ld.global.b32 %r5, [%rd0];
  st.global.b32 [%rd0+8], %r5;
DONE:
"""
SEND, POLL = "st.release.gpu.global.b32 [%rd1], %r3;", "ld.acquire.gpu.global.b32 %r4, [%rd1];"
FENCED_SEND = "fence.acq_rel.gpu; st.relaxed.gpu.global.b32 [%rd1], %r3;"
RELAXED_SEND = "st.relaxed.gpu.global.b32 [%rd1], %r3;"
RELAXED_POLL = "ld.relaxed.gpu.global.b32 %r4, [%rd1];"


def message(send=SEND, poll=POLL, after="", flag=0, **options):
    data = torch.zeros(4, dtype=torch.int32)
    flags = torch.tensor([flag], dtype=torch.int32)
    execute(MESSAGE.format(send=send, poll=poll, after=after), data, flags, grid=2, **options)
    return data[2].item()


@pytest.mark.parametrize("schedule", ("lockstep", "random", "run-ahead"))
def test_messages_arrive(schedule):
    for seed in range(3):
        options = {"schedule": schedule, "seed": seed}
        assert message(**options) == 7
        assert message(send="red.release.gpu.global.add.u32 [%rd1], 1;", **options) == 7
        assert message(poll="atom.acquire.gpu.global.add.u32 %r4, [%rd1], 0;", **options) == 7
        assert message(send=FENCED_SEND, **options) == 7
        assert message(poll=RELAXED_POLL, after="fence.acq_rel.gpu;", **options) == 7
        assert message(send="membar.gl; atom.global.exch.b32 %r6, [%rd1], 1;", **options) == 7


@pytest.mark.parametrize(
    "mistake",
    (
        {"send": RELAXED_SEND},
        {"send": "red.relaxed.gpu.global.add.u32 [%rd1], 1;"},
        {"send": "st.release.cta.global.b32 [%rd1], %r3;"},
        {"send": "st.relaxed.gpu.global.b32 [%rd1], %r3; fence.acq_rel.gpu;"},
        {"poll": RELAXED_POLL},
        {"poll": "ld.acquire.cta.global.b32 %r4, [%rd1];"},
        {"poll": "atom.relaxed.gpu.global.add.u32 %r4, [%rd1], 0;"},
        {"send": "st.global.b32 [%rd1], %r3;"},
        {"flag": 1},
    ),
    ids=(
        "relaxed store", "relaxed atomic", "release of the CTA", "fence too late", "relaxed load",
        "acquire of the CTA", "relaxed poll", "weak flag", "stale flag",
    ),
)  # fmt: skip
def test_messages_that_are_not_ordered(mistake):
    with pytest.raises(Findings, match=r"race: p[01]\["):
        message(schedule="run-ahead", seed=1 if "flag" in mistake else 0, **mistake)


def test_a_flag_that_nobody_raises():
    with pytest.raises(Deadlock, match="polling, ld.acquire"):
        message(send="")


# A barrier of all CTAs, between writing one's own word and reading the next CTA's, in two rounds.
GRID = """
  mov.b32 %r10, 0;
  mov.b32 %r12, %nctaid.x;
  mov.b32 %r13, 0;
ROUND:
  and.b32 %r2, %r10, {buffers};
  mad.lo.s32 %r3, %r2, %r12, %r1;
  mul.wide.u32 %rd8, %r3, 4;
  add.s64 %rd9, %rd0, %rd8;
  add.s32 %r4, %r1, %r10;
  setp.eq.s32 %p0, %r0, 0;
  @%p0 st.global.b32 [%rd9], %r4;
  {sync}
  add.s32 %r13, %r13, %r12;
  setp.ne.s32 %p1, %r0, 0;
  @%p1 bra PASSED;
  atom.release.gpu.global.add.u32 %r5, [%rd1], 1;
POLL:
  atom.acquire.gpu.global.add.u32 %r5, [%rd1], 0;
  {adjust}
  setp.lt.u32 %p2, %r5, %r13;
  @%p2 bra POLL;
PASSED:
  bar.sync 0;
  add.s32 %r6, %r1, 1;
  rem.u32 %r6, %r6, %r12;
  mad.lo.s32 %r3, %r2, %r12, %r6;
  mul.wide.u32 %rd8, %r3, 4;
  add.s64 %rd9, %rd0, %rd8;
  ld.global.b32 %r7, [%rd9];
  add.s32 %r10, %r10, 1;
  setp.lt.s32 %p3, %r10, 4;
  @%p3 bra ROUND;
  mul.wide.u32 %rd8, %r1, 4;
  add.s64 %rd9, %rd2, %rd8;
  @%p0 st.global.b32 [%rd9], %r7;
"""


def grid_barrier(ctas=4, buffers=1, sync="bar.sync 0;", adjust="", **options):
    exchange, counter = torch.zeros(2 * ctas, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    out = torch.zeros(ctas, dtype=torch.int32)
    body = GRID.format(buffers=buffers, sync=sync, adjust=adjust)
    execute(body, exchange, counter, out, grid=ctas, **options)
    assert out.tolist() == [(cta + 1) % ctas + 3 for cta in range(ctas)]


@pytest.mark.parametrize("schedule", ("lockstep", "random", "run-ahead"))
def test_grid_barrier(schedule):
    for seed in range(4):
        grid_barrier(schedule=schedule, seed=seed)


def test_grid_barrier_that_counts_one_too_few():
    with pytest.raises(Findings, match=r"race: p0\["):
        grid_barrier(adjust="add.s32 %r5, %r5, 1;", schedule="run-ahead")


def test_grid_barrier_that_counts_one_too_many():
    with pytest.raises(Deadlock, match="polling, atom.acquire"):
        grid_barrier(adjust="sub.s32 %r5, %r5, 1; max.s32 %r5, %r5, 0;")


def test_single_buffer():
    with pytest.raises(Findings, match="write-read race"):
        grid_barrier(buffers=0)


def test_grid_that_does_not_fit():
    with pytest.raises(Deadlock, match="not resident: 3 CTAs fit at once"):
        grid_barrier(resident=3)


# Each thread copies 16 bytes, in two groups, and reads what a thread of the other warp copied.
COPY = """
  shl.b32 %r2, %r0, 4;
  mul.wide.u32 %rd8, %r2, 1;
  add.s64 %rd9, %rd0, %rd8;
  cp.async.cg.shared.global [%r2], [%rd9], 16;
  cp.async.commit_group;
  add.s64 %rd10, %rd9, 1024;  // behind what the first group copies
  add.s32 %r3, %r2, 1024;
  cp.async.cg.shared.global [%r3], [%rd10], 16;
  cp.async.commit_group;
  {wait}
  {barrier}
  sub.s32 %r4, 1008, %r2;
  ld.shared.b32 %r5, [%r4];
  add.s64 %rd11, %rd1, %rd8;
  st.global.b32 [%rd11], %r5;
"""


def copy(wait="cp.async.wait_group 1;", barrier="bar.sync 0;"):
    source, out = torch.arange(512, dtype=torch.int32), torch.zeros(256, dtype=torch.int32)
    execute(COPY.format(wait=wait, barrier=barrier), source, out)
    assert out[::4].tolist() == list(range(252, -1, -4))


def test_asynchronous_copies():
    copy()
    copy(wait="cp.async.wait_all;")
    copy(wait="cp.async.wait_group 0;")


@pytest.mark.parametrize(
    "mistake", ({"wait": ""}, {"wait": "cp.async.wait_group 2;"}, {"barrier": ""}), ids=str
)
def test_asynchronous_copies_not_waited_for(mistake):
    with pytest.raises(Findings, match="uninitialised read|through cp.async"):
        copy(**mistake)


def test_a_buffer_reused_while_it_is_being_filled():
    with pytest.raises(Findings, match="write-write race(.|\n)*through cp.async"):
        copy(wait="st.shared.b32 [%r2], %r0; cp.async.wait_group 0;")


@pytest.mark.parametrize("step", (4, -4))
def test_out_of_bounds(step):
    words = torch.zeros(64, dtype=torch.int32)
    read = "mul.wide.u32 %rd8, %r0, 4; add.s64 %rd9, %rd0, %rd8; ld.global.b32 %r2, [%rd9+{}];"
    execute(read.format(0), words)
    with pytest.raises(MemoryFault, match="ld.global.b32.*out of bounds.*p0"):
        execute(read.format(step), words)
    with pytest.raises(MemoryFault, match="st.global.b32.*out of bounds.*p0"):
        execute(read.format(0) + f"st.global.b32 [%rd9+{step}], %r2;", words)


def test_shared_memory_out_of_bounds():
    with pytest.raises(MemoryFault, match="out of bounds.*shared memory of CTA"):
        execute("mov.b32 %r2, 4096; st.shared.b32 [%r2], %r0;", torch.zeros(1), threads=32)


def test_misaligned():
    with pytest.raises(MemoryFault, match="misaligned by 4 of 16 bytes"):
        execute("ld.global.v4.b32 {%r2, %r3, %r4, %r5}, [%rd0+4];", torch.zeros(64), threads=32)


def test_truncated_address():
    with pytest.raises(MemoryFault, match="out of bounds"):
        execute("cvt.u32.u64 %r2, %rd0; cvt.u64.u32 %rd8, %r2; ld.global.b32 %r3, [%rd8];",
                torch.zeros(1))  # fmt: skip


def test_uninitialised_shared_memory():
    with pytest.raises(Findings, match="uninitialised read: shared memory of CTA 0, byte 0"):
        execute("shl.b32 %r2, %r0, 2; ld.shared.b32 %r3, [%r2];", torch.zeros(1))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.int64, torch.float64))
def test_uninitialised_global_memory(dtype):
    size = dtype.itemsize
    register = {2: "%rs0", 4: "%r2", 8: "%rd8"}[size]
    body = f"ld.global.b{8 * size} {register}, [%rd0+{size}];"
    with simulate(80) as device:
        from tests.support.ptx import ptx

        for make in (torch.empty, torch.zeros(1).new_empty):
            fresh = make(2, dtype=dtype)
            with pytest.raises(Findings, match=r"uninitialised read: p0\[1\]"):
                device.run(ptx(body, threads=32), (1,), {"p0": fresh})
            fresh[1] = 5
            device.run(ptx(body, threads=32), (1,), {"p0": fresh})


def test_a_barrier_that_some_lanes_miss():
    with pytest.raises(SimulatorError, match=r"bar.sync.*only some lanes"):
        execute("setp.lt.u32 %p0, %r0, 40; @!%p0 bra OVER; bar.sync 0;\nOVER:", torch.zeros(1))


def test_a_barrier_that_a_warp_misses():
    with pytest.raises(Deadlock, match="at a barrier, bar.sync"):
        execute("setp.lt.u32 %p0, %r0, 32; @!%p0 bra OVER; bar.sync 0;\nOVER:", torch.zeros(1))


def test_a_shuffle_that_some_lanes_miss():
    with pytest.raises(SimulatorError, match="shfl.*only some lanes"):
        execute("setp.lt.u32 %p0, %r0, 9; @!%p0 bra OVER;"
                "shfl.sync.idx.b32 %r2, %r0, 0, 31, -1;\nOVER:", torch.zeros(1))  # fmt: skip


def test_an_atomic_beside_a_plain_write():
    with pytest.raises(Findings, match=r"race: p0\[0\]"):
        execute("setp.eq.s32 %p0, %r0, 0; setp.eq.s32 %p1, %r0, 32;"
                "@%p0 st.global.b32 [%rd0], 5; @%p1 atom.global.add.u32 %r2, [%rd0], 1;",
                torch.zeros(1, dtype=torch.int32))  # fmt: skip


@pytest.mark.parametrize("seed", (0, 1), ids=("atomic first", "atomic last"))
@pytest.mark.parametrize("plain", ("ld.global.b32 %r2, [%rd0];", "st.global.b32 [%rd0], 5;"))
@pytest.mark.parametrize(
    "strong", ("red.relaxed.gpu.global.add.u32 [%rd0], 1;", "st.relaxed.gpu.global.b32 [%rd0], 1;")
)
def test_strong_writes_beside_weak_accesses(strong, plain, seed):
    """In either order; those of one kind are no race."""
    body = "setp.eq.s32 %p0, %r0, 0; setp.eq.s32 %p1, %r1, 0; and.pred %p2, %p0, %p1;"
    body += f"not.pred %p1, %p1; and.pred %p3, %p0, %p1; @%p2 {strong} @%p3 "
    options = {"grid": 2, "schedule": "run-ahead", "seed": seed}
    word = torch.zeros(1, dtype=torch.int32)
    with pytest.raises(Findings, match=r"race: p0\[0\]"):
        execute(body + plain, word, **options)
    execute(body + strong, word, **options)
    execute(body + "ld.relaxed.gpu.global.b32 %r2, [%rd0];", word, **options)


@pytest.mark.parametrize("schedule", ("lockstep", "random", "run-ahead"))
def test_rounds_that_are_counted_end(schedule):
    """Nothing in memory changes, and yet the loop is not one without end."""
    body = """
      mov.b32 %r2, 0;
    ROUND:
      red.relaxed.gpu.global.max.u32 [%rd0], 0;
      {barrier}
      add.s32 %r2, %r2, 1;
      setp.lt.u32 %p0, %r2, {rounds};
      @%p0 bra ROUND;
    """
    word = torch.zeros(1, dtype=torch.int32)
    for barrier in ("", "bar.sync 0;"):
        execute(body.format(rounds=9, barrier=barrier), word, grid=2, schedule=schedule)
        endless = body.format(rounds=9, barrier=barrier).replace("add.s32 %r2, %r2, 1;", "")
        with pytest.raises(Deadlock, match="every warp waits forever"):
            execute(endless, word, grid=2, schedule=schedule)


def test_a_loop_without_end():
    with pytest.raises(Deadlock, match="no end after 500 stretches"):
        execute("LOOP: add.s32 %r2, %r0, 1; bra LOOP;".replace(": ", ":\n"), torch.zeros(1),
                stretches=500)  # fmt: skip


def test_a_trap():
    with pytest.raises(KernelTrap, match="trap"):
        execute("setp.eq.s32 %p0, %r0, 33; @%p0 trap;", torch.zeros(1))
    execute("setp.eq.s32 %p0, %r0, 99; @%p0 trap;", torch.zeros(1))


def test_an_assertion():
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(x_ptr, y_ptr):
        x = tl.load(x_ptr + tl.arange(0, 64))
        tl.device_assert(x > 0, "positive, if you please")
        tl.store(y_ptr + tl.arange(0, 64), -x)

    x, y = torch.arange(1.0, 65), torch.zeros(64)
    with simulate(80):
        kernel[(1,)](x, y, debug=True)
        assert torch.equal(y, -x)
        x[40] = 0
        with pytest.raises(KernelTrap, match=r"test_known_bad.py.*positive, if you please"):
            kernel[(1,)](x, y, debug=True)
        kernel[(1,)](x, y)  # without debug=True there are no assertions


def test_too_much_for_the_chip():
    import triton
    import triton.language as tl

    @triton.jit
    def kernel(x_ptr):
        tl.store(x_ptr + tl.program_id(0), 1.0)

    with simulate(80, resident=4):
        kernel[(4,)](torch.zeros(8), launch_cooperative_grid=True)
        with pytest.raises(LaunchError, match="5 CTAs, of which 4 fit on the A100"):
            kernel[(5,)](torch.zeros(8), launch_cooperative_grid=True)


@pytest.mark.parametrize(
    ("body", "named"),
    (
        ("tex.2d.v4.f32.f32 {%r2, %r3, %r4, %r5}, [%rd0, {%r2, %r3}];", "tex.2d"),
        ("add.cc.u32 %r2, %r0, %r0;", "add.cc.u32"),
        ("ld.global.L3.b32 %r2, [%rd0];", "ld.global.L3.b32"),
        ("st.shared.async.b32 [%r0], %r0;", "async"),
        ("mma.sync.aligned.m7n8k9.row.col.f32.bf16.bf16.f32 {%r2}, {%r2}, {%r2}, {%r2};", "m7n8k9"),
        ("bar.red.popc.u32 %r2, 0, %p0;", "bar.red"),
        ("mov.b32 %r2, %clock;", "%clock"),
        ("call.uni helper, ();", "call.uni"),
    ),
    ids=str,
)
def test_what_is_not_known_is_named(body, named):
    with pytest.raises(Unsupported, match=named.replace(".", r"\.")):
        execute(body, torch.zeros(1))


def test_a_register_that_nothing_writes():
    """The compiler may read one where the value does not matter; where it does, it is NaN."""
    out = torch.zeros(1)
    first = "setp.eq.s32 %p0, %r0, 0; @%p0 st.global.b32 [%rd0], %r2;"
    execute("add.f32 %r2, %r17, 0f00000000;" + first, out)
    assert out.isnan()
    with pytest.raises(MemoryFault):
        execute("st.global.b32 [%rd9], 1;", out)


def test_bad_arguments_of_simulate():
    with pytest.raises(ValueError, match=r"capability: expected one of \[80, 86, 89, 90\], got 75"):
        execute("", torch.zeros(1), capability=75)
    with pytest.raises(ValueError, match="schedule: expected lockstep, random or run-ahead"):
        execute("", torch.zeros(1), schedule="chaos")
