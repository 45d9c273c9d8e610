"""The modules against those of torch.nn: numbers, gradients, parameters, everyday use."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

import fused_rnn
import tests.support.cells as ours
from fused_rnn import Recurrent
from tests.support.problems import run_module
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

TORCH = {
    "RNN": (nn.RNN, fused_rnn.RNN, {}),
    "relu RNN": (nn.RNN, fused_rnn.RNN, {"nonlinearity": "relu"}),
    "LSTM": (nn.LSTM, fused_rnn.LSTM, {}),
    "GRU": (nn.GRU, fused_rnn.GRU, {}),
}
BACKENDS = ["auto", "sequence", "reference"]  # "auto" is "aten" here
kinds = pytest.mark.parametrize("kind", TORCH)
backends = pytest.mark.parametrize("backend", BACKENDS)


def _pair(kind, backend=None, **options):
    """A module of torch.nn with 3 inputs and 4 units, and ours with the same weights."""
    theirs, mine, fixed = TORCH[kind]
    torch.manual_seed(0)
    module = theirs(3, 4, **fixed, **options)
    torch.manual_seed(0)
    return module, mine(3, 4, **fixed, **options, backend=backend)


def _states(module, count, x):
    """Random ``hx`` of ``count`` states for the input x."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    batch = () if x.dim() == 2 else x.shape[:1] if module.batch_first else x.shape[1:2]
    states = tuple(torch.randn(rows, *batch, module.hidden_size) for _ in range(count))
    return states if count > 1 else states[0]


@pytest.mark.parametrize(
    ("options", "shape", "with_hx"),
    [
        ({}, (5, 2, 3), False),
        ({}, (5, 3), True),
        ({"batch_first": True}, (2, 5, 3), True),
        ({"batch_first": True, "bidirectional": True}, (5, 3), False),
        ({"num_layers": 2, "bidirectional": True}, (5, 2, 3), True),
        ({"num_layers": 3, "bias": False}, (1, 2, 3), False),
        ({"num_layers": 2, "bias": False, "bidirectional": True}, (2, 1, 3), False),
    ],
    ids=str,
)
@backends
@kinds
def test_numbers_and_gradients(kind, backend, options, shape, with_hx):
    theirs, mine = _pair(kind, backend, **options)
    x = torch.randn(shape)
    hx = _states(theirs, 2 if kind == "LSTM" else 1, x) if with_hx else None
    got, eager = run_module(mine, x, hx), run_module(theirs, x, hx)
    exact = run_module(theirs.double(), x, hx)
    assert_as_good_as_eager(got, eager, exact)
    assert_equal_in_float64(run_module(mine.double(), x, hx), exact)


@pytest.mark.parametrize("dropout", [0.5, 1.0])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@backends
@kinds
def test_dropout(kind, backend, training, dropout):
    """Between layers and nowhere else, in training only; with torch.nn's random numbers."""
    theirs, mine = _pair(kind, backend, num_layers=3, dropout=dropout, dtype=torch.float64)
    x, results = torch.randn(5, 2, 3), []
    for module in (theirs, mine):
        torch.manual_seed(2)
        results.append(run_module(module.train(training), x))
    assert_equal_in_float64(*results)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
@kinds
def test_same_parameters_from_the_same_seed(kind, options):
    theirs, mine = _pair(kind, **options)
    want, got = theirs.state_dict(), mine.state_dict()
    assert list(got) == list(want)
    assert all(torch.equal(got[name], want[name]) for name in want)
    flat = [weight for weights in mine.all_weights for weight in weights]
    assert all(w is p for w, p in zip(flat, mine.parameters(), strict=True))
    # torch.nn's does not say which nonlinearity an RNN has.
    assert str(mine).replace(', nonlinearity="relu"', "") == str(theirs)
    assert ("relu" in str(mine)) == (kind == "relu RNN")


@kinds
def test_state_dict_both_ways(kind):
    theirs, mine = _pair(kind, num_layers=2, bidirectional=True)
    for source, target in ((theirs, mine), (mine, theirs)):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.normal_()
        assert str(target.load_state_dict(source.state_dict())) == "<All keys matched successfully>"
        for name, value in source.state_dict().items():
            assert torch.equal(target.state_dict()[name], value)


