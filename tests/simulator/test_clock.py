"""The clock: loops of machine code whose cycles can be worked out by hand."""

import pytest

from simulator import Unsupported, clock, pipes, sass
from tests.support.ptx import assemble

CAPABILITIES = (80, 90)
LOOP = """
  .reg .f32 %v<160>;
  .reg .f32 %a<8>;
  mul.wide.u32 %rd8, %r0, 16;
  add.s64 %rd9, %rd0, %rd8;
  shl.b32 %r9, %r0, 4;
  ld.global.v4.b32 {{%r2, %r3, %r4, %r5}}, [%rd9];
  mov.u32 %r10, 0;
  {before}
LOOP:
  .pragma "nounroll";
  {body}
  add.u32 %r10, %r10, 1;
  setp.lt.u32 %p1, %r10, %r5;
  @%p1 bra LOOP;
  {after}
"""
PRODUCT = (
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {{%v{0}, %v{1}, %v{2}, %v{3}}}, "
    "{{%r2, %r3, %r4, %r5}}, {{%r2, %r3}}, {{%v{0}, %v{1}, %v{2}, %v{3}}};"
)


@pytest.fixture
def timed(tmp_path):
    """A function that assembles a loop and times a pass of it."""

    def run(body, capability=80, warps=1, before="", after="", **options):
        text = LOOP.format(body=body, before=before, after=after)
        cubin = assemble(text, tmp_path, capability, threads=32 * warps)
        return clock.cycles(cubin, capability, warps, **options)

    return run


def zeros(count, prefix="%v"):
    return "\n".join(f"mov.f32 {prefix}{k}, 0f00000000;" for k in range(count))


def stored(count, prefix="%v"):
    """Store registers, so that what computes them stays."""
    return "\n".join(f"st.global.f32 [%rd9+{4 * k}], {prefix}{k};" for k in range(count))


def chain(n):
    return "\n".join([PRODUCT.format(0, 1, 2, 3)] * n)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_chain_of_products_takes_the_latency_of_each(timed, capability):
    around = {"before": zeros(4), "after": stored(4)}
    short, long = (timed(chain(n), capability, **around) for n in (4, 12))
    assert long.total - short.total == 8 * pipes.CHIPS[capability].product
    assert long.spent["tensor"] > 0.2 * long.total


@pytest.mark.parametrize(("capability", "pace"), [(80, 8), (90, 2048 / 335)])
def test_independent_products_take_the_pace_of_the_tensor_cores(timed, capability, pace):
    def run(n, warps):
        body = "\n".join(PRODUCT.format(*range(4 * k, 4 * k + 4)) for k in range(n))
        return timed(body, capability, warps, before=zeros(4 * n), after=stored(4 * n))

    # Sixteen results are more than the latency: each scheduler has its own tensor core. The
    # assembler lets no warp start one more often than every eight cycles.
    four, eight = run(16, 4), run(16, 8)
    assert four.total == pytest.approx(16 * 8, rel=0.1)
    assert eight.total == pytest.approx(32 * pace, rel=0.1)
    assert eight.busy["tensor"] == pytest.approx(32 * pace)
    assert eight.busiest == "tensor"


def special(n):
    return "\n".join(f"ex2.approx.ftz.f32 %v{k}, %v{k};" for k in range(n))


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_special_functions_are_sixteen_a_cycle(timed, capability):
    def run(n, warps):
        return timed(special(n), capability, warps, before=zeros(n), after=stored(n))

    for warps, cycles in ((4, 8), (8, 16), (16, 32)):
        assert run(64, warps).total - run(32, warps).total == pytest.approx(32 * cycles, abs=8)
        assert run(64, warps).busy["special"] == 64 * cycles
    assert run(64, 8).busiest == "special"
    assert run(64, 8).special_functions == 64 * 8


