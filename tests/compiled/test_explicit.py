"""The kernels with explicit layouts, executed: they are never interpreted."""

import dataclasses
import itertools

import pytest
import torch
from fused_rnn.kernels.gpu.offline import compiling
from torch import sigmoid, tanh

from bench.machine_code.launches import launch_both, planned_for
from fused_rnn import Cell, Stage, cells, plan
from fused_rnn.plan import explicit
from fused_rnn.self_check import trial
from simulator import simulate
from tests.compiled.test_simulated_cells import check
from tests.kernels.test_padding import CELLS as DIVIDING
from tests.kernels.test_padding import problem_of
from tests.support.cells import BUILTIN, DRAWING_LSTM, NORMED, SPARSE_LSTM
from tests.support.problems import make_problem

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MULTIPLIED = [
    cell
    for cell in map(cells.get, cells.names())
    if cell.stages and not any(stage.fixed for stage in cell.stages)
]


def _summed_early(pre, state, params):
    a, b, noisy, of_c, total = pre
    c = sigmoid(a + noisy) * state[1] + tanh(b - of_c)
    return sigmoid(params[1] * c) / (1 + total * total), c


def _noisy(pre, state, params, streams, t):
    return (streams[0] * state[0] + params[0] * state[1] / (1 + t),)


def _shares(pre, state):
    return (0.1 * sigmoid(pre[0] + pre[3]),)


# Sums of what is known when a step begins, of a source with streams and params and of a state.
SUMMED_EARLY = Cell(
    "summed_early",
    _summed_early,
    gates=("a", "b", "noisy", "of_c", "total"),
    states=("h", "c"),
    params=("scale", "gain"),
    streams=("noise",),
    x_gates=("a", "b"),
    stages=(
        Stage(("a", "b"), "h"),
        Stage(("noisy",), _noisy, "mean"),
        Stage(("of_c",), "c", "mean"),
        Stage(("total",), _shares, "sum"),
    ),
)
# With a sum in the place of a running one.
NORMED_BY_SUMS = Cell(
    "normed_by_sums",
    NORMED.step,
    gates=NORMED.gates,
    states=NORMED.states,
    params=NORMED.params,
    x_gates=NORMED.x_gates,
    stages=[
        Stage(stage.gates, stage.source, "sum") if stage.fixed == "cumsum" else stage
        for stage in NORMED.stages
    ],
)
SUMMING = [
    *map(cells.get, ("layer_norm_lstm", "layer_norm_gru", "block_gru")),
    NORMED_BY_SUMS,
    SUMMED_EARLY,
]


@pytest.fixture(autouse=True)
def _precision():
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    yield
    torch.backends.cudnn.rnn.fp32_precision = "tf32"


def resident(H):
    """A launch whose programs own all H units."""
    units = max(16, 1 << (H - 1).bit_length())
    return plan.Launch("resident", 8, units, units, units // 16, explicit=True)


def grid(units=8, warps=4, rows=16, tiles=1):
    return plan.Launch("grid", rows, units, 64, warps, tiles=tiles, explicit=True)


LAUNCHES = {"resident": resident(17), "grid": grid()}


def run(problem, capability, launch, **options):
    tf32 = problem.inputs["x"].dtype == torch.float32
    return check(problem, capability, launch=launch, tf32=tf32, **options)


@pytest.mark.parametrize("strategy", LAUNCHES)
@pytest.mark.parametrize("cell", BUILTIN, ids=lambda cell: cell.name)
def test_every_cell(cell, strategy):
    """A sample; the slow tests have all combinations."""
    i = BUILTIN.index(cell)
    capability, dtype = (80, 90)[i % 2], DTYPES[i % 3]
    run(make_problem(cell, 3, 3, 17, dtype=dtype), capability, LAUNCHES[strategy])


@pytest.mark.parametrize("strategy", LAUNCHES)
@pytest.mark.parametrize("cell", DIVIDING, ids=lambda cell: cell.name)
def test_padded_units_reach_no_product(cell, strategy):
    """Even if a step makes NaN of their zeros."""
    run(problem_of(cell, 17, dtype=torch.bfloat16), 80, LAUNCHES[strategy])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "dtype", "capability"), list(itertools.product(LAUNCHES, DTYPES, (80, 90)))
)
@pytest.mark.parametrize("cell", BUILTIN, ids=lambda cell: cell.name)
def test_every_dtype(cell, strategy, dtype, capability):
    run(make_problem(cell, 3, 3, 17, dtype=dtype), capability, LAUNCHES[strategy])


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "capability"), list(itertools.product(LAUNCHES, (80, 90))))
@pytest.mark.parametrize("cell", MULTIPLIED, ids=lambda cell: cell.name)
def test_every_cell_of_the_literature(cell, strategy, capability):
    run(make_problem(cell, 3, 3, 17, dtype=torch.bfloat16), capability, LAUNCHES[strategy])


