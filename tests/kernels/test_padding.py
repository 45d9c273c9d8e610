"""Units that pad a chunk reach no product and no sum, even if a step makes NaN of their zeros."""

import pytest
import torch

from fused_rnn import Cell, Stage
from fused_rnn.self_check import trial
from tests.kernels.test_kernels import STRATEGIES, check
from tests.support.problems import make_problem

pytestmark = pytest.mark.usefixtures("interpreter")


def _leaky(pre, state, params):
    """0 / 0 in padded units, in the forward and in the gradients of gates and states."""
    return state[0] + (torch.tanh(pre[0]) - state[0]) / params[0]


def _by_old_state(pre, state):
    h, n = state
    return torch.tanh(pre[1]) / n, n + torch.sigmoid(pre[0])


def _logarithm(pre, state, params, streams):
    return torch.tanh(pre[0] + 0.3 * torch.log(params[0])) * streams[0].rsqrt()


def _relative(pre, state, params):
    return state[0] / params[0] + torch.tanh(pre[0])


def _two_stages(pre, state):
    return torch.sigmoid(pre[1]) * state[0] + torch.tanh(pre[0])


def _later_sum(pre, state, params):
    r, n = pre
    return torch.tanh(n) / params[0] + torch.sigmoid(r) * state[0]


def _plain_source(pre, state):
    return torch.sigmoid(pre[0]) * state[0]


CELLS = (
    Cell("leaky", _leaky, gates=("n",), params=("tau",)),
    Cell("by_old_state", _by_old_state, gates=("i", "z"), states=("h", "n")),
    Cell("logarithm", _logarithm, gates=("n",), params=("p",), streams=("s",)),
    # The source of the second stage divides; and the gradient of the second stage's gates does.
    Cell(
        "relative_source",
        _two_stages,
        gates=("r", "n"),
        params=("p",),
        stages=(Stage(("r",)), Stage(("n",), _relative)),
    ),
    Cell(
        "later_sum",
        _later_sum,
        gates=("r", "n"),
        params=("p",),
        stages=(Stage(("r",)), Stage(("n",), _plain_source)),
    ),
)


def problem_of(cell, hidden, **options):
    """Values that the cells can divide by and take logarithms of, in every unit that exists."""
    problem = make_problem(cell, 3, 3, hidden, **options)
    for name, tensor in problem.inputs.items():
        if name.startswith(("params", "streams", "states.n")):
            problem.inputs[name] = tensor.abs() + 1
    return problem


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_padded_units(cell, strategy):
    check(problem_of(cell, 17), strategy)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float64), ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_padded_units_of_several_chunks_and_directions(cell, dtype):
    check(problem_of(cell, 40, D=2, dtype=dtype), "resident")


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_the_self_check_admits_them(cell):
    outcome = trial.attempt(cell, "resident", torch.float32, torch.device("cpu"))
    assert outcome.agrees, outcome.reason