def test_dependent_special_functions_take_their_latency(timed):
    short, long = (
        timed("ex2.approx.ftz.f32 %v0, %v0;\n" * n, before=zeros(1), after=stored(1))
        for n in (5, 15)
    )
    assert long.total - short.total == 10 * pipes.CHIPS[80].special_function
    assert long.spent["special"] > 0.5 * long.total


def shared_loads(n, kind="v4.f32"):
    registers = "{{%v{0}, %v{1}, %v{2}, %v{3}}}" if kind == "v4.f32" else "%v{0}"
    return "\n".join(
        f"ld.shared.{kind} {registers.format(*range(4 * k, 4 * k + 4))}, [%r9+{512 * k}];"
        for k in range(n)
    )


def test_shared_memory_passes_one_wavefront_a_cycle(timed):
    """Loads are consumed a pass later than all have been asked for: only their pace counts."""

    def run(n, kind="v4.f32", **options):
        # A store that the loop repeats, so that the loads stay inside it.
        body = shared_loads(n, kind) + "\nst.shared.f32 [%r9], %v0;"
        return timed(body, 80, 16, after=stored(4 * n), before=zeros(4 * n), **options)

    for kind, wavefronts in (("v4.f32", 4), ("f32", 1)):
        more = run(16, kind).total - run(8, kind).total
        assert more == pytest.approx(8 * 16 * wavefronts, rel=0.15)
    assert run(16).busiest == "shared"
    conflicting = run(16, wavefronts={("read", 16): 2.0})
    assert conflicting.busy["shared"] - run(16).busy["shared"] == 16 * 16 * 4


def test_opcodes_are_sorted_by_pipe():
    for opcode, kind in (
        ("HFMA2.MMA", "fp16"), ("HMMA.16816.F32.BF16", "tensor"), ("IMAD.WIDE.U32", "fp32 integer"),
        ("REDG.E.ADD.64.STRONG.GPU", "global"), ("ULDC.64", "uniform"), ("F2FP.BF16.PACK_AB",
        "integer"), ("MUFU.EX2", "special"), ("LDC", "constant"), ("BAR.SYNC", "barrier"),
    ):  # fmt: skip
        assert pipes.kind(opcode) == kind
    assert pipes.access("REDG.E.ADD.64.STRONG.GPU") == ("atomic", 8)
    assert pipes.access("LDGSTS.E.BYPASS.128") == ("read", 16)
    assert pipes.access("STS.U16") == ("write", 2)


def test_matrices_take_a_wavefront_each():
    for name, wavefronts in (("LDSM.16.M88", 1), ("LDSM.16.M88.2", 2), ("LDSM.16.MT88.4", 4)):
        assert pipes.wavefronts(name) == wavefronts
    assert pipes.wavefronts("LDS.128") == 4
    assert pipes.wavefronts("STS.U16") == 1
    assert pipes.sectors("LDG.E.128") == 16
    assert pipes.sectors("STG.E.U16") == 2


def test_a_barrier_waits_for_the_slowest_warp(timed):
    """Of five warps two share a scheduler: the other three wait at the barrier."""
    body = special(32) + "\nbar.sync 0;"
    four, five = (timed(body, 80, warps, before=zeros(32), after=stored(32)) for warps in (4, 5))
    assert five.total - four.total == pytest.approx(32 * 8, abs=8)
    skew = five.spent["barrier"] - four.spent["barrier"]
    assert skew == pytest.approx(32 * 8 * 3 / 5, abs=12)


def test_a_barrier_costs_its_latency(timed):
    body = "bar.sync 0;\n"
    more = timed(body * 9, 80, 2).total - timed(body * 5, 80, 2).total
    assert more == pytest.approx(4 * (pipes.CHIPS[80].barrier + 1), abs=8)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_loads_that_depend_take_the_latency_of_each(timed, capability):
    chip = pipes.CHIPS[capability]
    step = "ld.global.b64 %rd9, [%rd9];\n"
    sector = 8 * 32 / chip.path

    def run(n, **options):
        return timed(step * n, capability, after="st.global.b64 [%rd0], %rd9;", **options).total

    assert run(6) - run(2) == pytest.approx(4 * (chip.l2 + sector), abs=4)
    assert run(6, dram=True) - run(2, dram=True) == pytest.approx(4 * (chip.dram + sector), abs=4)
    one = run(6, sectors={("read", 8): 1.0})
    assert run(6) - one == pytest.approx(6 * (sector - 32 / chip.path))


