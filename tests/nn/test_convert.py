"""Models of torch.nn converted and reverted, and the modules of one step."""

import copy
import logging
import pickle
import warnings

import pytest
import torch
from torch import nn

import fused_rnn
import tests.support.cells as ours
from fused_rnn import Recurrent, RecurrentCell
from tests.support.tolerances import assert_equal_in_float64

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


class Own(nn.LSTM):
    """A subclass of a user, with a method and a way of its own."""

    def doubled(self, x):
        return 2 * self(x)[0]


class FusedOwn(fused_rnn.LSTM):
    doubled = Own.doubled


class Wrapped(nn.Module):
    """No subclass of torch.nn's, but it has such a layer inside."""

    def __init__(self):
        super().__init__()
        self.inner = nn.GRU(3, 4)

    def forward(self, x):
        return self.inner(x)[0]


def test_what_is_left_alone_is_named():
    model = nn.ModuleDict({"own": Own(3, 4), "gru": nn.GRU(3, 4), "head": nn.Linear(4, 4)})
    report = []
    with pytest.warns(UserWarning, match=r"own \(.*Own\): .*subclass of torch.nn.*rules={Own: "):
        fused_rnn.convert(model, report=report)
    assert type(model["own"]) is Own
    assert [(entry.name, entry.after) for entry in report] == [
        ("own", None),
        ("gru", "fused_rnn.nn.gru.GRU"),
    ]
    model["before"] = fused_rnn.GRU(3, 4, reset_after=False)
    model["peephole"] = fused_rnn.PeepholeLSTM(3, 4)
    model["projected"] = fused_rnn.RNN(3, 4, proj_size=2)
    model["mine"] = FusedOwn(3, 4)
    report = []
    with pytest.warns(UserWarning, match="not everything was turned") as caught:
        fused_rnn.revert(model, report=report)
    (warning,) = caught
    for words in (
        "before (fused_rnn.nn.gru.GRU): left as it is, torch.nn has no GRU with reset_after=",
        r"peephole (fused_rnn.nn.lstm.PeepholeLSTM): left as it is, torch.nn has no cell",
        r"projected (fused_rnn.nn.rnn.RNN): left as it is, torch.nn has no projection of cell",
        r"FusedOwn): left as it is, it is a subclass: give rules={FusedOwn: ...}",
    ):
        assert words in str(warning.message)
    assert "own (" not in str(warning.message)
    kinds = [type(module).__name__ for module in model.values()]
    assert kinds == ["Own", "GRU", "Linear", "GRU", "PeepholeLSTM", "RNN", "FusedOwn"]
    assert type(model["gru"]) is nn.GRU
    assert {entry.name: entry.after for entry in report if entry.after} == {
        "gru": "torch.nn.modules.rnn.GRU"
    }


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_scripted_and_quantised_modules_are_named():
    scripted = torch.jit.script(nn.Sequential(nn.LSTM(3, 4)))
    model = nn.ModuleDict({"scripted": scripted, "plain": nn.GRU(3, 4)})
    with pytest.warns(UserWarning, match=r"scripted \(.*it has a scripted LSTM: convert the model"):
        fused_rnn.convert(model)
    assert type(model["plain"]) is fused_rnn.GRU
    traced = torch.jit.trace(nn.GRU(3, 4), torch.ones(5, 2, 3))
    with pytest.warns(UserWarning, match=r"the model \(.*a scripted GRU: convert the model"):
        fused_rnn.convert(traced)
    quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.LSTM(3, 4)), {nn.LSTM})
    with pytest.warns(UserWarning, match=r"0 \(.*quantized.*\): .*quantised"):
        fused_rnn.convert(quantised)


def test_finding_nothing_is_one_warning():
    for model in (nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4), nn.ReLU())):
        for function in (fused_rnn.convert, fused_rnn.revert):
            with pytest.warns(UserWarning, match="has no recurrent module") as caught:
                assert function(model) is model
            assert len(caught) == 1


