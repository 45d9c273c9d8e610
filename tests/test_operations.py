"""What a cell's functions may be made of: each operation, printed in both languages."""

import pytest
import torch
from functions_for_tests import FUNCTIONS, TIES, cell_of
from problems import make_problem
from test_kernels import check
from tolerances import assert_as_good_as_eager, assert_equal_in_float64

from fused_rnn import compiler

CPP = pytest.mark.skipif(compiler.find() is None, reason="no C++ compiler")


CASES = [(name, dtype) for name in FUNCTIONS for dtype in (torch.float32, torch.float64)]


@CPP
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_in_cpp(name, dtype):
    problem = make_problem(cell_of(FUNCTIONS[name]), 3, 3, 19, dtype=dtype)
    got, exact = problem.run("cpp"), problem.to(torch.float64).run("reference")
    if dtype == torch.float64:
        assert_equal_in_float64(got, exact, name)
    else:
        assert_as_good_as_eager(got, problem.run("reference"), exact, name)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_in_triton(name, dtype):
    check(make_problem(cell_of(FUNCTIONS[name]), 3, 3, 19, dtype=dtype), "resident")


def at_ties(function):
    """One step whose gate and state are whole numbers from -2 to 2, in all pairs."""
    problem = make_problem(cell_of(function), 1, 5, 5, dtype=torch.float64, bias=False)
    whole = torch.arange(-2.0, 3.0, dtype=torch.float64)
    problem.inputs["x"] = whole.repeat(5, 1).view_as(problem.inputs["x"]).contiguous()
    for name, tensor in problem.inputs.items():
        if name.startswith("states"):
            problem.inputs[name] = whole[:, None].repeat(1, 5).view_as(tensor).contiguous()
        elif name.startswith("weights"):
            problem.inputs[name] = torch.zeros_like(tensor)
    return problem


@CPP
@pytest.mark.parametrize("name", TIES)
def test_ties_in_cpp(name):
    problem = at_ties(TIES[name])
    assert_equal_in_float64(problem.run("cpp"), problem.run("reference"), name)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("name", TIES)
def test_ties_in_triton(name):
    check(at_ties(TIES[name]), "resident")


def test_what_cannot_be_printed_is_named():
    for function, message in (
        (lambda a, b: torch.special.i0(a) * b, "does not know how to write aten.i0.default"),
        (lambda a, b: torch.lgamma(1 + a * a) * b, "does not know how to write aten.lgamma"),
    ):
        problem = make_problem(cell_of(function), 2, 2, 3)
        with pytest.raises(RuntimeError, match=message):
            problem.run("cpp")
        got, want = problem.run("auto"), problem.run("reference")  # by PyTorch's operations
        assert_as_good_as_eager(got, want, problem.to(torch.float64).run("reference"))