def loads(n):
    lines = [
        f"ld.global.v4.f32 {{%v{4 * k}, %v{4 * k + 1}, %v{4 * k + 2}, %v{4 * k + 3}}}, "
        f"[%rd9+{512 * k}];"
        for k in range(n)
    ]
    sums = [f"add.f32 %a0, %a0, %v{k};" for k in range(4 * n)]
    return "\n".join([*lines, *sums, "st.global.f32 [%rd9], %a0;"])


def test_loads_in_flight_share_one_latency(timed):
    chip = pipes.CHIPS[80]
    few, many = (timed(loads(n), before=zeros(1, "%a"), after=stored(1, "%a")) for n in (2, 10))
    sums = 8 * 4 * 4  # four dependent sums for each load, four cycles each
    # Each load adds its 512 bytes on the way from L2; none adds a latency.
    assert many.total - few.total <= 8 * 512 / chip.path + sums + 16 < 8 * chip.l2
    assert chip.l2 < few.total < 2 * chip.l2


def test_l2_passes_64_bytes_a_cycle(timed):
    def run(**options):
        return timed(loads(16), 80, 16, before=zeros(1, "%a"), after=stored(1, "%a"), **options)

    whole = run()
    assert whole.busy["L2 reads"] == 16 * 16 * 512 / 64
    assert whole.total == pytest.approx(whole.busy["L2 reads"], rel=0.02)
    # Lanes that use half of each sector.
    scattered = run(sectors={("read", 16): 32.0})
    assert scattered.busy["L2 reads"] == 2 * whole.busy["L2 reads"]
    assert scattered.total - whole.total == pytest.approx(whole.busy["L2 reads"], rel=0.1)


def test_an_atomic_takes_its_latency(timed):
    body = "atom.global.acquire.gpu.exch.b32 %r4, [%rd0], %r4;\n"
    more = [timed(body * n, after="st.global.b32 [%rd9], %r4;").total for n in (2, 4)]
    assert more[1] - more[0] == pytest.approx(2 * pipes.CHIPS[80].atomic, abs=100)


ARRIVE = "red.release.gpu.global.add.u32 [%rd0], 1;\n"


@pytest.mark.parametrize(
    "poll",
    ["ld.acquire.gpu.global.b32 %r4, [%rd0];", "atom.global.acquire.gpu.exch.b32 %r4, [%rd0], 0;"],
)
def test_a_loop_that_polls_takes_one_access_or_the_barrier_of_the_grid(timed, poll):
    # Without the barrier the assembler makes one loop of both.
    wait = f"WAIT:\n{poll}\nsetp.ne.u32 %p2, %r4, 7;\n@%p2 bra WAIT;\nbar.sync 0;\n"
    # The store keeps the work on its side of the arrival.
    work = "ex2.approx.ftz.f32 %v0, %v0;\n" * 20 + "st.global.f32 [%rd9], %v0;\n"
    chip = pipes.CHIPS[80]
    around = {"before": zeros(1), "after": stored(1)}

    def run(body, grid):
        return timed(body, grid=grid, **around)

    latency = chip.l2 if poll.startswith("ld") else chip.atomic
    once = run(wait, False).total
    assert latency < once < latency + 150
    barrier = run(ARRIVE + wait, True)
    assert barrier.total == pytest.approx(1.09 * 1410, rel=0.1)
    assert barrier.spent["grid"] > 0.8 * barrier.total
    # What is done between the arrival and the wait takes no time, as long as it takes less.
    longer = run(work + ARRIVE + wait, True).total - barrier.total
    assert longer == pytest.approx(20 * chip.special_function + chip.l2, abs=40)
    assert run(ARRIVE + work + wait, True).total == pytest.approx(barrier.total, abs=60)


