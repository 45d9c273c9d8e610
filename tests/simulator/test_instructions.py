"""Instructions that touch memory, or other lanes, executed in small kernels."""

import numpy as np
import pytest
import torch

from simulator import Unsupported
from simulator.instructions.exchange import shuffle
from tests.support.ptx import execute

# Each thread's own place in p0: %rd9 for words of 4 bytes, %rd11 for 8, %r2 in shared memory.
OWN = """
  mul.wide.u32 %rd8, %r0, 4;
  add.s64 %rd9, %rd0, %rd8;
  mul.wide.u32 %rd10, %r0, 8;
  add.s64 %rd11, %rd0, %rd10;
  shl.b32 %r2, %r0, 2;
"""


def words(body, threads=32, dtype=torch.int32, size=None, **options):
    """What a kernel leaves in p0, of which each thread has a word."""
    out = torch.zeros(size or threads, dtype=dtype)
    execute(OWN + body, out, threads=threads, **options)
    return out.tolist()


@pytest.mark.parametrize("space", ("global", "shared"))
@pytest.mark.parametrize("bits", (8, 16, 32, 64))
def test_every_width(bits, space):
    """Stored and loaded again, with adjacent bytes unchanged."""
    register = {8: "%rs1", 16: "%rs1", 32: "%r5", 64: "%rd12"}[bits]
    fill = {8: "cvt.u16.u32 %rs1, %r0;", 16: "cvt.u16.u32 %rs1, %r0;", 32: "mov.b32 %r5, %r0;",
            64: "cvt.u64.u32 %rd12, %r0;"}[bits]  # fmt: skip
    empty = {"%rs1": "mov.b16 %rs1, 0;", "%r5": "mov.b32 %r5, 0;", "%rd12": "mov.b64 %rd12, 0;"}
    place = f"mul.lo.s32 %r3, %r0, {bits // 8}; mul.wide.u32 %rd13, %r3, 1;"
    there = {"global": "%rd14", "shared": "%r3"}[space]
    back = {"%rs1": "cvt.u32.u16 %r6, %rs1;", "%r5": "mov.b32 %r6, %r5;",
            "%rd12": "cvt.u32.u64 %r6, %rd12;"}[register]  # fmt: skip
    body = f"""
      {place}
      add.s64 %rd14, %rd1, %rd13;
      {fill}
      st.{space}.b{bits} [{there}], {register};
      {empty[register]}
      ld.{space}.b{bits} {register}, [{there}];
      {back}
      st.global.b32 [%rd9], %r6;
    """
    out, scratch = torch.zeros(32, dtype=torch.int32), torch.full((64 * 8,), -1, dtype=torch.int8)
    execute(OWN + body, out, scratch, threads=32)
    assert out.tolist() == list(range(32))
    if space == "global":
        assert scratch[32 * bits // 8 :].eq(-1).all()


@pytest.mark.parametrize("space", ("global", "shared"))
@pytest.mark.parametrize("count", (2, 4))
def test_vectors(count, space):
    names = "{" + ", ".join(f"%r{4 + k}" for k in range(count)) + "}"
    fill = "".join(f"add.s32 %r{4 + k}, %r0, {100 * k};" for k in range(count))
    body = f"""
      mul.lo.s32 %r3, %r0, {4 * count};
      mul.wide.u32 %rd12, %r3, 1;
      add.s64 %rd13, %rd0, %rd12;
      {fill}
      st.shared.v{count}.b32 [%r3], {names};
      {"".join(f"mov.b32 %r{4 + k}, 0;" for k in range(count))}
      ld.shared.v{count}.b32 {names}, [%r3];
      st.global.v{count}.b32 [%rd13], {names};
    """
    want = [thread + 100 * k for thread in range(32) for k in range(count)]
    assert words(body, size=32 * count) == want


def test_sign_and_zero_extension():
    """Into a wider register, by the type of the instruction."""
    data = torch.full((32,), -2, dtype=torch.int16)
    for kind, want in (("s16", 2**32 - 2), ("u16", 2**16 - 2), ("b16", 2**16 - 2)):
        out = torch.zeros(1, dtype=torch.int64)
        execute(f"ld.global.{kind} %r3, [%rd1]; cvt.u64.u32 %rd8, %r3;"
                "setp.eq.s32 %p0, %r0, 0; @%p0 st.global.b64 [%rd0], %rd8;",
                out, data, threads=32)  # fmt: skip
        assert out.item() == want


def test_guards():
    assert words("setp.lt.u32 %p0, %r0, 5; @%p0 st.global.b32 [%rd9], 1;") == [1] * 5 + [0] * 27
    assert words("setp.lt.u32 %p0, %r0, 5; @!%p0 st.global.b32 [%rd9], 1;") == [0] * 5 + [1] * 27
    kept = (
        "mov.b32 %r3, 7; setp.lt.u32 %p0, %r0, 5; @%p0 mov.b32 %r3, 8; st.global.b32 [%rd9], %r3;"
    )
    assert words(kept) == [8] * 5 + [7] * 27


def test_lanes_that_part_and_meet():
    """A loop of another length in each lane, with a branch inside."""
    body = """
      mov.b32 %r3, 0;
      mov.b32 %r4, 0;
    LOOP:
      setp.ge.u32 %p0, %r3, %r0;
      @%p0 bra DONE;
      and.b32 %r5, %r3, 1;
      setp.eq.s32 %p1, %r5, 0;
      @%p1 bra EVEN;
      add.s32 %r4, %r4, 100;
      bra.uni NEXT;
    EVEN:
      add.s32 %r4, %r4, 1;
    NEXT:
      add.s32 %r3, %r3, 1;
      bra.uni LOOP;
    DONE:
      st.global.b32 [%rd9], %r4;
      bar.sync 0;
    """
    want = [(n + 1) // 2 + n // 2 * 100 for n in range(64)]
    for schedule in ("lockstep", "random", "run-ahead"):
        assert words(body, threads=64, schedule=schedule) == want


def test_lanes_that_leave_early():
    body = "setp.lt.u32 %p0, %r0, 9; @%p0 ret; st.global.b32 [%rd9], 3;"
    assert words(body) == [0] * 9 + [3] * 23


def test_moves():
    halves = """
      cvt.u16.u32 %rs1, %r0;
      mov.b16 %rs2, 3;
      mov.b32 %r3, {%rs1, %rs2};
      mov.b32 {%rs3, %rs4}, %r3;
      mov.b64 %rd12, {%r3, %r0};
      mov.b64 {%r4, %r5}, %rd12;
      cvt.u32.u16 %r6, %rs4;
      mad.lo.s32 %r4, %r5, 1, %r4;
      add.s32 %r4, %r4, %r6;
      st.global.b32 [%rd9], %r4;
    """
    assert words(halves) == [n + (3 << 16) + n + 3 for n in range(32)]


ATOMICS = {
    "add": lambda old, x: old + x,
    "min": min,
    "max": max,
    "and": lambda old, x: old & x,
    "or": lambda old, x: old | x,
    "xor": lambda old, x: old ^ x,
    "exch": lambda old, x: x,
    "inc": lambda old, x: 0 if old >= x else old + 1,
    "dec": lambda old, x: x if old == 0 or old > x else old - 1,
}


@pytest.mark.parametrize("space", ("global", "shared"))
@pytest.mark.parametrize("name", ATOMICS)
def test_atomics(name, space):
    """All lanes at one place, one after the other; each is given what it found."""
    kind = {"and": "b32", "or": "b32", "xor": "b32", "exch": "b32"}.get(name, "u32")
    body = f"""
      mad.lo.s32 %r3, %r0, 37, 5;
      and.b32 %r3, %r3, 63;
      setp.eq.s32 %p0, %r0, 0;
      @%p0 st.shared.b32 [0], 9;
      @%p0 st.global.b32 [%rd1], 9;
      atom.{space}.{name}.{kind} %r4, [{"%rd1" if space == "global" else "0"}], %r3;
      st.global.b32 [%rd9], %r4;
    """
    out, place = torch.zeros(32, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    execute(OWN + body, out, place, threads=32)
    value, found = 9, []
    for thread in range(32):
        found.append(value)
        value = ATOMICS[name](value, thread * 37 + 5 & 63)
    assert out.tolist() == found
    if space == "global":
        assert place.item() == value


def test_compare_and_swap():
    """A lock-free maximum of the thread numbers, by every warp of several CTAs."""
    body = """
      ld.relaxed.gpu.global.b32 %r3, [%rd0];
    AGAIN:
      mov.b32 %r4, %r3;
      max.s32 %r5, %r4, %r0;
      atom.relaxed.gpu.global.cas.b32 %r3, [%rd0], %r4, %r5;
      setp.ne.s32 %p0, %r3, %r4;
      @%p0 bra AGAIN;
    """
    for schedule in ("lockstep", "random", "run-ahead"):
        out = torch.zeros(1, dtype=torch.int32)
        execute(body, out, grid=3, schedule=schedule)
        assert out.item() == 63


@pytest.mark.parametrize(("kind", "dtype"), (("f32", torch.float32), ("f64", torch.float64)))
def test_float_atomics_and_reductions(kind, dtype):
    value = {"f32": "cvt.rn.f32.u32 %r3, %r0;", "f64": "cvt.rn.f64.u32 %rd3, %r0;"}[kind]
    register = {"f32": "%r3", "f64": "%rd3"}[kind]
    out = torch.zeros(1, dtype=dtype)
    execute(f"{value} red.global.add.{kind} [%rd0], {register};", out, grid=2)
    assert out.item() == 2 * sum(range(64))


HALVES = {"f16": torch.float16, "bf16": torch.bfloat16}


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("name", ("add", "min", "max"))
@pytest.mark.parametrize("packed", ("", "x2"))
@pytest.mark.parametrize("count", (1, 2, 4))
def test_atomics_on_halves_and_vectors(count, packed, name, kind):
    """All lanes at one place: each element is changed by itself, and rounded every time."""
    elements = count * (2 if packed else 1)
    many = f".v{count}" if count > 1 else ""
    register, bits = ("%r", 32) if packed else ("%rs", 16)
    first = [f"{register}{4 + k}" for k in range(count)]
    found = [f"{register}{12 + k}" for k in range(count)]
    braced = "{{{}}}" if count > 1 else "{}"
    values, found = braced.format(", ".join(first)), braced.format(", ".join(found))
    body = f"""
      mul.lo.s32 %r2, %r0, {2 * elements};
      mul.wide.u32 %rd8, %r2, 1;
      add.s64 %rd9, %rd0, %rd8;
      add.s64 %rd10, %rd2, %rd8;
      ld.global{many}.b{bits} {values}, [%rd9];
      atom.global.{name}.noftz{many}.{kind}{packed} {found}, [%rd1], {values};
      st.global{many}.b{bits} [%rd10], {found};
    """
    x = (3 * torch.randn(32, elements)).to(HALVES[kind])
    place, out = torch.randn(elements).to(HALVES[kind]), torch.zeros_like(x)
    value, want = place.clone(), []
    combine = {"add": torch.add, "min": torch.minimum, "max": torch.maximum}[name]
    for row in x:
        want.append(value)
        value = combine(value, row)
    execute(body, x, place, out, threads=32)
    assert torch.equal(out, torch.stack(want))
    assert torch.equal(place, value)


def test_vector_atomics_on_float32():
    out = torch.zeros(4)
    body = "cvt.rn.f32.u32 %r2, %r0; mov.b32 %r3, 0f40000000;"
    execute(body + "red.global.add.v4.f32 [%rd0], {%r2, %r3, %r2, %r3};", out, grid=2)
    assert out.tolist() == [2 * sum(range(64)), 256, 2 * sum(range(64)), 256]


@pytest.mark.parametrize("mode", ("idx", "up", "down", "bfly"))
def test_shuffles(mode):
    """Against the manual's pseudocode, lane by lane."""
    random = np.random.default_rng(0)
    values = random.integers(0, 2**32, (3, 32)).astype(np.uint32)
    for b, segment, clamp in ((1, 0, 31), (5, 16, 15), (3, 24, 7), (31, 0, 31), (0, 28, 3)):
        if mode == "up":
            clamp = 0
        got = shuffle(values, mode, np.uint32(b), np.uint32(segment << 8 | clamp))
        for lane in range(32):
            limit = (lane & segment) | (clamp & ~segment)
            chosen = (lane & segment) | (b & ~segment)
            j, inside = {
                "up": (lane - b, lane - b >= limit),
                "down": (lane + b, lane + b <= limit),
                "bfly": (lane ^ b, lane ^ b <= limit),
                "idx": (chosen, chosen <= limit),
            }[mode]  # fmt: skip
            assert (got[:, lane] == values[:, j if inside else lane]).all(), (b, segment, lane)


def test_a_reduction_by_shuffles():
    step = "shfl.sync.bfly.b32 %r4, %r3, {}, 31, -1; add.s32 %r3, %r3, %r4;"
    body = "mov.b32 %r3, %r0;" + "".join(map(step.format, (16, 8, 4, 2, 1)))
    assert words(body + "st.global.b32 [%rd9], %r3;") == [sum(range(32))] * 32


@pytest.mark.parametrize(
    ("vote", "want"),
    (
        ("vote.sync.ballot.b32 %r3, %p0, -1;", [0b11111] * 32),
        ("vote.sync.any.pred %p1, %p0, -1; selp.b32 %r3, 1, 0, %p1;", [1] * 32),
        ("vote.sync.all.pred %p1, %p0, -1; selp.b32 %r3, 1, 0, %p1;", [0] * 32),
        ("vote.sync.all.pred %p1, !%p0, -1; selp.b32 %r3, 1, 0, %p1;", [0] * 32),
        ("vote.sync.uni.pred %p1, %p0, -1; selp.b32 %r3, 1, 0, %p1;", [0] * 32),
        ("redux.sync.add.s32 %r3, %r0, -1;", [496] * 32),
        ("redux.sync.max.u32 %r3, %r0, -1;", [31] * 32),
        ("redux.sync.xor.b32 %r3, %r0, -1;", [0] * 32),
        ("elect.sync _|%p1, -1; selp.b32 %r3, 1, 0, %p1;", [1] + [0] * 31),
    ),
    ids=lambda case: case.split(".")[0] if isinstance(case, str) else "",
)
def test_votes_and_reductions(vote, want):
    body = f"setp.lt.u32 %p0, %r0, 5; {vote} st.global.b32 [%rd9], %r3;"
    assert words(body) == want


def test_member_masks_that_leave_lanes_out_are_not_known():
    with pytest.raises(Unsupported, match="member mask"):
        words("shfl.sync.idx.b32 %r3, %r0, 0, 31, 65535;")


def test_special_registers():
    body = """
      mov.u32 %r3, %ctaid.x;
      mov.u32 %r4, %nctaid.x;
      mov.u32 %r5, %ntid.x;
      mov.u32 %r6, %laneid;
      mad.lo.s32 %r7, %r3, %r5, %r0;
      mul.wide.u32 %rd12, %r7, 4;
      add.s64 %rd13, %rd0, %rd12;
      mad.lo.s32 %r8, %r4, 1000, %r6;
      st.global.b32 [%rd13], %r8;
    """
    assert words(body, threads=64, size=192, grid=3) == [3000 + n % 32 for n in range(192)]


def test_named_barriers():
    """Two warps meet at barrier 1; the other two are not waited for."""
    body = """
      setp.ge.u32 %p0, %r0, 64;
      @%p0 bra OTHERS;
      st.shared.b32 [%r2], %r0;
      bar.sync 1, 64;
      sub.s32 %r3, 252, %r2;
      ld.shared.b32 %r4, [%r3];
      st.global.b32 [%rd9], %r4;
    OTHERS:
    """
    assert words(body, threads=128) == list(range(63, -1, -1)) + [0] * 64


def test_traffic_is_counted():
    body = OWN + "ld.global.b32 %r3, [%rd9]; st.shared.b32 [%r2], %r3;"
    counters = execute(body, torch.zeros(64, dtype=torch.int32)).counters
    assert counters.arguments["p0"].read == 256
    assert counters.spaces["shared"].written == 256
    assert counters["global sectors"] == 8
    assert counters["global requests"] == 2
    assert counters["shared wavefronts"] == 2
    assert counters["instructions"] == 2 * 11  # the body's 7, two ld.param and mov, ret


@pytest.mark.parametrize(
    ("store", "wavefronts"),
    (
        ("shl.b32 %r3, %r0, 2; st.shared.b32 [%r3], %r0;", 1),
        ("shl.b32 %r3, %r0, 3; st.shared.b32 [%r3], %r0;", 2),
        ("shl.b32 %r3, %r0, 7; st.shared.b32 [%r3], %r0;", 32),
        ("shl.b32 %r3, %r0, 3; st.shared.v2.b32 [%r3], {%r0, %r0};", 2),
        ("shl.b32 %r3, %r0, 4; st.shared.v4.b32 [%r3], {%r0, %r0, %r0, %r0};", 4),
        ("shl.b32 %r3, %r0, 6; st.shared.v4.b32 [%r3], {%r0, %r0, %r0, %r0};", 16),
        ("cvt.u16.u32 %rs1, %r0; shl.b32 %r3, %r0, 1; st.shared.b16 [%r3], %rs1;", 1),
    ),
)
def test_bank_conflicts(store, wavefronts):
    counters = execute(store, torch.zeros(1), threads=32).counters
    parts = 2 if "v2" in store else 4 if "v4" in store else 1
    assert counters["shared wavefronts"] == wavefronts
    assert counters["bank conflicts"] == wavefronts - parts
