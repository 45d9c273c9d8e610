"""What a cell is made of: ``Stage`` and ``Param``, and what the modules make of them."""

import copy
import pickle

import pytest
import torch
from torch import tanh

from fused_rnn import Cell, Param, Recurrent, RecurrentCell, Stage, cells
from tests.support.problems import run_module
from tests.support.tolerances import assert_equal_in_float64


def _decaying(pre, state, params):
    n, m = pre
    (h,) = state
    rate, scale, period = params
    return rate * h + scale * tanh(n + m) / period


def _strictly_lower(matrix):
    return matrix.tril(-1)


def _antisymmetric(matrix):
    return matrix - matrix.mT - 0.1 * torch.eye(len(matrix)).to(matrix)


def _count(tensor):
    return tensor.copy_(torch.arange(1, len(tensor) + 1))


PARAMS = (
    Param("rate", init=0.5),
    Param("scale", init=torch.nn.init.ones_, scalar=True),
    Param("period", init=_count, learned=False),
)
STAGES = (Stage(("n",), "h", _antisymmetric), Stage(("m",), "h", _strictly_lower))


def _cell(params=PARAMS, stages=STAGES):
    return Cell("decaying", _decaying, gates=("n", "m"), params=params, stages=stages)


CELL = _cell()


def _plain():
    """The same cell, all of whose params are vectors."""
    return _cell(("rate", "scale", "period"), (Stage(("n",)), Stage(("m",))))


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ValueError, "param, name: expected a Python identifier, got 'a b'", lambda: Param("a b")),
        (TypeError, "param, name: expected a Python identifier, got 3", lambda: Param(3)),
        (TypeError, "param 'p', init: expected a number, .* got 'one'", lambda: Param("p", "one")),
        (TypeError, "param 'p', init: .* got True", lambda: Param("p", True)),
        (TypeError, "param 'p', learned: expected bool, got int", lambda: Param("p", learned=1)),
        (TypeError, "param 'p', scalar: expected bool, got str", lambda: Param("p", scalar="x")),
        (TypeError, "stage, weight: expected a function", lambda: Stage(("n",), weight=1.0)),
        (TypeError, r"params: expected a sequence, .* write \(rate,\)", lambda: _cell(PARAMS[0])),
        (TypeError, "params: expected a sequence of names, got 'p'", lambda: _cell("p")),
        (TypeError, "params: expected a Python identifier, got 3", lambda: _cell((3,))),
        (ValueError, "params: expected distinct", lambda: _cell((*PARAMS, "rate"))),
        (ValueError, "'bias' is the name of an attribute", lambda: _cell((Param("bias"),))),
    ],
    ids=range(12),
)
def test_bad_arguments(error, message, make):
    with pytest.raises(error, match=message):
        make()


def test_params_are_names_with_what_was_given():
    assert CELL.params == ("rate", "scale", "period")
    assert CELL.given == {param.name: param for param in PARAMS}
    assert cells.PEEPHOLE_LSTM.given["p_i"] == Param("p_i")
    assert repr(PARAMS[0]) == "Param(name='rate', init=0.5, learned=True, scalar=False)"


def test_copies_are_equal():
    for part in (*PARAMS, *STAGES):
        assert pickle.loads(pickle.dumps(part)) == copy.deepcopy(part) == part
    back = pickle.loads(pickle.dumps(CELL))
    assert (back.given, back.stages, back.key) == (CELL.given, CELL.stages, CELL.key)