def test_values_that_a_loop_polls_for_take_their_sectors_and_come_after_the_stores(timed):
    def poll(loads):
        some = "\n".join(
            f"ld.relaxed.gpu.global.v4.b32 {{%w{4 * n}, %w{4 * n + 1}, %w{4 * n + 2}, "
            f"%w{4 * n + 3}}}, [%rd9+{512 * n}];"
            for n in range(loads)
        )
        sums = "\n".join(f"add.u32 %r4, %r4, %w{n};" for n in range(4 * loads))
        return f"WAIT:\n{some}\n{sums}\nsetp.eq.u32 %p2, %r4, 7;\n@%p2 bra WAIT;\n"

    publish = "st.relaxed.gpu.global.b32 [%rd9], %r4;\n"
    around = {"before": ".reg .b32 %w<40>;", "after": stored(1)}
    chip = pipes.CHIPS[80]
    one, eight = (timed(poll(n), warps=4, **around) for n in (1, 8))
    # 512 bytes a load of each of four warps, 64 bytes a cycle; and the sums of a warp.
    assert eight.busy["L2 reads"] - one.busy["L2 reads"] == 7 * 4 * 512 / 64
    assert chip.l2 < one.total < chip.l2 + 150
    alone, together = (timed(publish + poll(1), grid=grid, **around) for grid in (False, True))
    assert alone.total < chip.l2 + 150
    assert together.total == pytest.approx(2 * chip.l2, abs=100)
    assert together.total - alone.total > 0.5 * chip.l2
    # What is done between the store and the poll takes no time, as long as it takes less.
    work = "ex2.approx.ftz.f32 %v0, %v0;\n" * 5
    longer = timed(
        publish + work + poll(1), grid=True, before=around["before"] + zeros(1), after=stored(1)
    )
    assert longer.total == pytest.approx(together.total, abs=50)


def test_a_fence_waits_for_the_stores(timed):
    store, fence = "st.global.b32 [%rd9], %r4;\n", "fence.acq_rel.gpu;\n"
    late = timed(fence + store)
    early = timed(store + fence)
    chip = pipes.CHIPS[80]
    assert early.spent["fence"] > 0.8 * chip.l2
    # A store after the fence is waited for a pass later, while nothing else is to be done here.
    assert late.spent["fence"] < early.spent["fence"] + 16
    none = timed(fence)
    assert none.total < early.total - 0.8 * chip.l2


def test_copies_in_the_background_are_waited_for_by_group(timed):
    copy = "cp.async.cg.shared.global [%r9], [%rd9], 16;\ncp.async.commit_group;\n"
    now = timed(copy + "cp.async.wait_group 0;")
    later = timed(copy + "cp.async.wait_group 1;")
    chip = pipes.CHIPS[80]
    assert now.total > chip.l2
    # The group of the pass before: half of the latency is over when it is waited for.
    assert later.total == pytest.approx(chip.l2 / 2, rel=0.3)


def test_the_loop_that_multiplies_is_timed_with_its_inner_passes(timed):
    inner = f"""
      mov.u32 %r11, 0;
    INNER:
      .pragma "nounroll";
      {PRODUCT.format(0, 1, 2, 3)}
      add.u32 %r11, %r11, 1;
      setp.lt.u32 %p2, %r11, %r4;
      @%p2 bra INNER;
    WAIT:
      ld.volatile.global.b32 %r12, [%rd0];
      setp.ne.u32 %p2, %r12, 7;
      @%p2 bra WAIT;
    """
    once, thrice = (timed(inner, before=zeros(4), after=stored(4), inner=n) for n in (1, 3))
    more = thrice.total - once.total
    assert 2 * pipes.CHIPS[80].product <= more < 2 * pipes.CHIPS[80].product + 40
    assert thrice.busy["tensor"] == 3 * once.busy["tensor"]
    assert thrice.instructions > once.instructions
    # The polling loop is passed once, whatever ``inner`` is.
    assert thrice.busy["L2 reads"] == once.busy["L2 reads"] > 0


