"""The kernels with explicit layouts, executed: they are never interpreted."""

import dataclasses
import itertools

import pytest
import torch

from fused_rnn import cells, plan
from tests.compiled.test_simulated_cells import check
from tests.kernels.test_padding import CELLS as DIVIDING
from tests.kernels.test_padding import problem_of
from tests.support.cells import BUILTIN, DRAWING_LSTM, SPARSE_LSTM
from tests.support.problems import make_problem

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MULTIPLIED = [
    cell
    for cell in map(cells.get, cells.names())
    if cell.stages and not any(stage.fixed for stage in cell.stages)
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


def test_matrices_in_shared_memory():
    """Those for which registers have no room."""
    cell, launch = cells.PEEPHOLE_LSTM, resident(128)
    held = [plan.held(cell, launch, 128, 2, backward)[0] for backward in (False, True)]
    assert held == [4, 3]
    cell = cells.get("peephole_lstm_full")
    assert sum(plan.held(cell, launch, 128, 2, backward=True)) < 7
    run(make_problem(cell, 2, 3, 128, dtype=torch.bfloat16), 80, launch)


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
