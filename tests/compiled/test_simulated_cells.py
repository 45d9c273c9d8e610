"""Every core cell, compiled and executed: the reference's numbers, and nothing forbidden.

``simulate`` raises on races, uninitialised reads and accesses out of bounds, so each run shows
that there were none.
"""

import itertools

import pytest
import torch
from fused_rnn.kernels.gpu.draws import values_of

from bench.machine_code.launches import planned_for
from fused_rnn import cells, plan
from fused_rnn.cells import draws
from simulator import simulate
from tests.support import evidence
from tests.support.cells import BUILTIN, DRAWING_LSTM, ZONEOUT_LSTM, name_of
from tests.support.problems import make_problem
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
STRATEGIES = plan.STRATEGIES
# Of all combinations those that the quick run takes: every cell with every strategy, every dtype
# and capability; the others are slow only by their number.
QUICK = {
    (cell.name, strategy, DTYPES[(i + j) % 3], (80, 90)[(i + j // 2) % 2])
    for i, cell in enumerate(BUILTIN)
    for j, strategy in enumerate(STRATEGIES)
}


@pytest.fixture(autouse=True)
def _exact_products():
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.rnn.fp32_precision = "tf32"


def check(problem, capability, strategy=None, launch=None, tf32=False, **options):
    """Outputs and every gradient, as near to float64 as the eager loop is."""
    with (
        planned_for(capability, launch),
        plan.use_strategy(strategy),
        simulate(capability, **options) as device,
    ):
        got = problem.run("triton")
    assert device.launches
    assert not device.report
    exact = problem.to(torch.float64).run("reference")
    eager = problem.run("reference")
    if tf32:  # the CPU has no TF32: eager's error in float16, which has 10 bits too, is the unit
        eager = problem.to(torch.float16).run("reference")
        eager = {name: value.float() for name, value in eager.items()}
    if problem.inputs["x"].dtype == torch.float64:
        assert_equal_in_float64(got, exact)
    else:
        assert_as_good_as_eager(got, eager, exact)
    return device


def combinations():
    for cell, strategy, dtype, capability in itertools.product(
        BUILTIN, STRATEGIES, DTYPES, (80, 90)
    ):
        slow = (cell.name, strategy, dtype, capability) not in QUICK
        yield pytest.param(
            cell,
            strategy,
            dtype,
            capability,
            marks=[pytest.mark.slow] if slow else [],
            id=f"{cell.name}-{strategy}-{name_of(dtype)}-sm_{capability}",
        )


@pytest.mark.parametrize(("cell", "strategy", "dtype", "capability"), list(combinations()))
def test_every_cell(cell, strategy, dtype, capability):
    check(make_problem(cell, 2, 3, 17, dtype=dtype), capability, strategy)


LITERATURE = [
    pytest.param(
        cells.get(name),
        strategy,
        capability,
        id=f"{name}-{strategy}",
        marks=[] if quick else [pytest.mark.slow],
    )
    for name, strategy, capability, quick in evidence.executed()
]


@pytest.mark.parametrize(("cell", "strategy", "capability"), LITERATURE)
def test_every_cell_of_the_literature(cell, strategy, capability):
    check(make_problem(cell, 2, 3, 17, dtype=torch.bfloat16), capability, strategy)


@pytest.mark.parametrize(
    ("strategy", "capability"),
    [("resident", 90), ("grid", 80), ("stream", 90), ("step", 80)],
)
def test_drawn_streams(strategy, capability):
    """In the step and in both kinds of sources: a wrong bit is far beyond any bound."""
    problem = make_problem(DRAWING_LSTM, 2, 3, 17, D=2, dtype=torch.float32)
    check(problem, capability, strategy)


@pytest.mark.parametrize("capability", (80, 90))
def test_drawn_values(capability):
    """Those that products after the loop see, in one launch."""
    key, times = draws.draw_key(3), torch.tensor([4, 0])
    wanted = draws.values(DRAWING_LSTM, key, times, 4, 17, torch.int8, heads=2)
    found = []
    with simulate(capability) as device:
        for block in draws.blocks(DRAWING_LSTM):
            now = times[:1] if block.of_sequence else times
            found += values_of(block, key, now, 4, 17, heads=2)
    assert not device.report
    for got, want in zip(found, wanted, strict=True):
        assert torch.equal(got.expand_as(want), want)


@pytest.mark.parametrize("capability", (86, 89))
def test_other_chips(capability):
    check(make_problem(cells.GRU, 2, 3, 17, dtype=torch.bfloat16), capability, "resident")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_float64(strategy):
    """Its exponentials branch lane by lane."""
    check(make_problem(cells.LSTM, 2, 3, 17, dtype=torch.float64), 80, strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("schedule", ("random", "run-ahead"))
def test_schedules(schedule, strategy):
    problem = make_problem(cells.GRU_RESET_BEFORE, 2, 3, 17, dtype=torch.bfloat16)
    for seed in range(3):
        check(problem, 80, strategy, schedule=schedule, seed=seed)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_several_tiles_chunks_and_directions(strategy):
    problem = make_problem(cells.PEEPHOLE_LSTM, 2, 17, 40, D=2, dtype=torch.float16, reverse=True)
    check(problem, 90, strategy)


def test_streams():
    check(make_problem(ZONEOUT_LSTM, 2, 3, 17, dtype=torch.bfloat16), 80, "resident")


# 64 rows and 4 warps: on sm_90 a product is one wgmma of a warpgroup.
WGMMA = {
    "resident": plan.Launch("resident", 64, 64, 64, 4),
    "step": plan.Launch("step", 64, 32, 64, 4),
    "8 warps": plan.Launch("step", 64, 16, 64, 8),
}


@pytest.mark.parametrize("name", WGMMA)
def test_wgmma(name):
    problem = make_problem(cells.LSTM, 2, 33, 64, dtype=torch.bfloat16)
    device = check(problem, 90, launch=WGMMA[name])
    assert any(kind.startswith("wgmma") for kind in device.counters.totals)


@pytest.mark.parametrize("capability", (80, 90))
def test_tf32(capability):
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    launch = plan.Launch("step", 64 if capability == 90 else 32, 32, 32, 4)
    problem = make_problem(cells.LSTM, 2, 3, 33, dtype=torch.float32)
    check(problem, capability, launch=launch, tf32=True)


def test_a_wrong_gate_is_noticed():
    problem = make_problem(cells.LSTM, 2, 3, 17, dtype=torch.bfloat16)

    def negate(program):
        """The first addition becomes a subtraction."""
        index = next(i.index for i in program.instructions if i.name == "add.f32")
        return program.with_changed(index, opcode="sub")

    with pytest.raises(AssertionError, match="error|not finite"):
        check(problem, 80, "resident", change=negate)
