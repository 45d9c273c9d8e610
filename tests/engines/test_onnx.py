"""torch.onnx.export: which operators the layers become, and what onnxruntime computes with them."""

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.utils import _pytree as pytree

import fused_rnn
import tests.support.cells as ours
from fused_rnn import Recurrent
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

# What the exporter says of itself and of the names of axes.
pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore:# The axis name"
)

OPERATORS = {
    "rnn_tanh": "RNN",
    "rnn_relu": "RNN",
    "lstm": "LSTM",
    "peephole_lstm": "LSTM",
    "cifg_lstm": "LSTM",
    "gru": "GRU",
    "gru_reset_before": "GRU",
}
T, B = 7, 4
SIZES = ((T, B), (5, 2), (1, 1), (13, 6))


def _export(model, example, dynamic):
    """The ONNX model, and how often it has each operator that walks over time."""
    program = torch.onnx.export(
        model.eval(), (), kwargs=example, dynamo=True, dynamic_shapes=dynamic, verbose=False
    )
    found = [node.op_type for node in program.model.graph]
    walks = {op: found.count(op) for op in ("RNN", "LSTM", "GRU", "Scan") if op in found}
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return program, session, walks


def _run(session, example):
    """What onnxruntime makes of an example, its tensors in the order of the graph's inputs."""
    tensors = [t for t in pytree.tree_leaves(example) if isinstance(t, torch.Tensor)]
    names = [entry.name for entry in session.get_inputs()]
    feeds = {name: t.numpy() for name, t in zip(names, tensors, strict=True)}
    return [torch.from_numpy(value) for value in session.run(None, feeds)]


def _compare(session, model, example):
    """As near to the model in float64 as eager PyTorch is, in the example's own dtype."""

    def named(results):
        return {str(i): t.detach() for i, t in enumerate(pytree.tree_leaves(results))}

    def wide(tensor):
        floating = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
        return tensor.double() if floating else tensor

    got, dtype = named(_run(session, example)), next(model.parameters()).dtype
    with fused_rnn.use_backend("reference"):
        eager = named(model(**example))
        exact = named(model.double()(**pytree.tree_map(wide, example)))
    model.to(dtype)
    if dtype == torch.float64:
        assert_equal_in_float64(got, exact)
    else:
        assert_as_good_as_eager(got, eager, exact)


def _hx(module, batch, dtype):
    rows = module.num_layers * (2 if module.bidirectional else 1)
    hx = [
        torch.randn(rows, batch, module._width(i), dtype=dtype)
        for i in range(len(module.cell.states))
    ]
    return hx[0] if len(hx) == 1 else tuple(hx)


def _example(module, steps, batch, asked, dtype):
    example = {"input": torch.randn(steps, batch, module.input_size, dtype=dtype)}
    if "hx" in asked:
        example["hx"] = _hx(module, batch, dtype)
    if "lengths" in asked:  # of no steps too, and beyond the last
        example["lengths"] = torch.randint(-1, steps + 2, (batch,))
        example["lengths"][0] = 0
    if "reset" in asked:
        example["reset"] = torch.rand(steps, batch) < 0.3
    return example


def _check(module, asked=(), dtype=torch.float32):
    """Export with T and B left open, compare at several sizes; returns the counts."""
    module.to(dtype)
    example, time, batch = _example(module, T, B, asked, dtype), Dim("T"), Dim("B")
    both = {0: time, 1: batch}
    dynamic = {"input": both, "lengths": {0: batch}, "reset": both}
    if "hx" in asked:
        dynamic["hx"] = pytree.tree_map(lambda _: {1: batch}, example["hx"])
    _, session, walks = _export(module, example, {name: dynamic[name] for name in example})
    for sizes in SIZES:
        _compare(session, module, _example(module, *sizes, asked, dtype))
    return walks


@pytest.mark.parametrize("name", OPERATORS)
def test_cells_that_onnx_has(name):
    """Two layers, both directions, rows of their own lengths, given states."""
    module = Recurrent(name, 3, 5, 2, bidirectional=True)
    assert _check(module, ("hx", "lengths")) == {OPERATORS[name]: 2}


@pytest.mark.parametrize("asked", [(), ("lengths",)], ids=["plain", "lengths"])
def test_one_direction_without_states_and_bias(asked):
    class Sum(nn.ModuleDict):
        input_size = 3

        def forward(self, input, lengths=None):
            return [pytree.tree_leaves(layer(input, lengths=lengths)) for layer in self.values()]

    layers = {name: Recurrent(name, 3, 5, bias=False) for name in OPERATORS}
    assert _check(Sum(layers), asked) == {"RNN": 2, "LSTM": 3, "GRU": 2}


def test_some_of_the_peepholes():
    class Stack(nn.ModuleList):
        input_size = 4

        def forward(self, input):
            outputs = []
            for layer in self:
                input, states = layer(input)
                outputs += [input, states]
            return outputs

    layers = [fused_rnn.PeepholeLSTM(4, 4, peepholes=p) for p in ours.PEEPHOLES]
    assert _check(Stack(layers)) == {"LSTM": len(ours.PEEPHOLES)}