@backends
@kinds
def test_empty_batch(kind, backend):
    theirs, mine = _pair(kind, backend, num_layers=2, bidirectional=True)
    got, want = run_module(mine, torch.ones(3, 0, 3)), run_module(theirs, torch.ones(3, 0, 3))
    assert {n: t.shape for n, t in got.items()} == {n: t.shape for n, t in want.items()}
    assert not any(tensor.any() for tensor in got.values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@backends
@kinds
def test_not_finite_input(kind, backend, value):
    theirs, mine = _pair(kind, backend, bidirectional=True)
    x = torch.randn(4, 3, 3)
    x[1, 0, 1] = value
    got, want = run_module(mine, x), run_module(theirs, x)
    for name in want:
        # float32, twelve terms to a sum; which values are NaN or infinite must be the same.
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-5, equal_nan=True)


EVERY = {
    "RNN": fused_rnn.RNN,
    "LSTM": fused_rnn.LSTM,
    "GRU": fused_rnn.GRU,
    "GRU, reset before": lambda *a, **k: fused_rnn.GRU(*a, reset_after=False, **k),
    "CIFGLSTM": fused_rnn.CIFGLSTM,
    **{
        f"PeepholeLSTM, {p}": lambda *a, p=p, **k: fused_rnn.PeepholeLSTM(*a, peepholes=p, **k)
        for p in ours.PEEPHOLES
    },
    **{
        cell.name: lambda *a, cell=cell, **k: Recurrent(cell, *a, **k)
        for cell in ours.USER
        if not cell.streams
    },
}
every_module = pytest.mark.parametrize("module", EVERY.values(), ids=EVERY)


@every_module
def test_backends_agree(module):
    """On every module that there is, stacked, and bidirectional where the cell can be."""
    both = module is not EVERY["mut1"]
    made = module(4, 4, 2, bidirectional=both, dtype=torch.float64, backend="reference")
    x = torch.randn(5, 3, 4)
    hx = _states(made, len(made.cell.states), x)
    want = run_module(made, x, hx)
    for made.backend in ("auto", "sequence"):
        assert_equal_in_float64(run_module(made, x, hx), want, made.backend)


@every_module
def test_copies_and_pickles(module):
    made = module(4, 4, 2)
    x = torch.randn(3, 2, 4)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.cell.key == made.cell.key
        assert torch.equal(other(x)[0], made(x)[0])
        assert all(a is not b for a, b in zip(other.parameters(), made.parameters(), strict=True))


@every_module
def test_autocast_gives_bfloat16(module):
    made = module(4, 4, 2)
    x = torch.randn(5, 3, 4)
    eager, exact = copy.deepcopy(made).bfloat16(), copy.deepcopy(made).double()
    with torch.no_grad():
        exact.load_state_dict(eager.state_dict())  # the same rounded weights and input
        want = {"output": exact(x.bfloat16().double())[0]}
        eager.backend = "reference"
        plain = {"output": eager(x.bfloat16())[0]}
    for made.backend in BACKENDS:
        with torch.autocast("cpu", torch.bfloat16):
            output, finals = made(x)
        assert all(final.dtype == torch.bfloat16 for final in finals)
        assert_as_good_as_eager({"output": output}, plain, want)
        output.sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in made.parameters())


@pytest.mark.parametrize("peepholes", ours.PEEPHOLES)
def test_peepholes_of_nothing_are_an_lstm(peepholes):
    options = {"bidirectional": True, "backend": "sequence"}
    module = fused_rnn.PeepholeLSTM(3, 4, 2, peepholes=peepholes, **options)
    plain = fused_rnn.LSTM(3, 4, 2, **options)
    extra = plain.load_state_dict(module.state_dict(), strict=False).unexpected_keys
    names = itertools.product("01", ("", "_reverse"), peepholes)
    assert extra == [f"p_{gate}_l{layer}{suffix}" for layer, suffix, gate in names]
    with torch.no_grad():
        for name in extra:
            module.get_parameter(name).zero_()
    x = torch.randn(5, 2, 3)
    assert torch.equal(module(x)[0], plain(x)[0])


@pytest.mark.parametrize("backend", ["aten", "sequence"])
def test_functional_call_and_parametrization(backend):
    module = fused_rnn.LSTM(3, 4, backend=backend)
    x = torch.randn(5, 2, 3)
    doubled = {name: 2 * p.detach() for name, p in module.named_parameters()}
    called = functional_call(module, doubled, (x,))[0]
    module.load_state_dict(doubled)
    assert torch.equal(called, module(x)[0])
    parametrizations.weight_norm(module, "weight_hh_l0")
    # Weight norm makes the same weight of its length and direction, but for rounding.
    torch.testing.assert_close(module(x)[0], called, rtol=1e-5, atol=1e-6)
