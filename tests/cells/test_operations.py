"""What a cell's functions may be made of: each operation, printed in both languages."""

import itertools
import math

import pytest
import torch
from fused_rnn.kernels.cpu import compiler
from torch.nn import functional as F

from fused_rnn import Cell
from tests.kernels.test_kernels import check
from tests.support.functions import FUNCTIONS, TIES, cell_of
from tests.support.problems import make_problem
from tests.support.tolerances import FLOAT64, assert_as_good_as_eager, assert_equal_in_float64

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


AT_THE_EDGES = {
    "extremes": lambda a, b: torch.maximum(a, b) + torch.minimum(a, b) * torch.fmax(a, b),
    "powers": lambda a, b: a**b,
    "whole powers": lambda a, b: a**5 + a**-2 + a**0,
    "quotients": lambda a, b: torch.remainder(a, b) + torch.div(a, b, rounding_mode="floor"),
    "rounding": lambda a, b: torch.round(a) + torch.trunc(b),
    "corners": lambda a, b: (
        F.hardtanh(a) + F.softshrink(a) + F.hardshrink(a) + F.relu(b) + torch.clamp(b, -1, 1)
    ),
}


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("backend", [pytest.param("cpp", marks=CPP), "triton"])
@pytest.mark.parametrize("name", AT_THE_EDGES)
def test_infinite_and_no_numbers(name, backend):
    """One step from a state that no product reads, in all pairs; the output of it alone."""

    def step(pre, state):
        return state[0] * 1, AT_THE_EDGES[name](pre[0], state[1])

    values = (math.nan, math.inf, -math.inf, 0.0, 1.0, -1.0, 2.0, -2.5, 0.5, -3.0)
    a, b = zip(*itertools.product(values, repeat=2), strict=True)
    cell = Cell("edges", step, gates=("a",), states=("h", "c"))
    problem = make_problem(cell, 1, 1, len(a), dtype=torch.float64, bias=False)
    problem.inputs["x"] = torch.tensor(a, dtype=torch.float64).view_as(problem.inputs["x"])
    problem.inputs["states.h"] = torch.zeros(1, 1, len(a), dtype=torch.float64)
    problem.inputs["states.c"] = torch.tensor(b, dtype=torch.float64).view(1, 1, -1)
    got, want = problem.run_forward(backend), problem.run_forward("reference")
    torch.testing.assert_close(got, want, equal_nan=True, rtol=FLOAT64, atol=0)


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
