"""Ours as subclasses of torch.nn's classes: the attributes that other code looks for."""

import copy
import pickle
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune

import fused_rnn
from fused_rnn.nn import torch_classes
from tests.support.tolerances import assert_equal_in_float64

LAYERS = [nn.RNN, nn.LSTM, nn.GRU]
CELLS = [nn.RNNCell, nn.LSTMCell, nn.GRUCell]
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True, "bias": False},
    {"batch_first": True, "num_layers": 2},
]
forms = pytest.mark.parametrize("torch_class", [False, True], ids=["plain", "torch_class"])
layers = pytest.mark.parametrize("theirs", LAYERS, ids=lambda kind: kind.__name__)
T, B, INPUT, H = 5, 3, 4, 6


def _pair(theirs, torch_class, **options):
    module = theirs(INPUT, H, dtype=torch.float64, **options)
    return module, fused_rnn.convert(copy.deepcopy(module), torch_classes=torch_class)


def _x(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*(shape or (T, B, INPUT)), dtype=torch.float64, generator=generator)


def _results(module, call=None):
    """Output, final states and the gradients of input and parameters."""
    x = _x().requires_grad_()
    output, finals = (module if call is None else call)(x)
    finals = [finals] if isinstance(finals, torch.Tensor) else list(finals)
    loss = output.square().sum() + sum(final.sum() for final in finals)
    inputs = {"x": x} | dict(module.named_parameters())
    found = torch.autograd.grad(loss, list(inputs.values()))
    results = {"output": output} | {f"final.{i}": final for i, final in enumerate(finals)}
    return results | {f"d{name}": grad for name, grad in zip(inputs, found, strict=True)}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@forms
@layers
def test_attributes_of_rnn_base(theirs, torch_class, options):
    module, mine = _pair(theirs, torch_class, **options)
    assert isinstance(mine, nn.RNNBase)
    assert isinstance(mine, theirs) is torch_class
    assert isinstance(mine, getattr(fused_rnn, theirs.__name__))
    assert type(mine).__name__ == theirs.__name__
    assert all(getattr(mine, n) == getattr(module, n) for n in nn.RNNBase.__constants__)
    assert mine._all_weights == module._all_weights
    assert mine._flat_weights_names == module._flat_weights_names
    assert list(mine.state_dict()) == list(module.state_dict())
    assert all(a is b for a, b in zip(mine._flat_weights, mine.parameters(), strict=True))
    groups = [
        [name for name, p in mine.named_parameters() for q in g if p is q] for g in mine.all_weights
    ]
    assert groups == module._all_weights
    x = _x()
    size = module.get_expected_hidden_size(x, None)
    assert mine.get_expected_hidden_size(x, None) == size
    hidden = torch.zeros(size), torch.zeros(size)
    hidden = hidden if theirs is nn.LSTM else hidden[0]
    mine.check_forward_args(x, hidden, None)
    order = torch.tensor([2, 0, 1])
    states = _x(*size), 2 * _x(*size)
    states = states if theirs is nn.LSTM else states[0]
    assert mine.permute_hidden(states, None) is states
    moved = [_flat(m.permute_hidden(states, order)) for m in (mine, module)]
    assert all(torch.equal(a, b) for a, b in zip(*moved, strict=True))


def _flat(states):
    return [states] if isinstance(states, torch.Tensor) else list(states)


@pytest.mark.parametrize("hidden", [(1, B, H + 1), (2, B, H), (1, B + 1, H)], ids=str)
@layers
def test_check_forward_args_is_as_strict_as_torchs(theirs, hidden):
    module, mine = _pair(theirs, False)
    hidden = torch.zeros(hidden)
    hidden = (hidden, hidden) if theirs is nn.LSTM else hidden
    for checked in (module, mine):
        with pytest.raises(RuntimeError, match="xpected"):
            checked.check_forward_args(_x(), hidden, None)
        with pytest.raises(ValueError, match="dtype"):
            checked.check_forward_args(_x().float(), hidden, None)
    with pytest.raises(RuntimeError, match="hidden: expected . states .*, got 3"):
        mine.check_forward_args(_x(), (torch.zeros(1, B, H),) * 3, None)