@pytest.mark.parametrize("strategy", LAUNCHES)
@pytest.mark.parametrize("cell", (DRAWING_LSTM, SPARSE_LSTM), ids=lambda cell: cell.name)
def test_streams_that_are_drawn(cell, strategy):
    run(make_problem(cell, 3, 5, 17, D=2, dtype=torch.bfloat16), 80, LAUNCHES[strategy])


@pytest.mark.parametrize("strategy", LAUNCHES)
@pytest.mark.parametrize("name", ("gru_d", "mogrifier_lstm"))
def test_computed_sources_and_several_vectors(name, strategy):
    problem = make_problem(cells.get(name), 4, 3, 17, dtype=torch.bfloat16, reverse=True)
    run(problem, 90, LAUNCHES[strategy])


@pytest.mark.parametrize("schedule", ("random", "run-ahead"))
@pytest.mark.parametrize("strategy", LAUNCHES)
@pytest.mark.parametrize("cell", (cells.LSTM, cells.GRU_RESET_BEFORE), ids=lambda cell: cell.name)
def test_schedules(cell, strategy, schedule):
    problem = make_problem(cell, 4, 3, 17, dtype=torch.bfloat16)
    for seed in range(2):
        run(problem, 80, LAUNCHES[strategy], schedule=schedule, seed=seed)


SHAPES = {
    "one row, one step": (resident(16), (1, 1, 16), 1),
    "two tiles, two directions": (resident(40), (2, 9, 40), 2),
    "padded to 64": (resident(48), (3, 2, 48), 1),
    "128 units": (resident(128), (2, 9, 128), 1),
    "grid, two tiles, two directions": (grid(tiles=2), (2, 17, 40), 2),
    "grid, tiles one after the other": (grid(), (2, 17, 24), 1),
    "grid, 32 rows": (grid(16, 4, 32), (3, 33, 40), 1),
    "grid, 32 rows, partial sums in one place": (grid(16, 8, 32), (3, 33, 40), 1),
    "grid, several chunks, 8 warps": (grid(16, 8), (2, 3, 264), 1),
    "grid, other units and warps in the backward": (
        dataclasses.replace(grid(), backward_h=16, backward_warps=8, per_multiprocessor=2),
        (3, 5, 40),
        2,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    launch, (T, B, H), D = SHAPES[name]
    problem = make_problem(cells.PEEPHOLE_LSTM, T, B, H, D=D, dtype=torch.bfloat16, reverse=D == 2)
    run(problem, 90, launch)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_nan_with_all_bits_set_is_passed_on(dtype):
    """It is what says that a value is not there yet: no program waits for it forever."""
    cell = cells.get("rnn_relu")  # whose source is the state itself
    problem = make_problem(cell, 3, 3, 17, dtype=dtype)
    h = problem.inputs["states.h"]
    h[:, 2, 4:].view(torch.uint8).fill_(255)
    assert h[:, 2].isnan().sum() == 13
    with planned_for(80, LAUNCHES["grid"]), simulate(80, stretches=100_000):
        got = trial.by_kernels(problem)
    expected = problem.run("reference")
    for name in ("sequence.h", "final.h"):
        assert got[name].isnan().equal(expected[name].isnan()), name
        assert got[name][:, :2].isfinite().all()  # the other rows of the batch


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32))
@pytest.mark.parametrize("H", (16, 32, 64))
def test_sums_of_short_and_long_products(H, dtype):
    """A single gate's products are added in four sums, or fewer where it has few units."""
    run(make_problem(cells.RNN_TANH, 3, 3, H, dtype=dtype), 80, resident(H))


