"""Models of torch.nn converted and reverted, and the modules of one step."""

import copy
import pickle

import cells_for_tests as ours
import pytest
import torch
from tolerances import assert_equal_in_float64
from torch import nn

import fused_rnn
from fused_rnn import Recurrent, RecurrentCell

PAIRS = [
    (nn.RNN, fused_rnn.RNN),
    (nn.LSTM, fused_rnn.LSTM),
    (nn.GRU, fused_rnn.GRU),
    (nn.RNNCell, fused_rnn.RNNCell),
    (nn.LSTMCell, fused_rnn.LSTMCell),
    (nn.GRUCell, fused_rnn.GRUCell),
]


def _flat(result):
    tensors = [result] if isinstance(result, torch.Tensor) else result
    flat = [t for group in tensors for t in ([group] if isinstance(group, torch.Tensor) else group)]
    return {str(i): tensor for i, tensor in enumerate(flat)}


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "weight_norm"])
@pytest.mark.parametrize(("theirs", "mine"), PAIRS)
def test_there_and_back(theirs, mine, normed):
    module = theirs(3, 4, dtype=torch.float64)
    if normed:
        name = "weight_hh" if theirs.__name__.endswith("Cell") else "weight_hh_l0"
        nn.utils.parametrizations.weight_norm(module, name)
    model, x = nn.ModuleList([module, module]), torch.randn(2, 3, dtype=torch.float64)
    want, parameters = _flat(module(x)), dict(model.named_parameters())
    kind, text = type(module), str(module)
    assert fused_rnn.convert(model, backend="reference") is model
    assert model[0] is model[1] is module
    assert isinstance(module, mine)
    assert (module.backend, module.recompute) == ("reference", False)
    assert_equal_in_float64(_flat(module(x)), want)
    copies = [copy.deepcopy(module)] + ([] if normed else [pickle.loads(pickle.dumps(module))])
    for other in copies:
        assert_equal_in_float64(_flat(other(x)), want)
    assert fused_rnn.revert(model) is model
    assert kind.__mro__[-3:] == type(module).__mro__[-3:]
    assert not isinstance(module, mine)
    assert str(module) == text
    assert not {"backend", "cell", "recompute"} & set(vars(module))
    assert_equal_in_float64(_flat(module(x)), want)
    assert all(parameters[name] is p for name, p in model.named_parameters())
    module.float()  # what torch.nn keeps of the weights follows
    assert next(iter(_flat(module(x.float())).values())).dtype == torch.float32


def test_what_is_left_alone():
    class Own(nn.LSTM):
        pass

    model = nn.ModuleList([Own(3, 4), fused_rnn.GRU(3, 4, reset_after=False)])
    fused_rnn.convert(model)
    assert type(model[0]) is Own
    fused_rnn.revert(model)
    assert type(model[1]) is fused_rnn.GRU
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got list"):
        fused_rnn.convert([])
    with pytest.raises(ValueError, match="backend: expected one of"):
        fused_rnn.convert(model, backend="fast")


@pytest.mark.parametrize("cell", [c for c in ours.ALL if not c.streams], ids=ours.name_of)
def test_one_step_is_a_sequence_of_one(cell):
    layer = Recurrent(cell, 4, 4, dtype=torch.float64)
    one = RecurrentCell(cell, 4, 4, dtype=torch.float64)
    one.load_state_dict({n.removesuffix("_l0"): p for n, p in layer.state_dict().items()})
    x = torch.randn(2, 4, dtype=torch.float64)
    hx = [torch.randn(2, 4, dtype=torch.float64) for _ in cell.states]
    want = layer(x[None], hx[0][None] if len(hx) == 1 else [h[None] for h in hx])[1]
    want = {name: t.squeeze(0) for name, t in _flat([want]).items()}
    got = _flat([one(x, hx[0] if len(hx) == 1 else hx)])
    assert_equal_in_float64(got, want)
    row = [h[0] for h in hx]
    got = _flat([one(x[0], row[0] if len(row) == 1 else row)])
    assert_equal_in_float64(got, {name: t[0] for name, t in want.items()})


@pytest.mark.parametrize(
    ("x", "hx"),
    [(torch.ones(1, 2, 3), None), (torch.ones(2, 5), None), (torch.ones(2, 3), torch.ones(2, 5))],
)
def test_errors_of_one_step_are_of_torchs_types(x, hx):
    caught = []
    for module in (nn.GRUCell(3, 4), fused_rnn.GRUCell(3, 4)):
        with pytest.raises((ValueError, RuntimeError)) as error:
            module(x, hx)
        caught.append(error.type)
    assert caught[0] is caught[1]
