"""Weights of other frameworks: loops from their documentation, and their own code if installed."""

import warnings

import numpy as np
import pytest
import torch

from fused_rnn import GRU, LSTM, PeepholeLSTM, importers

T, B, IN, H = 5, 3, 4, 6
FAR = 1e-12  # two computations in float64
RANDOM = np.random.default_rng(0)


def draw(*shape):
    return RANDOM.standard_normal(shape)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def assert_same(module, x, want):
    """The module's output, as (T, B, ...), is ``want``."""
    assert next(module.parameters()).dtype == torch.float64
    output = module(torch.from_numpy(x))[0].detach().numpy()
    assert output.shape == want.shape
    assert np.abs(output - want).max() < FAR


# ---- Keras: (B, T, I), matrices on the right


def keras_lstm(x, kernel, recurrent, bias):
    h = c = np.zeros((B, H))
    rows = []
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        rows.append(h)
    return np.stack(rows, 1)


def keras_gru(x, kernel, recurrent, input_bias, recurrent_bias, reset_after):
    h, rows = np.zeros((B, H)), []
    for t in range(x.shape[1]):
        x_z, x_r, x_h = np.split(x[:, t] @ kernel + input_bias, 3, axis=1)
        w_z, w_r, w_h = np.split(recurrent, 3, axis=1)
        b_z, b_r, b_h = np.split(recurrent_bias, 3)
        z = sigmoid(x_z + h @ w_z + b_z)
        r = sigmoid(x_r + h @ w_r + b_r)
        inner = r * (h @ w_h + b_h) if reset_after else (r * h) @ w_h
        h = z * h + (1 - z) * np.tanh(x_h + inner)
        rows.append(h)
    return np.stack(rows, 1)


def keras_simple(x, kernel, recurrent, bias, function):
    h, rows = np.zeros((B, H)), []
    for t in range(x.shape[1]):
        h = function(x[:, t] @ kernel + bias + h @ recurrent)
        rows.append(h)
    return np.stack(rows, 1)


@pytest.mark.parametrize("bias", [True, False])
def test_keras_lstm(bias):
    x, weights = draw(B, T, IN), [draw(IN, 4 * H), draw(H, 4 * H), draw(4 * H)]
    given = weights if bias else weights[:2]
    module = importers.from_keras("LSTM", given)
    assert type(module) is LSTM
    assert module.bias == bias
    assert_same(module, x, keras_lstm(x, *weights[:2], weights[2] if bias else 0))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reset_after", [True, False])
def test_keras_gru(reset_after, bias):
    x, weights = draw(B, T, IN), [draw(IN, 3 * H), draw(H, 3 * H)]
    zeros = np.zeros(3 * H)
    own = draw(2, 3 * H) if reset_after else draw(3 * H)
    both = (*own,) if reset_after else (own, zeros)
    module = importers.from_keras(
        "GRU", [*weights, own][: 3 if bias else 2], reset_after=reset_after
    )
    want = keras_gru(x, *weights, *(both if bias else (zeros, zeros)), reset_after)
    assert type(module) is GRU
    assert module.reset_after == reset_after
    assert_same(module, x, want)


@pytest.mark.parametrize(
    ("activation", "function"), [("tanh", np.tanh), ("relu", lambda x: np.maximum(x, 0))]
)
def test_keras_simple_rnn(activation, function):
    x, weights = draw(B, T, IN), [draw(IN, H), draw(H, H) / 4, draw(H)]
    module = importers.from_keras("SimpleRNN", weights, activation=activation)
    assert_same(module, x, keras_simple(x, *weights, function))