def test_matrices_in_shared_memory():
    """Those for which registers have no room."""
    cell, launch = cells.PEEPHOLE_LSTM, resident(128)
    held = [plan.held(cell, launch, 128, 2, backward)[0] for backward in (False, True)]
    assert held == [4, 3]
    cell = cells.get("peephole_lstm_full")
    assert sum(plan.held(cell, launch, 128, 2, backward=True)) < 7
    run(make_problem(cell, 2, 3, 128, dtype=torch.bfloat16), 80, launch)


@pytest.mark.parametrize("cell", SUMMING, ids=lambda cell: cell.name)
def test_sums_of_all_units(cell):
    """Of padded units too; a sample, as above."""
    i = SUMMING.index(cell)
    capability, dtype = (80, 90)[i % 2], DTYPES[i % 3]
    run(make_problem(cell, 3, 3, 17, dtype=dtype), capability, resident(17))


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "capability"), list(itertools.product(DTYPES, (80, 90))))
@pytest.mark.parametrize("cell", SUMMING, ids=lambda cell: cell.name)
def test_sums_of_all_units_in_every_dtype(cell, dtype, capability):
    run(make_problem(cell, 3, 3, 17, dtype=dtype), capability, resident(17))


@pytest.mark.parametrize(
    ("cell", "T", "B", "H", "D"),
    [
        (cells.get("layer_norm_gru"), 2, 9, 40, 2),
        (cells.get("layer_norm_gru"), 1, 1, 16, 1),
        pytest.param(cells.get("layer_norm_lstm"), 2, 9, 100, 2, marks=pytest.mark.slow),
    ],
)
def test_sums_of_two_tiles_and_directions(cell, T, B, H, D):
    """With rows that are padded, in one warp and in several."""
    problem = make_problem(cell, T, B, H, D=D, dtype=torch.bfloat16, reverse=D == 2)
    run(problem, 90, resident(H))


def test_what_sums_need_a_program_for():
    """All units, and no running sums."""
    assert "fixed" in plan.explicit.why_not(cells.ON_LSTM, row(resident(32)), 32, 1e6)
    assert "fixed" in plan.explicit.why_not(cells.LAYER_NORM_GRU, row(grid()), 32, 1e6)
    assert plan.explicit.why_not(cells.LAYER_NORM_GRU, row(resident(32)), 32, 1e6) is None


def row(launch):
    return plan.chips.Row(2, launch)


def test_barriers_of_sums():
    """One for each stage of them, and one for the step; for totals that were saved, two more."""
    barriers = {}
    for steps in (2, 4):
        problem = make_problem(cells.LAYER_NORM_GRU, steps, 8, 64, dtype=torch.bfloat16)
        barriers[steps] = run(problem, 80, resident(64)).counters["barriers"]
    assert barriers[4] - barriers[2] == 2 * (3 + 5) * 4  # two steps, four warps


def test_heads():
    problem = make_problem(cells.LSTM, 3, 3, 34, heads=(2,), dtype=torch.bfloat16)
    run(problem, 80, resident(17))


def test_one_barrier_a_step():
    """Sources go through shared memory once, and nothing else does."""
    device = {}
    for steps in (2, 4):
        problem = make_problem(cells.LSTM, steps, 8, 64, dtype=torch.bfloat16)
        device[steps] = run(problem, 80, resident(64)).counters
    barriers = device[4]["barriers"] - device[2]["barriers"]
    assert barriers == 2 * 2 * 4  # two steps of a forward and a backward, four warps


@pytest.mark.parametrize(
    ("cell", "launch"),
    [(cells.LSTM, grid()), (cells.LSTM, grid(16, 8, 32)), (cells.get("nas"), grid(8, 8))],
    ids=("two places", "one place", "eight gates"),
)
def test_shared_memory_is_counted(cell, launch):
    """The partial sums of `grid`: a plan whose kernels need more than the chip has does not fit."""
    with planned_for(90, launch), compiling(90) as made:
        launch_both(cell, torch.bfloat16, 64, 2, 64, True, "meta")
    assert {compiled.name for compiled in made} == {"forward_kernel", "backward_kernel"}
    for compiled in made:
        taken = explicit.shared_bytes(cell, launch, (), 2, compiled.name == "backward_kernel")
        assert 0 < compiled.shared <= taken <= compiled.shared + 1024
