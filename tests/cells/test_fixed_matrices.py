"""Stages with a fixed matrix: mean, sum and running sum over the units, and the identity."""

import inspect

import pytest
import torch
from torch import sigmoid, tanh

import fused_rnn
from fused_rnn import Cell, Stage
from fused_rnn.cells import norms
from tests.support.cells import NORMED, SUMMED
from tests.support.problems import make_problem
from tests.support.tolerances import assert_equal_in_float64


def mean(vector):
    return (vector.sum(-1, True) / vector.shape[-1]).expand_as(vector)


def cumsum(vector):
    return torch.stack([vector[..., : j + 1].sum(-1) for j in range(vector.shape[-1])], -1)


def normed(x, weights, bias, states, params, streams, t):
    """A step of ``NORMED``, and of ``SUMMED`` below, with the sums written out."""
    z, a = x.unbind(-2)
    h, c = states
    r_a, r_b = (h @ weights[0].mT).chunk(2, -1)
    a, b = a + r_a, bias[0] + r_b
    m = mean(a + b) / 2
    square, tilt = mean((a - m) ** 2), mean(tanh(b - m))
    n = params[0] * (a - m) / (square + 0.1).sqrt() + tilt
    share = cumsum(sigmoid(params[0] * b) + 0.1 * n)
    new = sigmoid(b) * c + tanh(n) + 0.1 * (share - mean(c))
    return sigmoid(z) * tanh(new) + 0.1 * h, new


def summed(x, weights, bias, states, params, streams, t):
    (x,) = x.unbind(-2)
    h, c = states
    mean_h, mean_c = mean(streams[0] * h + c / (1 + t)), mean(params[0] * c)
    share = sigmoid(x + mean_h)
    new = tanh(x + cumsum(h) - 0.1 * cumsum(c) + mean_c) + share / share.sum(-1, True)
    return new, 0.5 * tanh(x * mean_h + cumsum(c))


def loop(cell, x, weights, bias, states, params, streams, reverse):
    step = {"normed": normed, "summed": summed}[cell.name]
    runs = []
    for d in range(x.shape[2]):
        state, rows = [s[d] for s in states], {}
        walks_back = reverse ^ (d == 1)
        for t in range(len(x)):
            time = len(x) - 1 - t if walks_back else t
            own = [p[d] for p in params], [s[time, :, d] for s in streams]
            own_bias = None if bias is None else bias[d]
            state = step(x[time, :, d], [w[d] for w in weights], own_bias, state, *own, t)
            rows[time] = state
        runs.append(([torch.stack([rows[t][i] for t in range(len(x))]) for i in (0, 1)], state))
    sequences = [torch.stack([run[0][i] for run in runs], 2) for i in (0, 1)]
    return sequences, [torch.stack([run[1][i] for run in runs]) for i in (0, 1)]


@pytest.mark.parametrize("backend", ("reference", "sequence", "cpp"))
@pytest.mark.parametrize("H", (1, 5, 33))
@pytest.mark.parametrize("cell", (NORMED, SUMMED), ids=lambda cell: cell.name)
def test_engines_against_a_loop(cell, H, backend):
    problem = make_problem(cell, 4, 3, H, D=2, reverse=True, dtype=torch.float64)
    assert_equal_in_float64(problem.run(backend), problem.differentiate(loop))


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("strategy", fused_rnn.plan.STRATEGIES)
@pytest.mark.parametrize("H", (5, 33))
@pytest.mark.parametrize("cell", (NORMED, SUMMED), ids=lambda cell: cell.name)
def test_kernels_against_a_loop(cell, H, strategy):
    from tests.kernels.test_kernels import running

    problem = make_problem(cell, 3, 3, H, D=2, dtype=torch.float64)
    with running(strategy):
        got = problem.run("triton")
    assert_equal_in_float64(got, problem.differentiate(loop))