def test_no_other_cell_is_taken_for_one_of_torchs():
    for module in (
        fused_rnn.GRU(2, 3, reset_after=False),
        fused_rnn.PeepholeLSTM(2, 3),
        fused_rnn.CIFGLSTM(2, 3),
    ):
        assert isinstance(module, nn.RNNBase)
        assert module.mode == module.cell.name
        assert module.mode not in ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
        assert not isinstance(module, (nn.RNN, nn.LSTM, nn.GRU))
    for kind in (torch_classes.GRU, torch_classes.GRUCell):
        with pytest.raises(ValueError, match="reset_after: expected True"):
            kind(2, 3, reset_after=False)


def test_projected_and_peephole_weights_are_listed():
    module = nn.LSTM(INPUT, H, 2, proj_size=2)
    mine = fused_rnn.convert(copy.deepcopy(module))
    assert mine._all_weights == module._all_weights
    x, states = torch.zeros(T, B, INPUT), (torch.zeros(2, B, 2), torch.zeros(2, B, H))
    assert mine.get_expected_cell_size(x, None) == module.get_expected_cell_size(x, None)
    mine.check_forward_args(x, states, None)
    assert fused_rnn.PeepholeLSTM(2, 3)._all_weights[0][-3:] == ["p_i_l0", "p_f_l0", "p_o_l0"]


@forms
@layers
def test_flat_weights_are_never_stale_and_hold_nothing(theirs, torch_class):
    _, mine = _pair(theirs, torch_class)
    assert not [name for name in vars(mine) if "weight" in name]
    mine.float()
    assert {w.dtype for w in mine._flat_weights} == {torch.float32}
    mine.weight_hh_l0 = nn.Parameter(torch.ones_like(mine.weight_hh_l0))
    assert mine._flat_weights[1] is mine.weight_hh_l0
    mine._flat_weights = list(mine._flat_weights)  # what the module has already
    with pytest.raises(AttributeError, match="_flat_weights: expected the weights that the module"):
        mine._flat_weights = [w.clone() for w in mine._flat_weights]
    mine.to("meta")
    assert all(w.is_meta for w in mine._flat_weights)


def _pruned(module):
    for name in ("weight_hh_l0", "bias_ih_l0"):
        prune.l1_unstructured(module, name, 0.5)


def _masked(module):
    parametrize.register_parametrization(module, "weight_ih_l0", _Doubled())


class _Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("change", [_pruned, _masked], ids=["prune", "parametrize"])
@forms
@layers
def test_weights_that_are_computed(theirs, torch_class, change):
    pair = _pair(theirs, torch_class)
    for module in pair:
        change(module)
    assert_equal_in_float64(_results(pair[1]), _results(pair[0]))
    flat = zip(*(module._flat_weights for module in pair), strict=True)
    assert all(torch.equal(a, b) for a, b in flat)


@forms
@layers
def test_copies(theirs, torch_class):
    module, mine = _pair(theirs, torch_class, num_layers=2)
    want = _results(module)
    replica = mine._replicate_for_data_parallel()
    copies = {name: p.clone() for name, p in mine.named_parameters()}  # no leaves, as there
    for name, weight in copies.items():
        setattr(replica, name, weight)
    assert torch.equal(replica(_x())[0], mine(_x())[0])
    assert all(a is b for a, b in zip(replica._flat_weights, copies.values(), strict=True))
    assert all(a is b for a, b in zip(mine._flat_weights, mine.parameters(), strict=True))
    for other in (copy.deepcopy(mine), copy.copy(mine), pickle.loads(pickle.dumps(mine))):
        assert type(other) is type(mine)
        assert_equal_in_float64(_results(other), want)
        assert all(a is b for a, b in zip(other._flat_weights, other.parameters(), strict=True))


