"""The clock of the package's own kernels, and its report."""

import json

import pytest
import torch

from bench.machine_code.clocked import clocked
from bench.machine_code.launches import planned_for
from bench.reports import clock, clock_plot
from fused_rnn import cells, plan
from simulator import sass, simulate
from simulator.clock import cycles
from tests.support.problems import make_problem


@pytest.fixture(scope="module")
def small():
    """The kernels of a small LSTM."""
    return list(clocked(cells.LSTM, 32, 80))


def test_a_kernel_of_each_kind_is_timed(small):
    assert [k.kind for k in small] == ["forward", "backward", "inference"]
    for k in small:
        assert (k.strategy, k.programs, k.part) == ("resident", 2, 0)
        # The loop has what is executed: the assembler changes the number of instructions a little.
        assert k.l2.instructions == pytest.approx(k.executed["instructions"] / k.programs, rel=0.15)
        assert k.l2.special_functions * k.programs == k.executed["special functions"]
        assert k.l2.busy["tensor"] > 0
        assert k.l2.total >= k.l2.busy[k.l2.busiest]
        assert k.dram.total > k.l2.total == k.waits.total
    forward, backward, inference = small
    assert inference.l2.total < forward.l2.total < backward.l2.total


def test_sectors_and_wavefronts_are_those_executed(small):
    for k in small:
        global_ = k.executed.spaces["global"]
        ways = k.l2.busy["L2 reads"] + k.l2.busy["L2 writes"]
        assert 64 * ways == pytest.approx(32 * k.executed["global sectors"] / k.programs)
        assert 64 * ways * k.programs >= global_.read + global_.written
        # Accesses to global memory use the same way into the multiprocessor.
        wavefronts = k.l2.busy["shared"] - k.executed["shared wavefronts"] / k.programs
        assert 0 < wavefronts <= 4 * k.l2.instructions / 32


def test_loops_over_weights_are_passed_as_often_as_executed():
    with plan.use_strategy("stream"):
        (k,) = clocked(cells.LSTM, 192, 80, kinds=("inference",))
    code = sass.read(k.compiled.cubin)
    once, twice = (sum(x.is_product() for x in sass.time_loop(code, n)) for n in (1, 2))
    assert twice > once
    products = k.executed.mma() / (k.programs * k.warps)
    inner = 1 + (products - once) / (twice - once)
    assert inner == 192 / 64
    alone = cycles(k.compiled.cubin, 80, k.warps)
    assert k.l2.busy["tensor"] == pytest.approx(alone.busy["tensor"] * products / once)
    assert k.waits.total > k.l2.total + 1000  # a barrier of the grid


def test_parts_of_a_step_are_kernels_of_their_own():
    with plan.use_strategy("step"):
        found = list(clocked(cells.GRU_RESET_BEFORE, 64, 80, kinds=("forward",)))
    assert [k.part for k in found] == [0, 1]
    # Two of three gates have their products in the first.
    assert found[0].executed.mma() == 2 * found[1].executed.mma() > 0


def test_the_report_writes_what_it_found(small, tmp_path):
    entries = [clock.entry(k) for k in small]
    assert json.loads(json.dumps(entries)) == entries
    text = clock.page(entries)
    for k in small:
        assert (
            f"| lstm | 32 | 8.0 | resident | explicit | {k.kind} | {k.warps} | {k.l2.total:,.0f} |"
            in text
        )
    clock.save(tmp_path / "new", small)
    listed = json.loads((tmp_path / "new" / "kernels.json").read_text())
    for k, saved in zip(small, listed, strict=True):
        assert (saved["kind"], saved["warps"], saved["hidden"]) == (k.kind, k.warps, 32)
        cubin = (tmp_path / "new" / saved["cubin"]).read_bytes()
        assert cubin == k.compiled.cubin
        steps = saved["steps_per_pass"]
        assert cycles(cubin, 80, k.warps, steps_per_pass=steps).total == pytest.approx(
            k.l2.total, rel=0.1
        )


def test_the_picture_shows_all_cycles(small, tmp_path):
    pytest.importorskip("matplotlib")
    entries = [clock.entry(k) for k in small]
    for entry in entries:
        assert sum(clock_plot.shares(entry)) == pytest.approx(entry["cycles"]["l2"], rel=0.01)
    clock_plot.draw(tmp_path / "clock.png", entries)
    assert (tmp_path / "clock.png").stat().st_size > 10_000


@pytest.mark.parametrize("explicit", [True, False])
def test_what_is_executed_is_the_same_without_a_look_for_races(explicit):
    """A machine that looks for none keeps no order of the programs that wait for each other. Only
    the number of their polls may differ."""
    launch = plan.Launch("grid", 16, 16, 64, 4, explicit=explicit)
    problem = make_problem(cells.LSTM, 3, 2, 64, dtype=torch.bfloat16)
    counts, results = [], []
    for races in (True, False):
        with planned_for(80, launch), simulate(80, races=races) as device:
            results.append(problem.run("triton"))
        totals = [dict(counters.totals) for _, counters in device.launches]
        counts.append([{name: c[name] for name in UNLIKE_POLLS if name in c} for c in totals])
    assert counts[0] == counts[1]
    assert (counts[0][0].get("atomics", 0) > 0) == (not explicit)  # which has no counter
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


UNLIKE_POLLS = ("mma.m16n8k16.bf16", "barriers", "atomics", "shared wavefronts", "bank conflicts")
