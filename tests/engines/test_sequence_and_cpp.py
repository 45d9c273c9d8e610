"""The paths of the CPU against the reference: outputs and all gradients, of every cell."""

import pytest
import torch
from fused_rnn.kernels.cpu import compiler

import tests.support.cells as ours
from fused_rnn import cells, numerics, scan
from fused_rnn.engines import sequence
from fused_rnn.self_check.problem import Arguments
from tests.support.problems import make_problem, stacked
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

CELLS = (*ours.ALL, *map(cells.peephole_lstm, ("f", "io")))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
every_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.key)


@pytest.fixture(params=["sequence", "cpp"])
def backend(request):
    if request.param == "cpp" and compiler.find() is None:
        pytest.skip(compiler.why_not())
    return request.param


def _check(backend, *problems):
    got = stacked([problem.run(backend) for problem in problems])
    exact = stacked([problem.to(torch.float64).run("reference") for problem in problems])
    if all(tensor.dtype == torch.float64 for tensor in got.values()):
        assert_equal_in_float64(got, exact)
    else:
        eager = stacked([problem.run("reference") for problem in problems])
        assert_as_good_as_eager(got, eager, exact)


SHAPES = (
    (1, 1, 1, "forward"),
    (2, 3, 17, "reverse"),
    (7, 3, 40, "both"),
    (7, 1, 17, "forward"),
    (2, 1, 40, "both"),
    (1, 3, 17, "both"),
    (7, 3, 1, "both and reverse"),
)
CASES = [
    *((torch.float64, *shape) for shape in (SHAPES[0], SHAPES[1], SHAPES[6])),
    *((torch.float32, *shape) for shape in SHAPES),
    *((torch.bfloat16, *shape) for shape in (SHAPES[0], SHAPES[1], SHAPES[2], SHAPES[5])),
    *((torch.float16, *shape) for shape in (SHAPES[2], SHAPES[3], SHAPES[4])),
]


@pytest.mark.parametrize(("dtype", "T", "B", "H", "direction"), CASES, ids=ours.name_of)
@every_cell
def test_is_as_good_as_eager(backend, cell, dtype, T, B, H, direction):
    options = {"D": 2 if "both" in direction else 1, "reverse": "reverse" in direction}
    seeds = range(8 if H == 1 else 1)
    _check(backend, *(make_problem(cell, T, B, H, dtype=dtype, seed=s, **options) for s in seeds))


@pytest.mark.parametrize(
    "options",
    [
        {"initial": False},
        {"bias": False},
        {"contiguous": False},
        {"contiguous": False, "D": 2, "reverse": True},
        {"cotangents": ["final.h"]},
        {"cotangents": ["sequence.h"], "D": 2},
    ],
    ids=str,
)
@every_cell
def test_options(backend, cell, options):
    _check(backend, make_problem(cell, 4, 3, 5, **options))


@every_cell
def test_gradients_of_one_input_only(backend, cell):
    given = {name.split(".")[0] for name in make_problem(cell, 4, 3, 5).inputs}
    for only in given - ({"params"} if "period" in cell.params else set()):
        others = [group for group in Arguments._fields if group != only]
        _check(backend, make_problem(cell, 4, 3, 5, without_grad=others))


@pytest.mark.parametrize("dtype", DTYPES, ids=ours.name_of)
@pytest.mark.parametrize("magnitude", [50, 1e4])
@every_cell
def test_large_gates_are_finite_and_right(backend, cell, magnitude, dtype):
    if cell in (cells.RNN_RELU, ours.GATED_AVERAGE) and dtype == torch.float16:
        magnitude /= 50  # their gradients are products with gates and exceed float16 before
    _check(backend, make_problem(cell, 3, 2, 5, magnitude=magnitude, dtype=dtype))


@every_cell
def test_no_rows(backend, cell):
    for tensor in make_problem(cell, 3, 0, 4, D=2).run(backend).values():
        assert not tensor.any()  # sums over no rows are zero, everything else is empty


@every_cell
def test_outputs_without_gradients_are_the_same(backend, cell):
    shown = ["sequence.h", *(f"final.{state}" for state in cell.states)]
    problem = make_problem(cell, 4, 3, 5, D=2, dtype=torch.bfloat16, cotangents=shown)
    with_gradients = problem.run(backend)
    for name, tensor in problem.run_forward(backend).items():
        assert torch.equal(tensor, with_gradients[name])


