"""The tests' own tools can fail: poisoned memory, tolerances, problems."""

import os
from contextlib import nullcontext

import pytest
import torch

from fused_rnn import cells
from tests.support.cells import ALL, name_of
from tests.support.problems import make_problem
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@torch.library.custom_op("fused_rnn_tests::forgetful", mutates_args=())
def _forgetful(x: torch.Tensor) -> list[torch.Tensor]:
    return [torch.empty(5), x.new_empty(2, 3), torch.empty_like(x), torch.empty_like(x.t())]


@pytest.mark.parametrize("dtype", FLOATS, ids=name_of)
def test_new_memory_is_nan(dtype):
    x = torch.ones(3, 4, dtype=dtype)
    for tensor in (
        torch.empty(5, dtype=dtype),
        torch.empty_strided((3, 4), (1, 3), dtype=dtype),
        torch.empty_like(x),
        torch.empty_like(x.t()),
        x.new_empty(2, 3),
        x.new_empty_strided((3, 4), (4, 1)),
        *_forgetful(x),
    ):
        assert tensor.isnan().all()


def test_integers_are_not_zero_by_accident():
    assert torch.empty(5, dtype=torch.int32).eq(torch.iinfo(torch.int32).max).all()


def test_every_test_has_the_same_seed():
    assert torch.initial_seed() == 0


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="only under pytest-xdist")
def test_one_thread_per_worker():
    assert torch.get_num_threads() == 1


@pytest.mark.gpu
def test_marked_gpu_runs_on_a_gpu_only():
    assert torch.cuda.is_available()


def _three(dtype):
    problem = make_problem(cells.LSTM, 4, 3, 5, dtype=dtype)
    exact = problem.to(torch.float64).run("reference")
    return problem.run("sequence"), problem.run("reference"), exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
def test_tolerance_takes_rounding_and_no_more(dtype):
    got, eager, exact = _three(dtype)
    assert_as_good_as_eager(got, eager, exact)
    assert_as_good_as_eager(eager, eager, exact)
    for key in got:
        bad = got[key].clone()
        bad.flatten()[-1] += 100 * torch.finfo(dtype).eps * bad.abs().max()
        with pytest.raises(AssertionError, match=f"{key}: error"):
            assert_as_good_as_eager(got | {key: bad}, eager, exact)


def test_tolerance_is_four_units():
    """A unit is eager's error, at least the median, and a unit in the last place."""
    exact = {name: torch.tensor([1.0, 2.0], dtype=torch.float64) for name in "abc"}
    eager = {name: tensor.float() for name, tensor in exact.items()}
    eager["b"] *= 1 + 1e-4
    eager["c"][0] += 1e-3
    for units, fails in ((3.9, False), (4.1, True)):
        got = eager | {"b": (exact["b"] * (1 + units * 1e-4)).float()}
        with pytest.raises(AssertionError, match="b: error") if fails else nullcontext():
            assert_as_good_as_eager(got, eager, exact)


def test_tolerance_of_subnormal_numbers_is_their_gap():
    gap = torch.finfo(torch.float16).eps * torch.finfo(torch.float16).tiny
    exact = {name: torch.tensor([8 * gap, 1.0], dtype=torch.float64) for name in "abc"}
    exact["c"][1] = 0
    eager = {name: tensor.half() for name, tensor in exact.items()}
    for gaps, fails in ((4, False), (5, True)):
        got = eager | {"c": (exact["c"] + torch.tensor([gaps * gap, 0])).half()}
        with pytest.raises(AssertionError, match="c: error") if fails else nullcontext():
            assert_as_good_as_eager(got, eager, exact)


def test_tolerance_of_oracles_takes_no_other_formula():
    _, _, exact = _three(torch.float32)
    assert_equal_in_float64(exact, exact)
    for key in exact:
        with pytest.raises(AssertionError, match=f"{key}: error"):
            assert_equal_in_float64(exact | {key: exact[key] * (1 + 1e-11)}, exact)


@pytest.mark.parametrize("check", ["shape", "dtype", "finite", "names"])
def test_tolerance_looks_at_more_than_values(check):
    got, eager, exact = _three(torch.float32)
    bad = {
        "shape": {"dx": got["dx"][None]},
        "dtype": {"dx": got["dx"].double()},
        "finite": {"dx": got["dx"] / 0},
        "names": {"dy": got["dx"]},
    }[check]
    with pytest.raises(AssertionError):
        assert_as_good_as_eager(got | bad, eager, exact)


@pytest.mark.parametrize("cell", ALL, ids=name_of)
def test_problem_has_a_gradient_for_every_input(cell):
    problem = make_problem(cell, 3, 2, 4, D=2, dtype=torch.float64)
    results = problem.run("reference")
    zero = {name for name, tensor in results.items() if not tensor.any()}
    # A constant, and the matrix of a gate that the step does not read.
    known = {"clockwork_rnn": {"dparams.period"}, "normed": {"dweights.1"}}
    assert zero == known.get(cell.name, set())
    assert {name[1:] for name in results if name[1:] in problem.inputs} == set(problem.inputs)


def test_problem_in_another_layout_is_the_same():
    plain = make_problem(cells.GRU, 3, 2, 4, D=2)
    strided = make_problem(cells.GRU, 3, 2, 4, D=2, contiguous=False)
    for name, tensor in strided.inputs.items():
        assert torch.equal(tensor, plain.inputs[name])
        assert not tensor.is_contiguous()
        assert tensor.storage_offset() == 1