def test_key_tells_what_was_given():
    assert _cell().key == CELL.key
    others = [
        _plain(),
        _cell(params=("rate", *PARAMS[1:])),
        _cell(stages=(STAGES[0], Stage(("m",)))),
    ]
    assert len({CELL.key, *(cell.key for cell in others)}) == 4


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_tensors_of_a_module(options):
    module = Recurrent(CELL, 3, 4, **options)
    for end in module._suffixes:
        assert isinstance(getattr(module, f"rate{end}"), torch.nn.Parameter)
        assert (getattr(module, f"rate{end}") == 0.5).all()
        assert getattr(module, f"scale{end}").shape == ()
        assert getattr(module, f"scale{end}") == 1
    constants = dict(module.named_buffers())
    assert list(constants) == [f"period{end}" for end in module._suffixes]
    assert all(torch.equal(c, torch.arange(1.0, 5)) for c in constants.values())
    assert set(constants) < set(module.state_dict())
    flat = [weight for weights in module.all_weights for weight in weights]
    assert all(w is p for w, p in zip(flat, module.parameters(), strict=True))
    other = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.fill_(7)
    other.load_state_dict(module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(other.buffers(), module.buffers(), strict=True))
    with torch.no_grad():
        other.rate_l0.fill_(7)
        other.period_l0.fill_(7)
    other.reset_parameters()
    assert (other.rate_l0 == 0.5).all()
    assert torch.equal(other.period_l0, torch.arange(1.0, 5))


def test_the_random_numbers_are_those_of_a_module_without_initial_values():
    """Params with an ``init`` draw none, and come after the weights."""
    torch.manual_seed(0)
    own = Recurrent(CELL, 3, 4)
    torch.manual_seed(0)
    plain = Recurrent(_plain(), 3, 4)
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        assert torch.equal(getattr(own, name), getattr(plain, name))


def _effective(matrix):
    first, second = matrix.chunk(2)
    return torch.cat([first - first.T - 0.1 * torch.eye(4).to(matrix), second.tril(-1)])


@pytest.mark.parametrize("backend", ["auto", "sequence", "reference"])
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}, {"recompute": True}],
    ids=str,
)
def test_numbers_are_those_of_plain_tensors(backend, options):
    """Numbers and gradients of a module whose tensors are made by hand."""
    module = Recurrent(CELL, 3, 4, dtype=torch.float64, backend=backend, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    plain = Recurrent(_plain(), 3, 4, dtype=torch.float64, backend="reference", **options)
    x = torch.randn(5, 2, 3, dtype=torch.float64)

    class ByHand(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, tensor in module.named_parameters():
                self.register_parameter(name, tensor)

        def forward(self, x, hx):
            tensors = dict(self.named_parameters()) | dict(module.named_buffers())
            for end in module._suffixes:
                tensors[f"weight_hh{end}"] = _effective(tensors[f"weight_hh{end}"])
                tensors[f"scale{end}"] = tensors[f"scale{end}"].expand(4)
            return torch.func.functional_call(plain, tensors, (x, hx))

    assert_equal_in_float64(run_module(module, x), run_module(ByHand(), x))


def test_one_step_is_a_layer_of_one_step():
    torch.manual_seed(0)
    layer = Recurrent(CELL, 3, 4, dtype=torch.float64)
    step = RecurrentCell(CELL, 3, 4, dtype=torch.float64)
    step.load_state_dict({n.removesuffix("_l0"): t for n, t in layer.state_dict().items()})
    x, h = torch.randn(2, 3).double(), torch.randn(2, 4).double()
    assert_equal_in_float64({"h": step(x, h)}, {"h": layer(x[None], h[None])[1][0]})


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda matrix: matrix[:-1], r"stage 0, weight: .* shape \(4, 4\), got \(3, 4\)"),
        (lambda matrix: 1.0, "stage 0, weight: .* got float"),
    ],
    ids=["shape", "type"],
)
def test_a_weight_of_another_shape_is_a_value_error(made, message):
    cell = _cell(stages=(Stage(("n",), "h", made), Stage(("m",))))
    with pytest.raises(ValueError, match=message):
        Recurrent(cell, 3, 4)(torch.randn(2, 1, 3))


def test_an_init_that_fills_another_tensor_is_a_type_error():
    cell = _cell((Param("rate", init=torch.ones_like), *PARAMS[1:]))
    with pytest.raises(TypeError, match="param 'rate', init: expected to fill the tensor in place"):
        Recurrent(cell, 3, 4)