def test_programs_share_the_multiprocessor_but_not_their_barriers(timed):
    body = special(32) + "\nbar.sync 0;"
    around = {"before": zeros(32), "after": stored(32)}
    one, two = (timed(body, 80, 4, programs=n, **around) for n in (1, 2))
    assert two.total == pytest.approx(2 * 32 * 8, rel=0.15)
    assert two.total < 2 * one.total  # one computes while the other one waits


def test_steps_of_an_unrolled_pass_are_divided(timed):
    around = {"before": zeros(4), "after": stored(4)}
    whole, half = (timed(chain(8), steps_per_pass=n, **around) for n in (1, 2))
    assert half.total == whole.total / 2
    assert half.instructions == whole.instructions / 2
    assert half.busy["tensor"] == whole.busy["tensor"] / 2
    assert sum(whole.spent.values()) == pytest.approx(whole.total, rel=0.01)
    assert sum(half.spent.values()) == pytest.approx(half.total, rel=0.01)
    assert whole.microseconds == whole.total / 1410


def test_the_control_codes_are_read(tmp_path):
    cubin = assemble(LOOP.format(body=chain(2), before=zeros(4), after=stored(4)), tmp_path)
    code = sass.read(cubin)
    products = [x for x in code if x.is_product()]
    assert len(products) == 2
    assert products[0].opcode == "HMMA.16816.F32.BF16"
    # No scoreboard: what the assembler knows of the latency are the cycles between them.
    first, second = (code.index(x) for x in products)
    assert 16 <= sum(x.stall for x in code[first:second]) <= 33
    assert {x.sets for x in products} == {sass.NO_BOARD}
    load = next(x for x in code if x.name == "LDG")
    assert load.opcode == "LDG.E.128"
    assert load.sets < 6
    assert any(load.sets in x.waits for x in code)
    (loop, *_) = sass.loops(code)
    assert code[loop[-1]].name == "BRA"
    assert code[loop[-1]].target == loop[0]
    body = sass.time_loop(code)
    first, second = (k for k, x in enumerate(body) if x.is_product())
    before = sass.products_before(body)
    assert before[second] == (first,)
    assert before[first] == (second,)


def test_a_file_is_read(timed, tmp_path):
    direct = timed(chain(2), before=zeros(4), after=stored(4))
    assert clock.cycles(tmp_path / "test.cubin", 80, 1) == direct
    assert clock.cycles(str(tmp_path / "test.cubin"), 80, 1) == direct


def test_what_cannot_be_timed_is_refused(timed, tmp_path):
    with pytest.raises(Unsupported, match="without a loop"):
        clock.cycles(assemble("st.global.b32 [%rd0], %r0;", tmp_path), 80, 1)
    with pytest.raises(ValueError, match=r"capability: expected one of \[80, 90\], got 70"):
        timed(chain(1), before=zeros(4), after=stored(4)) and clock.cycles(
            tmp_path / "test.cubin", 70, 1
        )
    for name in ("warps", "programs", "inner", "steps_per_pass"):
        with pytest.raises(ValueError, match=f"{name}: expected 1 or more, got 0"):
            clock.cycles(tmp_path / "test.cubin", 80, **({"warps": 1} | {name: 0}))
    for name in ("UTMALDG.2D", "SYNCS.EXCH"):
        with pytest.raises(Unsupported, match=f"pipe is not known: {name}"):
            pipes.kind(name)
    with pytest.raises(Unsupported, match="a product of unknown shape: HMMA.999"):
        pipes.product_cycles("HMMA.999", pipes.CHIPS[80])