@forms
@layers
def test_functional_call(theirs, torch_class):
    module, mine = _pair(theirs, torch_class)
    doubled = {name: 2 * p.detach() for name, p in module.named_parameters()}
    want, got = (torch.func.functional_call(m, doubled, (_x(),))[0] for m in (module, mine))
    assert_equal_in_float64({"output": got}, {"output": want})
    assert torch.equal(mine(_x())[0], mine(_x())[0])
    assert not torch.equal(mine(_x())[0], got)


@layers
def test_a_plain_layer_compiles_to_one_graph(theirs):
    _, mine = _pair(theirs, False)
    compiled = torch.compile(mine, backend="aot_eager", fullgraph=True)
    assert_equal_in_float64(_results(mine, compiled), _results(mine))


@layers
def test_a_torch_class_compiles_with_a_break_or_with_allow_rnn(theirs):
    """And with the same numbers either way."""
    _, mine = _pair(theirs, True)
    want = _results(mine)
    assert_equal_in_float64(_results(mine, torch.compile(mine, backend="aot_eager")), want)
    torch.compiler.reset()
    compiled = torch.compile(mine, backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match="allow_rnn"):
        compiled(_x())
    with torch._dynamo.config.patch(allow_rnn=True):
        assert_equal_in_float64(_results(mine, compiled), want)


@pytest.mark.parametrize("theirs", CELLS, ids=lambda kind: kind.__name__)
def test_cells(theirs):
    """A cell is torch.nn's too when it is converted, since Dynamo does not mind it."""
    for bias in (True, False):
        module = theirs(INPUT, H, bias)
        mine = fused_rnn.convert(copy.deepcopy(module))
        made = getattr(fused_rnn, theirs.__name__)(INPUT, H, bias)
        for other in (mine, made):
            assert isinstance(other, nn.RNNCellBase)
            assert isinstance(other, getattr(fused_rnn, theirs.__name__))
            assert list(other.state_dict()) == list(module.state_dict())
            assert (other.bias_ih is None) is (module.bias_ih is None)
        assert isinstance(mine, theirs)
        compiled = torch.compile(mine, backend="aot_eager", fullgraph=True)
        x = _x().float()[0]
        for got, want in zip(_flat(compiled(x)), _flat(module(x)), strict=True):
            torch.testing.assert_close(got, want)


def _owner(question):
    """A model that holds a layer, and a class that asks a question about it."""

    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.cell = nn.LSTM(INPUT, H), nn.LSTMCell(INPUT, H)

    Owner.method = types.FunctionType(question.__code__, globals())
    return Owner()


@pytest.mark.parametrize(
    ("question", "is_torchs"),
    [
        (lambda self: isinstance(self.rnn, nn.LSTM), True),
        (lambda self: [isinstance(m, (nn.GRU, nn.LSTM)) for m in self.modules()], True),
        (lambda self: isinstance(self.rnn, nn.GRU), False),
        (lambda self: isinstance(self.rnn, nn.RNNBase), False),
        (lambda self: self.rnn.mode == "LSTM", False),
    ],
    ids=["its class", "one of several", "another class", "the base", "its mode"],
)
def test_a_holder_that_asks_for_torchs_class_gets_it(question, is_torchs):
    model, report = _owner(question), []
    fused_rnn.convert(model, report=report)
    assert isinstance(model.rnn, nn.LSTM) is is_torchs
    assert ("asks for torch.nn.modules.rnn.LSTM" in report[0].reason) is is_torchs
    fused_rnn.convert(model, torch_classes=False)  # only the class changes
    assert type(model.rnn) is fused_rnn.LSTM
    fused_rnn.revert(model)
    assert type(model.rnn) is nn.LSTM
    assert fused_rnn.convert(_owner(question), torch_classes=False).rnn.mode == "LSTM"


class _Initialises(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(INPUT, H)

    def _init_weights(self, module):
        return isinstance(module, nn.LSTM)


def test_a_question_while_weights_are_set_up_does_not_count():
    """It has been answered, and a graph break in every call would be its price."""
    assert type(fused_rnn.convert(_Initialises()).rnn) is fused_rnn.LSTM
