"""Code that knows torch.nn's layers, run on a converted model: right, or an error that says how.

The classes here have the form of the packages' code; tests/integrations runs the packages.
"""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import fused_rnn
from tests.support.tolerances import assert_equal_in_float64

T, B, INPUT, H = 5, 3, 4, 6
LAYERS = [nn.RNN, nn.LSTM, nn.GRU]
CELLS = [nn.RNNCell, nn.LSTMCell, nn.GRUCell]
layers = pytest.mark.parametrize("theirs", LAYERS, ids=lambda kind: kind.__name__)
torch_class = pytest.mark.parametrize("torch_class", [False, True], ids=["plain", "torch_class"])


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.rnn, self.head = layer, nn.Linear(H, 2, dtype=torch.float64)

    def forward(self, x, hx):
        output, hn = self.rnn(x, hx)
        return self.head(output), hn


def _states(kind, *shape):
    first = torch.randn(*shape, H, dtype=torch.float64)
    return (first, torch.randn_like(first)) if "LSTM" in kind.__name__ else first


def _gradients(model, *arguments):
    output, hn = model(*arguments)
    finals = [hn] if isinstance(hn, torch.Tensor) else list(hn)
    loss = output.square().sum() + sum(final.sin().sum() for final in finals)
    inputs = {"x": arguments[0]} | dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(inputs.values()))
    results = {"output": output} | {f"final.{i}": final for i, final in enumerate(finals)}
    return results | {f"d{n}": g for n, g in zip(inputs, found, strict=True)}


@torch_class
@layers
def test_fx_records_a_layer_as_one_node(theirs, torch_class):
    original = Model(theirs(INPUT, H, 2, dtype=torch.float64))
    model = fused_rnn.convert(copy.deepcopy(original), torch_classes=torch_class)
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["rnn", "head"]
    assert traced.rnn is model.rnn
    x = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
    hx = _states(theirs, 2, B)
    want = _gradients(original, x, hx)
    assert_equal_in_float64(_gradients(traced, x, hx), want)
    again = pickle.loads(pickle.dumps(traced))  # recorded from its own code
    assert_equal_in_float64(_gradients(again, x, hx), want)


class _OneStep(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x, hx):
        return self.cell(x, hx)


@pytest.mark.parametrize("cell", ["GRUCell", "PeepholeLSTMCell"])
def test_fx_records_a_cell_as_one_node(cell):
    model = _OneStep(getattr(fused_rnn, cell)(INPUT, H, dtype=torch.float64))
    traced = torch.fx.symbolic_trace(model)
    assert [n.op for n in traced.graph.nodes].count("call_module") == 1
    x, hx = torch.randn(B, INPUT, dtype=torch.float64), _states(type(model.cell), B)
    got, want = (m(x, hx) if cell == "GRUCell" else m(x, hx)[0] for m in (traced, model))
    assert torch.equal(got, want)


def test_fx_keeps_our_own_arguments():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = fused_rnn.CIFGLSTM(INPUT, H)

        def forward(self, x, lengths):
            return self.rnn(x, lengths=lengths, return_states=True)[0][1]

    model = Masked()
    traced = torch.fx.symbolic_trace(model)
    x, lengths = torch.randn(T, B, INPUT), torch.tensor([5, 0, 2])
    assert torch.equal(traced(x, lengths), model(x, lengths))


def test_what_fx_cannot_record_is_said():
    layer = fused_rnn.LSTM(INPUT, H)
    with pytest.raises(
        NotImplementedError, match="LSTM is one node .* trace a model that holds it"
    ):
        torch.fx.symbolic_trace(layer)
    layer.register_forward_hook(lambda *_: None)
    with pytest.raises(NotImplementedError, match="LSTM has forward hooks"):
        torch.fx.symbolic_trace(Model(layer))


@torch_class
@pytest.mark.parametrize("theirs", LAYERS + CELLS, ids=lambda kind: kind.__name__)
def test_jit_script_names_the_way(theirs, torch_class):
    model = fused_rnn.convert(nn.ModuleList([theirs(INPUT, H)]), torch_classes=torch_class)
    for scripted in (model, model[0]):
        with pytest.raises(NotImplementedError, match=r"cannot take .*fused_rnn.revert.*jit.trace"):
            torch.jit.script(scripted)
    torch.jit.script(fused_rnn.revert(model))
    with pytest.raises(NotImplementedError, match="cannot take CIFGLSTM, .* use torch.jit.trace"):
        torch.jit.script(fused_rnn.CIFGLSTM(INPUT, H))


@torch_class
@layers
def test_the_old_onnx_exporter_gets_torchs_operator(theirs, torch_class):
    """Where torch.nn has the layer: what it writes is what it writes of torch.nn's."""
    original = theirs(INPUT, H, 2, bidirectional=True).eval()
    model = fused_rnn.convert(copy.deepcopy(original), torch_classes=torch_class)
    written = []
    for module in (original, model):
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, (torch.randn(T, B, INPUT),), file, dynamo=False)
        written.append(file.getvalue())
    runtime = pytest.importorskip("onnxruntime")
    x = torch.randn(T, B, INPUT)
    for data in written:
        session = runtime.InferenceSession(data)
        got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(got), original(x)[0])