def test_attributes():
    """The attributes of the operators, besides the weights."""
    for name, attribute, value in (
        ("cifg_lstm", "input_forget", 1),
        ("gru", "linear_before_reset", 1),
        ("gru_reset_before", "linear_before_reset", 0),
    ):
        program, *_ = _export(Recurrent(name, 3, 5), {"input": torch.randn(T, B, 3)}, None)
        (node,) = (n for n in program.model.graph if n.op_type == OPERATORS[name])
        assert node.attributes[attribute].value == value


@pytest.mark.parametrize("name", ["peephole_lstm", "gru"])
def test_half_precision(name):
    module = Recurrent(name, 3, 5, bidirectional=True)
    assert _check(module, ("hx", "lengths"), torch.float16) == {OPERATORS[name]: 1}


USER = [cell for cell in ours.USER if not cell.streams and cell is not ours.CLOCKWORK_RNN]
USER += [ours.LEAKING, ours.LEAKING_ALONE]


@pytest.mark.parametrize("cell", USER, ids=ours.name_of)
def test_cells_that_onnx_does_not_have(cell):
    module = Recurrent(cell, 4, 4, bidirectional=not cell.raw_gates)
    assert _check(module, ("hx", "lengths")) == {"Scan": 1 + (not cell.raw_gates)}


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_float64_and_resets(name):
    """onnxruntime has no operator of ONNX's in float64, and ONNX none that restarts."""
    module = Recurrent(name, 3, 5, bidirectional=True)
    assert _check(module, ("hx", "lengths", "reset"), torch.float64) == {"Scan": 2}


@pytest.mark.parametrize(
    ("asked", "scans"),
    [(("hx",), 2), (("lengths", "reset"), 4)],  # two walks, and two clocks of rows
    ids=["plain", "rows"],
)
def test_a_cell_that_reads_the_time(asked, scans):
    module = Recurrent(ours.CLOCKWORK_RNN, 3, 5, bidirectional=True)
    with torch.no_grad():
        for name in ("period_l0", "period_l0_reverse"):
            module.get_parameter(name).copy_(torch.tensor([1.0, 2.0, 2.0, 3.0, 5.0]))
    assert _check(module, asked) == {"Scan": scans}


def test_projection():
    module = fused_rnn.LSTM(3, 5, proj_size=2, bidirectional=True)
    assert _check(module, ("hx", "lengths")) == {"Scan": 2}


def test_every_state_without_a_batch():
    class All(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = fused_rnn.LSTM(3, 5)

        def forward(self, input):
            return self.lstm(input, return_states=True)

    model = All()
    _, session, walks = _export(model, {"input": torch.randn(T, 3)}, {"input": {0: Dim("T")}})
    assert walks == {"Scan": 1}
    for steps in (T, 3):
        _compare(session, model, {"input": torch.randn(steps, 3)})


def test_one_step():
    class Steps(nn.ModuleList):
        def forward(self, input, hx):
            outputs = []
            for cell in self:
                given = (hx, hx.sin()) if len(cell.cell.states) == 2 else hx
                outputs += [cell(input, given), cell(input)]
            return outputs

    steps = Steps(fused_rnn.RecurrentCell(name, 3, 5) for name in OPERATORS)
    batch = Dim("B")
    example = {"input": torch.randn(B, 3), "hx": torch.randn(B, 5)}
    _, session, walks = _export(steps, example, {"input": {0: batch}, "hx": {0: batch}})
    assert walks == {"RNN": 4, "LSTM": 6, "GRU": 4}
    for rows in (B, 1):
        _compare(session, steps, {"input": torch.randn(rows, 3), "hx": torch.randn(rows, 5)})


def test_scan_with_streams():
    class Zoneout(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(20, 5))

        def forward(self, x, keep_h, keep_c):
            h0 = x.new_zeros(x.shape[1], 5)
            return fused_rnn.scan(
                ours.ZONEOUT_LSTM,
                x,
                self.weight,
                [h0, h0],
                streams=[keep_h, keep_c],
                reverse=True,
            )

    def example(steps, batch):
        keeps = torch.rand(2, steps, batch, 5)
        return {"x": torch.randn(steps, batch, 20), "keep_h": keeps[0], "keep_c": keeps[1]}

    model, both = Zoneout(), {0: Dim("T"), 1: Dim("B")}
    _, session, walks = _export(model, example(T, B), dict.fromkeys(example(T, B), both))
    assert walks == {"Scan": 1}
    for sizes in SIZES:
        _compare(session, model, example(*sizes))


@pytest.mark.parametrize("backend", ["aten", "triton"])
def test_a_trained_model_whatever_its_backend(backend):
    """Nothing of a backend or of ``recompute`` is left in the graph."""

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, 4)
            self.rnn = fused_rnn.LSTM(
                4, 5, 2, batch_first=True, dropout=0.5, recompute=True, backend=backend
            )
            self.head = nn.Linear(5, 3)

        def forward(self, tokens):
            return self.head(self.rnn(self.embedding(tokens))[0])

    model, sizes = Tagger(), {"tokens": {0: Dim("B"), 1: Dim("T")}}
    _, session, walks = _export(model, {"tokens": torch.randint(0, 11, (B, T))}, sizes)
    assert walks == {"LSTM": 2}
    model.rnn.backend = None
    for batch, steps in ((B, T), (1, 3)):
        _compare(session, model, {"tokens": torch.randint(0, 11, (batch, steps))})