def test_what_was_converted_is_logged(caplog):
    model = nn.ModuleDict({"a": nn.LSTM(3, 4), "b": nn.GRUCell(3, 4)})
    with caplog.at_level(logging.INFO, "fused_rnn"), warnings.catch_warnings():
        warnings.simplefilter("error")
        fused_rnn.convert(model)
        fused_rnn.convert(model)  # nothing is left to do, and nothing is wrong
        fused_rnn.revert(model)
        fused_rnn.revert(model)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "convert: a (torch.nn.modules.rnn.LSTM): fused_rnn.nn.lstm.LSTM"
    assert lines[1].startswith("convert: b (torch.nn.modules.rnn.GRUCell): fused_rnn.")


def test_a_rule_gives_a_class():
    """In place, with the weights, the backend and the methods that it has."""
    model, report = nn.ModuleList([Own(3, 4, 2), nn.LSTM(3, 4)]), []
    x, parameters = torch.randn(5, 2, 3), list(model.parameters())
    want = model[0].doubled(x)
    fused_rnn.convert(model, rules={Own: FusedOwn}, backend="reference", report=report)
    assert [type(module) for module in model] == [FusedOwn, fused_rnn.LSTM]
    assert [entry.reason for entry in report] == ["by a rule", ""]
    assert model[0].backend == model[1].backend == "reference"
    torch.testing.assert_close(model[0].doubled(x), want)
    fused_rnn.revert(model, rules={FusedOwn: Own})
    assert [type(module) for module in model] == [Own, nn.LSTM]
    torch.testing.assert_close(model[0].doubled(x), want)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_a_rule_gives_a_function():
    """Its module replaces the old one at every place; the inside of the old is not searched."""
    inner = Wrapped()
    model = nn.ModuleDict({"a": inner, "b": nn.Sequential(inner, nn.LSTM(3, 4))})
    seen = []

    def rule(module):
        seen.append(module)
        return fused_rnn.GRU(3, 4)

    fused_rnn.convert(model, rules={Wrapped: rule})
    assert seen == [inner]
    assert type(model["a"]) is fused_rnn.GRU
    assert model["b"][0] is model["a"]
    assert type(model["b"][1]) is fused_rnn.LSTM
    assert type(inner.inner) is nn.GRU
    assert type(fused_rnn.convert(inner, rules={Wrapped: rule})) is fused_rnn.GRU
    report = []
    with pytest.warns(UserWarning, match=r"the model \(.*Wrapped\): left as it is, by a rule"):
        kept = fused_rnn.convert(inner, rules={Wrapped: lambda module: None}, report=report)
    assert kept is inner
    assert report[0].after is None


def test_errors_of_convert():
    model = nn.LSTM(3, 4)
    for error, message, options in (
        (TypeError, "torch_classes: expected bool or None, got str", {"torch_classes": "yes"}),
        (TypeError, "report: expected a list or None, got tuple", {"report": ()}),
        (TypeError, "rules: expected a mapping .*, got list", {"rules": [Own]}),
        (TypeError, "rules: expected classes as keys, got 'LSTM'", {"rules": {"LSTM": FusedOwn}}),
        (TypeError, "rules: expected a class or a function", {"rules": {Own: 3}}),
        (TypeError, "rules: expected subclasses of one", {"rules": {Own: fused_rnn.GRU}}),
        (TypeError, "rules: expected subclasses of one", {"rules": {Wrapped: fused_rnn.GRU}}),
        (TypeError, "rules: expected a module or None .*, got int", {"rules": {nn.LSTM: id}}),
        (ValueError, "backend: expected one of", {"backend": "fast"}),
    ):
        with pytest.raises(error, match=message):
            fused_rnn.convert(model, **options)
    for function in (fused_rnn.convert, fused_rnn.revert):
        with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got list"):
            function([])
    assert type(model) is nn.LSTM


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