def test_keras_bidirectional():
    x = draw(B, T, IN)
    weights = [draw(*shape) for shape in [(IN, 4 * H), (H, 4 * H), (4 * H,)] * 2]
    forward = keras_lstm(x, *weights[:3])
    backward = keras_lstm(x[:, ::-1], *weights[3:])[:, ::-1]
    module = importers.from_keras("LSTM", weights, bidirectional=True)
    assert_same(module, x, np.concatenate([forward, backward], 2))
    module = importers.from_keras("LSTM", weights, bidirectional=True, batch_first=False)
    want = np.concatenate([forward, backward], 2).swapaxes(0, 1)
    assert_same(module, x.swapaxes(0, 1).copy(), want)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {}),
        ("GRU", {"reset_after": True}),
        ("GRU", {"reset_after": False}),
        ("SimpleRNN", {"activation": "relu"}),
    ],
    ids=str,
)
def test_keras_itself(kind, options, bidirectional, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    layer = getattr(keras.layers, kind)(H, return_sequences=True, **options)
    layer = keras.layers.Bidirectional(layer) if bidirectional else layer
    x = draw(B, T, IN).astype(np.float32)  # parts of Keras compute in float32 in any case
    layer(x)
    layer.set_weights([draw(*w.shape) / 3 for w in layer.get_weights()])
    weights = layer.get_weights()
    module = importers.from_keras(kind, weights, bidirectional=bidirectional, **options)
    want = torch.from_numpy(keras.ops.convert_to_numpy(layer(x)))
    torch.testing.assert_close(module(torch.from_numpy(x))[0], want, rtol=0, atol=2e-6)


# ---- Haste: (T, B, I); i g f o


def test_haste_lstm():
    x = draw(T, B, IN)
    weights = {"kernel": draw(IN, 4 * H), "recurrent_kernel": draw(H, 4 * H), "bias": draw(4 * H)}
    h = c = np.zeros((B, H))
    rows = []
    for row in x:
        v = row @ weights["kernel"] + h @ weights["recurrent_kernel"] + weights["bias"]
        i, g, f, o = np.split(v, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        rows.append(h)
    tensors = {name: torch.nn.Parameter(torch.from_numpy(w)) for name, w in weights.items()}
    assert_same(importers.from_haste("LSTM", tensors), x, np.stack(rows))


def test_haste_gru():
    x, h, rows = draw(T, B, IN), np.zeros((B, H)), []
    shapes = {"kernel": (IN, 3 * H), "recurrent_kernel": (H, 3 * H), "bias": (3 * H,)}
    shapes["recurrent_bias"] = (3 * H,)
    w = {name: draw(*shape) for name, shape in shapes.items()}
    for row in x:
        w_z, w_r, w_g = np.split(row @ w["kernel"] + w["bias"], 3, axis=1)
        r_z, r_r, r_g = np.split(h @ w["recurrent_kernel"] + w["recurrent_bias"], 3, axis=1)
        z, r = sigmoid(w_z + r_z), sigmoid(w_r + r_r)
        h = z * h + (1 - z) * np.tanh(w_g + r * r_g)
        rows.append(h)
    assert_same(importers.from_haste("GRU", w), x, np.stack(rows))


# ---- madmom: (T, I); arrays per gate


@pytest.mark.parametrize("peepholes", ["ifo", "io", ""])
def test_madmom_lstm(peepholes):
    gates = {
        gate: [draw(IN, H), draw(H), draw(H, H), draw(H) if gate in peepholes else None]
        for gate in "ifo"
    }
    gates["g"] = [draw(IN, H), draw(H), draw(H, H)]

    def value(gate, x, h, c):
        weights, bias, recurrent, *peephole = gates[gate]
        found = x @ weights + bias + h @ recurrent
        return found if not peephole or peephole[0] is None else found + c * peephole[0]

    x, h, c, rows = draw(T, IN), np.zeros(H), np.zeros(H), []
    for row in x:
        i, f = (sigmoid(value(gate, row, h, c)) for gate in "if")
        c = f * c + i * np.tanh(value("g", row, h, c))
        h = sigmoid(value("o", row, h, c)) * np.tanh(c)
        rows.append(h)
    module = importers.from_madmom(*(gates[gate] for gate in "ifgo"))
    assert type(module) is (PeepholeLSTM if peepholes else LSTM)
    assert_same(module, x, np.stack(rows))


# ---- ONNX, by its reference and by onnxruntime

ONNX = [
    ("LSTM", 4, {}, {}),
    ("LSTM", 4, {}, {"P": 3}),
    ("GRU", 3, {"linear_before_reset": 0}, {}),
    ("GRU", 3, {"linear_before_reset": 1}, {}),
    ("RNN", 1, {"activation": "Tanh"}, {}),
    ("RNN", 1, {"activation": "Relu"}, {}),
    ("LSTM", 4, {"input_forget": 1}, {}),
]


def onnx_model(kind, options, directions, inputs, number):
    """A model of one operator, with weights as its inputs."""
    import onnx
    from onnx import helper

    attributes = {key: value for key, value in options.items() if key != "activation"}
    if "activation" in options:
        attributes["activations"] = [options["activation"]] * directions
    names = ["X", "W", "R", "B", "", "", "", "P"] if "P" in inputs else ["X", "W", "R", "B"]
    node = helper.make_node(
        kind,
        names,
        ["Y"],
        hidden_size=H,
        direction="bidirectional" if directions == 2 else "forward",
        **attributes,
    )
    described = [
        helper.make_tensor_value_info(name, number, inputs[name].shape) for name in names if name
    ]
    out = helper.make_tensor_value_info("Y", number, (T, directions, B, H))
    graph = helper.make_graph([node], "one", described, [out])
    opset = [helper.make_opsetid("", 22)]
    return helper.make_model(graph, opset_imports=opset, ir_version=10), onnx


def onnx_inputs(gates, directions, more, dtype):
    shapes = {"W": (gates * H, IN), "R": (gates * H, H), "B": (2 * gates * H,)}
    shapes |= {name: (count * H,) for name, count in more.items()}
    inputs = {name: draw(directions, *shape) / 2 for name, shape in shapes.items()}
    inputs["X"] = draw(T, B, IN)
    return {name: array.astype(dtype) for name, array in inputs.items()}


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(("kind", "gates", "options", "more"), ONNX, ids=str)
def test_onnx_runtime(kind, gates, options, more, directions):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    inputs = onnx_inputs(gates, directions, more, np.float32)
    model, onnx = onnx_model(kind, options, directions, inputs, 1)
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (want,) = session.run(None, inputs)
    x = torch.from_numpy(inputs.pop("X"))
    output = importers.from_onnx(kind, **inputs, **options)(x)[0]
    want = torch.from_numpy(want).transpose(1, 2).flatten(2)
    torch.testing.assert_close(output, want, rtol=0, atol=2e-6)


# Its operators have one direction, no second activation, and no input_forget.
@pytest.mark.parametrize(
    ("kind", "gates", "options", "more"), [case for case in ONNX if case[0] != "RNN"][:4], ids=str
)
def test_onnx_reference(kind, gates, options, more):
    reference = pytest.importorskip("onnx.reference")
    inputs = onnx_inputs(gates, 1, more, np.float64)
    model, onnx = onnx_model(kind, options, 1, inputs, 11)
    (want,) = reference.ReferenceEvaluator(model).run(None, inputs)
    x = inputs.pop("X")
    assert_same(importers.from_onnx(kind, **inputs, **options), x, want[:, 0])


def test_onnx_without_biases():
    inputs = onnx_inputs(4, 1, {}, np.float64)
    x, zero = inputs.pop("X"), np.zeros_like(inputs["B"])
    want = importers.from_onnx("LSTM", inputs["W"], inputs["R"], zero)
    got = importers.from_onnx("LSTM", inputs["W"], inputs["R"])
    assert not got.bias
    assert_same(got, x, want(torch.from_numpy(x))[0].detach().numpy())


# ---- what all have in common


def test_arrays_are_copied_and_lists_will_do():
    weights = [draw(IN, 4 * H), draw(H, 4 * H), draw(4 * H)]
    for array in weights:
        array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = importers.from_keras("LSTM", weights, backend="sequence")
    assert module.backend == "sequence"
    before = weights[0].copy()
    with torch.no_grad():
        module.weight_ih_l0.zero_()
    assert np.array_equal(weights[0], before)
    listed = importers.from_keras("LSTM", [array.tolist() for array in weights])
    assert listed.weight_hh_l0.dtype == torch.float32
    torch.testing.assert_close(listed.weight_hh_l0, module.weight_hh_l0.float())
    module(torch.randn(2, 3, IN).double())[0].sum().backward()
    assert module.weight_ih_l0.grad is not None


LSTM_WEIGHTS = (np.ones((IN, 4 * H)), np.ones((H, 4 * H)), np.ones(4 * H))
GRU_WEIGHTS = (np.ones((IN, 3 * H)), np.ones((H, 3 * H)), np.ones((2, 3 * H)))
GATE = (np.ones((IN, H)), np.ones(H), np.ones((H, H)))
K, S = importers.from_keras, importers.from_haste
M, X = importers.from_madmom, importers.from_onnx


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: K("Dense", LSTM_WEIGHTS), ValueError, "kind: expected one of LSTM, GRU, Simple"),
        (lambda: K("LSTM", LSTM_WEIGHTS[0]), TypeError, "weights: expected a list as get_weights"),
        (lambda: K("LSTM", LSTM_WEIGHTS[:1]), ValueError, "weights: expected 2 or 3 arrays, got 1"),
        (lambda: K("LSTM", GRU_WEIGHTS), ValueError, r"weights\[1\] \(recurrent_kernel\): .*24\)"),
        (
            lambda: K("LSTM", (np.ones((IN, 5)), *LSTM_WEIGHTS[1:])),
            ValueError,
            r"weights\[0\] \(kernel\): expected shape \(4, 24\), got \(4, 5\)",
        ),
        (
            lambda: K("GRU", GRU_WEIGHTS, reset_after=False),
            ValueError,
            r"weights\[2\] \(bias with reset_after=False\): expected shape \(18,\), got \(2, 18\)",
        ),
        (lambda: K("LSTM", [*LSTM_WEIGHTS[:2], "b"]), TypeError, r"weights\[2\]: .* got str"),
        (lambda: K("LSTM", [[[1]], [[1]]]), TypeError, r"weights\[0\]: expected an array of float"),
        (lambda: K("GRU", GRU_WEIGHTS, reset_after=1), TypeError, "reset_after: expected bool"),
        (lambda: K("SimpleRNN", [np.ones((IN, H)), np.ones((H, H))], activation="elu"), ValueError,
         "nonlinearity: expected 'tanh' or 'relu', got 'elu'"),
        (lambda: S("LSTM", LSTM_WEIGHTS), TypeError, "weights: expected a state_dict, got tuple"),
        (lambda: S("IndRNN", {}), ValueError, "kind: expected one of LSTM, GRU"),
        (lambda: S("GRU", {"kernel": 1}), ValueError, "expected kernel, .* recurrent_bias, got k"),
        (
            lambda: S("LSTM", {"kernel": LSTM_WEIGHTS[0], "recurrent_kernel": LSTM_WEIGHTS[1],
                               "bias": np.ones(3)}),
            ValueError,
            r"bias: expected shape \(24,\), got \(3,\)",
        ),
        (lambda: M(GATE, GATE, (*GATE, GATE[1]), GATE), ValueError, "cell: expected weights, bias"),
        (lambda: M(GATE, 3, GATE, GATE), TypeError, "forget_gate: expected a sequence of arrays"),
        (
            lambda: M(GATE, GATE, GATE, (*GATE, np.ones(2))),
            ValueError,
            r"output_gate, peephole_weights: expected shape \(6,\), got \(2,\)",
        ),
        (
            lambda: M(GATE, (np.ones((2, H)), *GATE[1:]), GATE, GATE),
            ValueError,
            r"forget_gate, weights: expected shape \(4, 6\), got \(2, 6\)",
        ),
        (lambda: X("LSTM", np.ones((4, 4)), 0), ValueError, "W: expected 3 dimensions"),
        (
            lambda: X("LSTM", np.ones((1, 24, IN)), np.ones((1, 18, H))),
            ValueError,
            r"R: expected shape \(1, 24, 6\), got \(1, 18, 6\)",
        ),
        (
            lambda: X("GRU", np.ones((1, 18, IN)), np.ones((1, 18, H)), np.ones((1, 18))),
            ValueError,
            r"B: expected shape \(1, 36\), got \(1, 18\)",
        ),
        (
            lambda: X("GRU", np.ones((1, 18, IN)), np.ones((1, 18, H)), P=np.ones((1, 18))),
            ValueError,
            "P: expected None but for an LSTM",
        ),
        (lambda: X("RNN", np.ones((3, H, IN)), np.ones((3, H, H))), ValueError, "1 or 2 direc"),
        (
            lambda: X("RNN", np.ones((1, H, IN)), np.ones((1, H, H)), activation="Elu"),
            ValueError,
            "activation: expected 'Tanh' or 'Relu', got 'Elu'",
        ),
    ],
)  # fmt: skip
def test_bad_arrays_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