def test_same_input_same_bits(backend):
    problem = make_problem(cells.GRU_RESET_BEFORE, 7, 3, 40, D=2)
    first, second = problem.run(backend), problem.run(backend)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=ours.name_of)
def test_cell_state_is_kept_in_float32(backend, dtype):
    """Of 64 steps each adds less to c = 1 than a 16-bit number can show; all of them show."""
    x = torch.tensor([-9.0, 50, 50, 0], dtype=dtype).expand(64, 1, 4)  # i = 1.2e-4, f = g = 1
    weight, states = torch.zeros(4, 1, dtype=dtype), [torch.ones(1, 1, dtype=dtype)] * 2
    run = {b: scan("lstm", x, weight, states, backend=b)[1][1] for b in ("reference", backend)}
    assert run["reference"] == 1
    added = 64 * torch.tensor(-9.0, dtype=torch.float64).sigmoid()
    # Only the final c is rounded, by half a unit in the last place.
    assert (run[backend] - 1 - added).abs() <= torch.finfo(dtype).eps / 2


def test_states_that_a_product_reads_are_kept_in_its_dtype():
    half, full = torch.float16, torch.float32
    for cell, dtypes in (
        (cells.GRU, (half,)),
        (cells.PEEPHOLE_LSTM, (half, full)),
        (ours.GATE_RECURRENT_LSTM, (half, full, half, half, half)),
        (ours.FULL_PEEPHOLE_LSTM, (half, half)),
    ):
        assert numerics.state_dtypes(cell, half) == dtypes
        assert numerics.state_dtypes(cell, torch.float64) == (torch.float64,) * len(dtypes)


@pytest.mark.parametrize("steps_at_once", [1, 2])
@every_cell
def test_backward_in_pieces(cell, steps_at_once, monkeypatch):
    monkeypatch.setattr(sequence, "_VALUES_AT_ONCE", steps_at_once * 3 * 5)
    _check("sequence", make_problem(cell, 5, 3, 5, D=2, dtype=torch.float64))


@pytest.mark.parametrize("name", ["sequence", "final"])
@pytest.mark.parametrize("cell", [c for c in CELLS if len(c.states) > 1], ids=ours.name_of)
def test_gradients_of_one_other_state(backend, cell, name):
    _check(backend, make_problem(cell, 4, 2, 5, cotangents=[f"{name}.{cell.states[-1]}"]))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@every_cell
def test_return_states(backend, cell, reverse):
    problem = make_problem(cell, 3, 2, 4, dtype=torch.float64, reverse=reverse)
    arguments = problem.scan_arguments(problem.leaves())
    shown, finals = scan(**arguments, return_states=True, backend=backend)
    first, _ = scan(**arguments, backend=backend)
    assert torch.equal(first, shown[0])
    got = {f"sequence.{s}": v.unsqueeze(2) for s, v in zip(cell.states, shown, strict=True)}
    got |= {f"final.{s}": v.unsqueeze(0) for s, v in zip(cell.states, finals, strict=True)}
    want = problem.run_forward("reference")
    assert_equal_in_float64({name: got[name] for name in want}, want)


@pytest.mark.parametrize(
    "options",
    [{"D": 2}, {"reverse": True, "initial": False}, {"cotangents": ["final.h"]}],
    ids=str,
)
@every_cell
def test_second_order(backend, cell, options):
    problem = make_problem(cell, 3, 2, 4, dtype=torch.float64, **options)
    want = problem.run_higher("reference")
    assert_equal_in_float64(problem.run_higher(backend), want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=ours.name_of)
@pytest.mark.parametrize("cell", [cells.LSTM, cells.GRU_RESET_BEFORE], ids=ours.name_of)
def test_second_order_is_as_good_as_eager(backend, cell, dtype):
    problem = make_problem(cell, 3, 2, 4, D=2, dtype=dtype)
    exact = problem.to(torch.float64).run_higher("reference")
    eager = problem.run_higher("reference")
    assert_as_good_as_eager(problem.run_higher(backend), eager, exact)


@pytest.mark.parametrize("cell", [cells.LSTM, cells.GRU_RESET_BEFORE], ids=ours.name_of)
def test_third_order(backend, cell):
    problem = make_problem(cell, 2, 2, 3, dtype=torch.float64)
    want = problem.run_higher("reference", order=3)
    assert_equal_in_float64(problem.run_higher(backend, order=3), want)