@pytest.mark.parametrize("cell", (NORMED, SUMMED), ids=lambda cell: cell.name)
def test_second_derivatives(cell):
    problem = make_problem(cell, 2, 2, 3, dtype=torch.float64)
    names, leaves = zip(*problem.leaves().items(), strict=True)

    def run(*tensors):
        args = problem.arguments(dict(zip(names, tensors, strict=True)))
        x, weights, bias, *groups = args
        states, params, streams = ([t[0] for t in group] for group in groups)
        sequences, finals = fused_rnn.scan(
            cell,
            x.flatten(2),
            [w[0] for w in weights],
            states,
            bias=None if bias is None else bias.flatten(),
            params=params,
            streams=[s[:, :, 0] for s in args.streams],
            return_states=True,
            backend="sequence",
        )
        return (*sequences, *finals)

    assert torch.autograd.gradcheck(run, leaves)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_the_modules_have_no_weight_of_them():
    layer = fused_rnn.Recurrent(NORMED, 3, 4)
    shapes = {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert shapes == {
        "weight_ih_l0": (8, 3),
        "weight_hh_l0": (12, 4),  # of a, b and of the last stage
        "bias_ih_l0": (8,),
        "bias_hh_l0": (12,),
        "gain_l0": (4,),
    }
    assert NORMED.recurrent_gates == ("a", "b", "unread")
    assert NORMED.weight_index == (0, -1, -1, -1, -1, -1, -1, 1)
    assert NORMED.matrices == ((2, 1), (1, 1))
    assert NORMED.bias_gates == ("b", "unread")
    assert SUMMED.matrices == SUMMED.bias_gates == ()


@pytest.mark.parametrize("backend", ("sequence", "cpp"))
@pytest.mark.parametrize("recompute", (False, True))
def test_rows_that_end_early(backend, recompute):
    """As each row by itself, so the derived cell keeps the fixed matrices."""
    layer = fused_rnn.Recurrent(NORMED, 3, 4, backend=backend, recompute=recompute).double()
    input = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    output, finals = layer(input, lengths=torch.tensor([5, 3]))
    other, (h, c) = layer(input[:3, 1:])
    torch.testing.assert_close(output[:3, 1:], other)
    torch.testing.assert_close([f[:, 1:] for f in finals], [h, c])
    gradients = [torch.autograd.grad(o.square().sum(), input)[0] for o in (output[:3, 1:], other)]
    torch.testing.assert_close(*gradients)


def with_stage(x_gates=("a",), **changes):
    given = {"gates": ("m",), "source": lambda pre, state: pre[0] + state[0], "weight": "mean"}
    stages = (Stage(**(given | changes)),)
    return Cell("bad", _difference, ("a", "m"), x_gates=x_gates, stages=stages)


def _difference(pre, state):
    return pre[0] - pre[1]


def test_bad_arguments():
    assert with_stage().stages[0].fixed == "mean"
    with pytest.raises(ValueError, match="a name of .*'cumsum'.*, got 'median'"):
        with_stage(weight="median")
    with pytest.raises(TypeError, match="the name of a fixed matrix or None, got 3"):
        with_stage(weight=3)
    with pytest.raises(ValueError, match="one gate for each of the 2 vectors of the source"):
        with_stage(source=lambda pre, state: (pre[0], state[0]))
    with pytest.raises(ValueError, match=r"without an input part, got \['m'\]"):
        with_stage(x_gates=("a", "m"))
    cell = with_stage(source="h")
    with pytest.raises(ValueError, match="proj_size: cell 'bad' cannot have a projection"):
        fused_rnn.Recurrent(cell, 3, 4, proj_size=2)
    with pytest.raises(RuntimeError, match="recurrent_weights: cell 'bad' expected 0 tensors"):
        fused_rnn.scan(cell, torch.zeros(2, 1, 4), torch.zeros(4, 4), torch.zeros(1, 4))


def test_a_source_has_the_signature_of_its_values_and_its_class_its_own():
    """Python 3.10 asks each dataclass for its signature when it is made."""

    def values(pre, state, params):
        return pre

    assert inspect.signature(norms._Squares(values)) == inspect.signature(values)
    assert list(inspect.signature(norms._Variances).parameters) == ["values", "norms"]