@pytest.mark.parametrize(
    "module",
    [
        fused_rnn.PeepholeLSTM(INPUT, H),
        fused_rnn.GRU(INPUT, H, reset_after=False),
        fused_rnn.LSTM(INPUT, H, backend="sequence"),
        fused_rnn.LSTMCell(INPUT, H),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_the_old_onnx_exporter_cannot_write_is_said(module):
    x = torch.randn(B, INPUT)
    with pytest.raises(
        NotImplementedError, match=r"\(dynamo=False\) cannot take a layer .* dynamo=True"
    ):
        torch.onnx.export(module, (x,), io.BytesIO(), dynamo=False)


@pytest.mark.filterwarnings("ignore:.*deprecated")
@torch_class
@pytest.mark.parametrize("theirs", [nn.LSTM, nn.GRU, *CELLS], ids=lambda kind: kind.__name__)
def test_a_quantiser_that_passes_over_ours_is_warned_of(theirs, torch_class):
    """It looks for exact classes and says nothing itself."""
    quantize = torch.ao.quantization.quantize_dynamic
    model = fused_rnn.convert(nn.Sequential(theirs(INPUT, H)), torch_classes=torch_class).eval()
    with pytest.warns(UserWarning, match=f"does not quantise fused_rnn.{theirs.__name__}.*revert"):
        left = quantize(model, {theirs})
    assert type(left[0]) is type(model[0])
    assert not hasattr(model[0], "qconfig")
    quantised = quantize(fused_rnn.revert(model), {theirs})
    assert "quantized" in type(quantised[0]).__module__


class LanguageModel(nn.Module):
    """Asks which layer it holds, to count its states, as the language model of ESPnet does."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.rnn = kind, kind(INPUT, H, 2, batch_first=True, dtype=torch.float64)

    def begin(self):
        zeros = torch.zeros(2, H, dtype=torch.float64)
        return (zeros, zeros.clone()) if isinstance(self.rnn, nn.LSTM) else zeros

    def score(self, x, states):
        if isinstance(self.rnn, nn.LSTM):
            hx = tuple(torch.stack(of_one, 1) for of_one in zip(*states, strict=True))
        else:
            hx = torch.stack(states, 1)
        output, hn = self.rnn(x, hx)
        if isinstance(self.rnn, nn.LSTM):
            hn = list(zip(*(state.unbind(1) for state in hn), strict=True))
        else:
            hn = hn.unbind(1)
        return output, hn


@layers
def test_a_language_model_that_asks_for_torchs_class_scores(theirs):
    original = LanguageModel(theirs)
    model = fused_rnn.convert(copy.deepcopy(original))
    x = torch.randn(2, B, 1, INPUT, dtype=torch.float64)
    outputs = []
    for scored in (original, model):
        first, states = scored.score(x[0], [scored.begin()] * B)
        outputs.append({"0": first, "1": scored.score(x[1], list(states))[0]})
    assert_equal_in_float64(outputs[1], outputs[0])


class Policy(nn.Module):
    """Packs where it holds torch.nn's layer and else passes a mask, as torchrl's modules do."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, lengths):
        if not isinstance(self.layer, (nn.LSTM, nn.GRU)):
            return self.layer(x, mask=torch.arange(x.shape[1]) < lengths[:, None])
        pack = nn.utils.rnn.pack_padded_sequence
        packed = pack(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0]


@pytest.mark.parametrize("theirs", [nn.LSTM, nn.GRU], ids=["LSTM", "GRU"])
def test_a_policy_that_packs_for_torchs_class(theirs):
    original = Policy(theirs(INPUT, H, batch_first=True, dtype=torch.float64))
    model = fused_rnn.convert(copy.deepcopy(original))
    x = torch.randn(B, T, INPUT, dtype=torch.float64)
    lengths = torch.tensor([2, 5, 3])
    got, want = ({"output": m(x, lengths)} for m in (model, original))
    assert_equal_in_float64(got, want)


def _orthogonal(module):
    """What kraken and others do for each layer."""
    if isinstance(module, nn.RNNBase):
        for name, parameter in module.named_parameters():
            (nn.init.orthogonal_ if parameter.dim() == 2 else nn.init.ones_)(parameter)
            assert name in module._flat_weights_names


def _forget(module):
    """The bias of the forget gate, by the names that the layer gives."""
    if getattr(module, "mode", None) == "LSTM":
        for names in module._all_weights:
            for name in names:
                if name.startswith("bias_ih"):
                    getattr(module, name).data[H : 2 * H].fill_(1.0)


@torch_class
@layers
def test_initialisers(theirs, torch_class):
    model = nn.Sequential(theirs(INPUT, H, 2, bidirectional=True))
    fused_rnn.convert(model, torch_classes=torch_class)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.apply(_orthogonal)
    for name, parameter in model[0].named_parameters():
        if name.startswith("weight_hh"):
            square = parameter.mT @ parameter
            torch.testing.assert_close(square, torch.eye(H))
        assert parameter.any()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    model.apply(_forget)
    moved = [name for name, parameter in model[0].named_parameters() if parameter.any()]
    assert len(moved) == (4 if theirs is nn.LSTM else 0)
    assert (
        not moved or model[0].bias_ih_l1_reverse.tolist() == [0.0] * H + [1.0] * H + [0.0] * 2 * H
    )


class _Output(fused_rnn.LSTM):
    """One tensor out, which is what opacus differentiates per sample."""

    def forward(self, x):
        return super().forward(x)[0]


class _Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(INPUT, H, batch_first=True)
        self.head = nn.Linear(H, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[:, -1])


def test_gradients_per_sample_by_vmap():
    """What opacus' default mode does to a layer with one tensor out, without opacus."""
    model = fused_rnn.convert(_Classifier(), rules={nn.LSTM: _Output})
    x, weights = torch.randn(B, T, INPUT), dict(model.named_parameters())

    def loss(weights, row):
        return torch.func.functional_call(model, weights, (row[None],)).square().sum()

    got = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, x)
    for i in range(B):
        want = torch.autograd.grad(model(x[i : i + 1]).square().sum(), list(weights.values()))
        for name, grad in zip(weights, want, strict=True):
            torch.testing.assert_close(got[name][i], grad)
