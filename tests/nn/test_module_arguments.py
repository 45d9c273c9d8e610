"""What modules say to bad arguments, which is as in torch.nn, and which backend they choose."""

import dataclasses
import inspect
import pydoc
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import torch
from fused_rnn.kernels.cpu import compiler, engine
from torch import nn

import fused_rnn
import tests.support.cells as ours
from fused_rnn import Recurrent, cells, context, use_backend
from fused_rnn.engines import aten, choose, cpu_race
from fused_rnn.ops import recurrence

ERRORS = (TypeError, ValueError, RuntimeError)


def _error(run):
    with pytest.raises(ERRORS) as caught:
        run()
    return caught.value


def _same_kind_of_error(theirs, mine, message):
    error = _error(mine)
    assert type(error) is type(_error(theirs))
    assert message in str(error)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("input_size", 0, "input_size: expected a number greater than zero, got 0"),
        ("input_size", 2.5, "input_size: expected int, got float"),
        ("hidden_size", -4, "hidden_size: expected a number greater than zero, got -4"),
        ("hidden_size", "4", "hidden_size: expected int, got str"),
        ("num_layers", 0, "num_layers: expected a number greater than zero, got 0"),
        ("num_layers", 1.5, "num_layers: expected int, got float"),
        ("hidden_size", numpy.float64(4), "hidden_size: expected int, got float64"),
        ("bias", 1, "bias: expected bool, got int"),
        ("batch_first", "yes", "batch_first: expected bool, got str"),
        ("dropout", -0.1, "dropout: expected a probability from 0 to 1, got -0.1"),
        ("dropout", 1.1, "dropout: expected a probability from 0 to 1, got 1.1"),
        ("dropout", "half", "dropout: expected a probability from 0 to 1, got 'half'"),
        ("dropout", True, "dropout: expected a probability from 0 to 1, got True"),
        ("dropout", float("nan"), "dropout: expected a probability from 0 to 1, got nan"),
        ("dtype", torch.int64, "floating point"),
        ("colour", 1, "unexpected keyword argument 'colour'"),
    ],
)
def test_bad_constructor_arguments(name, argument, value, message):
    arguments = {"input_size": 3, "hidden_size": 4} | {argument: value}
    _same_kind_of_error(
        lambda: getattr(nn, name)(**arguments),
        lambda: getattr(fused_rnn, name)(**arguments),
        message,
    )


def test_bad_arguments_of_our_own():
    message = "nonlinearity: expected 'tanh' or 'relu', got 'sigmoid'"
    arguments = {"input_size": 3, "hidden_size": 4, "nonlinearity": "sigmoid"}
    _same_kind_of_error(lambda: nn.RNN(**arguments), lambda: fused_rnn.RNN(**arguments), message)
    for error, message, run in (
        (ValueError, "got 'oi'", lambda: fused_rnn.PeepholeLSTM(3, 4, peepholes="oi")),
        (ValueError, "backend: expected one of auto", lambda: fused_rnn.LSTM(3, 4, backend="cuda")),
        (ValueError, "got 'elman'", lambda: Recurrent("elman", 3, 4)),
        (TypeError, "cell: expected a Cell or the name of one", lambda: Recurrent(nn.LSTM, 3, 4)),
        (ValueError, "expected hidden_size = 4 .*got 3", lambda: Recurrent(ours.MUT1, 3, 4)),
        (ValueError, "proj_size: cell .gru. cannot", lambda: fused_rnn.GRU(3, 4, proj_size=2)),
        (ValueError, "proj_size: expected 0 or", lambda: fused_rnn.LSTM(3, 4, proj_size=4)),
    ):
        with pytest.raises(error, match=message):
            run()


def test_what_torch_lets_through():
    """A bool is no size, and a word is no flag."""
    for name, value, message in (
        ("input_size", True, "input_size: expected int, got bool"),
        ("num_layers", True, "num_layers: expected int, got bool"),
        ("bidirectional", "no", "bidirectional: expected bool, got str"),
        ("recompute", "yes", "recompute: expected bool, got str"),
        ("proj_size", True, "proj_size: expected int, got bool"),
        ("proj_size", -1, "proj_size: expected 0 or a size smaller than hidden_size 4, got -1"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            fused_rnn.LSTM(**{"input_size": 3, "hidden_size": 4} | {name: value})
    for name, value, message in (
        ("input_size", 2.5, "input_size: expected int, got float"),
        ("hidden_size", True, "hidden_size: expected int, got bool"),
        ("hidden_size", -1, "hidden_size: expected zero or a greater number, got -1"),
        ("bias", 1, "bias: expected bool, got int"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            fused_rnn.GRUCell(**{"input_size": 3, "hidden_size": 4} | {name: value})


@pytest.mark.parametrize("kind", [numpy.int64, numpy.int32, numpy.uint8])
def test_numbers_of_numpy(kind):
    module = fused_rnn.LSTM(
        kind(3), kind(4), num_layers=kind(2), proj_size=kind(2), dropout=numpy.float32(0.5)
    )
    plain = fused_rnn.LSTM(3, 4, num_layers=2, proj_size=2, dropout=0.5)
    assert str(module) == str(plain)
    for name in ("input_size", "hidden_size", "num_layers", "proj_size"):
        assert type(getattr(module, name)) is int
    assert type(module.dropout) is float
    plain.load_state_dict(module.state_dict())
    assert torch.equal(module.eval()(X)[0], plain.eval()(X)[0])
    assert type(fused_rnn.GRUCell(kind(3), kind(4)).hidden_size) is int


def test_dropout_of_one_layer_is_a_warning_as_in_torch():
    for module in (nn.LSTM, fused_rnn.LSTM):
        with pytest.warns(UserWarning, match=r"dropout.*num_layers=1"):
            module(3, 4, dropout=0.5)


def test_dtype_and_device_reach_the_parameters():
    module = fused_rnn.GRU(3, 4, device="meta", dtype=torch.float64)
    assert all(p.is_meta and p.dtype == torch.float64 for p in module.parameters())


@pytest.mark.parametrize("backend", ["auto", "sequence", "reference"])
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((3,), {}, "input: expected 2 or 3 dimensions, got 1"),
        ((1, 5, 2, 3), {}, "input: expected 2 or 3 dimensions, got 4"),
        ((5, 2, 7), {}, "input.size(-1): expected input_size 3, got 7"),
        ((5, 7), {}, "input.size(-1): expected input_size 3, got 7"),
        ((0, 2, 3), {}, "expected a sequence length larger than 0, got 0"),
        ((5, 2, 3), {"dtype": torch.float64}, "torch.float32, got torch.float64"),
        ((5, 2, 3), {"dtype": torch.int64}, "torch.float32, got torch.int64"),
        ((5, 2, 3), {"device": "meta"}, "device of the weights cpu, got meta"),
    ],
    ids=str,
)
def test_bad_input(name, backend, shape, options, message):
    theirs, mine = getattr(nn, name)(3, 4), getattr(fused_rnn, name)(3, 4, backend=backend)
    x = torch.ones(shape, **options)
    _same_kind_of_error(lambda: theirs(x), lambda: mine(x), f"{name}: input")
    assert message in str(_error(lambda: mine(x)))


@pytest.mark.parametrize("batch_first", [False, True])
def test_no_steps_is_an_error_as_in_torch(batch_first):
    theirs, mine = (m.LSTM(3, 4, batch_first=batch_first) for m in (nn, fused_rnn))
    for shape in ((0, 3), (2, 0, 3) if batch_first else (0, 2, 3)):
        x = torch.ones(shape)
        _same_kind_of_error(lambda x=x: theirs(x), lambda x=x: mine(x), "larger than 0, got 0")


@pytest.mark.parametrize(
    ("name", "x", "hx", "message"),
    [
        ("GRU", (5, 2, 3), (1, 2, 5), "hx: state h: expected shape (1, 2, 4), got (1, 2, 5)"),
        ("GRU", (5, 2, 3), (2, 2, 4), "hx: state h: expected shape (1, 2, 4), got (2, 2, 4)"),
        ("GRU", (5, 2, 3), (1, 4), "hx: state h: expected shape (1, 2, 4), got (1, 4)"),
        ("RNN", (5, 3), (1, 1, 4), "hx: state h: expected shape (1, 4), got (1, 1, 4)"),
        (
            "LSTM",
            (5, 2, 3),
            [(1, 2, 5)] * 2,
            "hx: state h: expected shape (1, 2, 4), got (1, 2, 5)",
        ),
        ("LSTM", (5, 2, 3), [(1, 2, 4), (1, 1, 4)], "hx: state c: expected shape (1, 2, 4)"),
        ("LSTM", (5, 2, 3), [(1, 4)] * 2, "hx: state h: expected shape (1, 2, 4), got (1, 4)"),
        ("LSTM", (5, 3), [(1, 1, 4)] * 2, "hx: state h: expected shape (1, 4), got (1, 1, 4)"),
        ("LSTM", (5, 2, 3), [(1, 2, 4)] * 3, "hx: expected 2 states ('h', 'c'), got 3"),
    ],
    ids=str,
)
def test_bad_states(name, x, hx, message):
    theirs, mine = getattr(nn, name)(3, 4), getattr(fused_rnn, name)(3, 4)
    x = torch.ones(x)
    hx = tuple(map(torch.ones, hx)) if isinstance(hx, list) else torch.ones(hx)
    _same_kind_of_error(lambda: theirs(x, hx), lambda: mine(x, hx), message)


@pytest.mark.parametrize(
    ("name", "hx", "message"),
    [
        ("GRU", 0, "hx: expected a Tensor, got int"),
        ("LSTM", 0, "hx: expected a tuple of 2 tensors ('h', 'c'), got int"),
        ("LSTM", (None, None), "hx: state h: expected a Tensor, got NoneType"),
        ("LSTM", numpy.zeros((2, 1, 2, 4)), "('h', 'c'), got ndarray"),
        ("GRU", [torch.zeros(1, 2, 4)], "hx: expected a Tensor, got list"),
        ("RNN", (torch.zeros(1, 2, 4),), "hx: expected a Tensor, got tuple"),
        ("GRUCell", (torch.zeros(2, 4),), "hx: expected a Tensor, got tuple"),
        ("LSTMCell", (torch.ones(2, 4), None), "hx: state c: expected a Tensor, got NoneType"),
        ("RNNCell", "h", "hx: expected a Tensor, got str"),
    ],
    ids=str,
)
def test_states_that_are_no_tensors(name, hx, message):
    x = torch.ones(2, 3) if name.endswith("Cell") else X
    with pytest.raises(TypeError) as caught:
        getattr(fused_rnn, name)(3, 4)(x, hx)
    assert message in str(caught.value)


@pytest.mark.parametrize("given", [None, [1.0], numpy.ones((5, 2, 3)), 3], ids=type)
def test_input_that_is_no_tensor(given):
    for module in (
        fused_rnn.GRU(3, 4),
        fused_rnn.torch_classes.LSTM(3, 4),
        fused_rnn.GRUCell(3, 4),
    ):
        with pytest.raises(
            TypeError, match=f"input: expected a Tensor, got {type(given).__name__}"
        ):
            module(given)


def test_sparse_tensors():
    message = "expected a dense tensor, got one of layout torch.sparse_coo"
    module = fused_rnn.GRU(3, 4)
    with pytest.raises(RuntimeError, match=f"input: {message}"):
        module(X.to_sparse())
    with pytest.raises(RuntimeError, match=f"hx: state h: {message}"):
        module(X, torch.ones(1, 2, 4).to_sparse())


def test_states_of_other_dtypes_and_devices():
    x = torch.ones(5, 2, 3)
    for options, message in (
        ({"dtype": torch.float64}, "hx: state h: expected dtype torch.float32, got torch.float64"),
        ({"device": "meta"}, "hx: state h: expected device cpu, got meta"),
    ):
        hx = torch.ones(1, 2, 4, **options)
        _same_kind_of_error(
            lambda hx=hx: nn.GRU(3, 4)(x, hx), lambda hx=hx: fused_rnn.GRU(3, 4)(x, hx), message
        )


def _choose(wins):
    return lambda kind, *sizes, **options: cpu_race.Finding(wins(kind), "timed", kind, 1.0)


@pytest.fixture
def ran(monkeypatch):
    """The backends that ran, in order; torch.nn's kernels are taken for faster where they exist."""
    names = []
    monkeypatch.setattr(cpu_race, "settle", _choose(lambda kind: True))

    def watch(name, function):
        def run(*args, **options):
            names.append(name)
            return function(*args, **options)

        return run

    for name in ("sequence", "reference"):
        module = getattr(recurrence, name)
        monkeypatch.setattr(module, "forward", watch(name, module.forward))
    monkeypatch.setattr(engine, "_forward", watch("cpp", engine._forward))
    for name, theirs in aten.TORCH.items():
        watched = theirs._replace(run=watch("aten", theirs.run))
        monkeypatch.setitem(aten.TORCH, name, watched)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    return names


X = torch.ones(5, 2, 3)
# What "auto" runs where torch.nn has no kernel.
OWN = "sequence" if compiler.find() is None else "cpp"


def test_auto_takes_torchs_kernels_for_torchs_modules_only(ran):
    for made in (fused_rnn.RNN(3, 4), fused_rnn.LSTM(3, 4), fused_rnn.GRU(3, 4)):
        made(X)
    assert ran == ["aten"] * 3
    for made in (fused_rnn.PeepholeLSTM(3, 4), fused_rnn.GRU(3, 4, reset_after=False)):
        made(X)
    assert ran[3:] == [OWN] * 2


def test_auto_takes_the_loop_where_it_was_faster(ran, monkeypatch):
    monkeypatch.setattr(cpu_race, "settle", _choose(lambda kind: kind.mode == "inference"))
    module = fused_rnn.GRU(3, 4)
    module(X)
    with torch.no_grad():
        module(X)
    module.requires_grad_(False)(X)
    assert ran == ["aten" if OWN == "sequence" else "cpp", "aten", "aten"]


def test_backend_of_the_module_beats_that_of_the_context(ran):
    follows, insists = fused_rnn.LSTM(3, 4), fused_rnn.LSTM(3, 4, backend="sequence")
    with use_backend("reference"):
        follows(X)
        insists(X)
        with use_backend("aten"):
            follows(X)
        follows(X)
    follows(X)
    assert ran == ["reference", "sequence", "aten", "reference", "aten"]


def test_backend_of_scan(ran):
    arguments = ("rnn_tanh", torch.ones(5, 2, 4), torch.ones(4, 4), torch.ones(2, 4))
    with use_backend("reference"):
        fused_rnn.scan(*arguments)
        fused_rnn.scan(*arguments, backend="sequence")
    fused_rnn.scan(*arguments)
    assert ran == ["reference", "sequence", OWN]


def test_context_ends_after_an_error_too():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert context.requested(None) == "auto"
    with pytest.raises(ValueError, match=r"backend: expected one of auto, .*, got 'fast'"):
        use_backend("fast").__enter__()


def test_context_is_that_of_its_thread():
    with use_backend("reference"), ThreadPoolExecutor(1) as other:
        assert other.submit(context.requested, None).result() == "auto"


def test_a_cell_of_the_same_name_does_not_run_on_torchs_kernels(ran):
    namesake = dataclasses.replace(cells.CIFG_LSTM, name="lstm")
    Recurrent(namesake, 3, 4)(X)
    assert ran == [OWN]
    with pytest.raises(RuntimeError, match=r'"aten" cannot run cell .*rnn_tanh, .*gru only'):
        Recurrent(namesake, 3, 4, backend="aten")(X)


def test_forcing_a_backend_that_cannot_serve(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"\"aten\" cannot run cell 'peephole_lstm_io'"):
        fused_rnn.PeepholeLSTM(3, 4, peepholes="io", backend="aten")(X)
    on_the_cpu = "\"triton\" cannot run cell 'lstm' here: the tensors are on cpu"
    with monkeypatch.context() as patch:
        patch.setattr(context, "triton_installed", lambda: True)
        with pytest.raises(RuntimeError, match=on_the_cpu):
            fused_rnn.LSTM(3, 4, backend="triton")(X)
    monkeypatch.setattr(context, "triton_installed", lambda: False)
    with pytest.raises(RuntimeError, match=r'"triton" cannot run .*: Triton is not installed'):
        fused_rnn.LSTM(3, 4, backend="triton")(X)


def test_auto_takes_the_kernels_when_interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(context, "triton_installed", lambda: True)
    chosen = [
        choose.layer("auto", cells.LSTM, torch.device("cpu"), d).engine
        for d in (torch.float32, torch.complex64)
    ]
    assert chosen == ["auto", "sequence"]  # the op asks the self-check


@pytest.mark.parametrize(
    ("cell", "shapes"),
    [
        (cells.GRU_RESET_BEFORE, {"weight_hh": (12, 4), "bias_hh": (12,)}),
        (cells.CIFG_LSTM, {"weight_ih": (12, 4), "weight_hh": (12, 4)}),
        (ours.SPARSE_LSTM, {"weight_ih": (8, 4), "weight_hh": (16, 4), "bias_hh": (16,)}),
        (ours.CLOCKWORK_RNN, {"weight_hh": (4, 4), "period": (4,)}),
        (ours.FULL_PEEPHOLE_LSTM, {"weight_ih": (16, 4), "weight_hh": (16, 8)}),
        (ours.GATE_RECURRENT_LSTM, {"weight_hh0": (12, 16), "weight_hh1": (4, 4)}),
        (ours.MUT1, {"weight_ih": (8, 4), "weight_hh": (8, 4), "bias_ih": (12,), "bias_hh": (8,)}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_shapes_of_parameters(cell, shapes):
    module = Recurrent(cell, 4, 4, 2)
    for layer in (0, 1):
        for name, shape in shapes.items():
            assert module.get_parameter(f"{name}_l{layer}").shape == shape
    without = Recurrent(cell, 4, 4, bias=False)
    assert not any("bias" in name for name, _ in without.named_parameters())
    assert without(torch.ones(5, 2, 4))[0].isfinite().all()


LAYER = ["input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout"]
LAYER += ["bidirectional", "proj_size", "device", "dtype"]


OF_OURS = ["num_heads", "learn_h0", "zoneout", "state_dropout", "weight_drop"]
OF_OURS += ["recurrent_dropout", "cell_clip"]


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (fused_rnn.LSTM, LAYER),
        (fused_rnn.CIFGLSTM, LAYER),
        (fused_rnn.torch_classes.LSTM, LAYER),
        (fused_rnn.RNN, [*LAYER[:3], "nonlinearity", *LAYER[3:]]),
        (fused_rnn.GRU, [*LAYER, "reset_after"]),
        (fused_rnn.torch_classes.GRU, [*LAYER, "reset_after"]),
        (fused_rnn.PeepholeLSTM, [*LAYER, "peepholes"]),
    ],
    ids=str,
)
def test_signature_and_help_show_all_arguments(kind, names):
    parameters = inspect.signature(kind).parameters
    assert list(parameters) == [*names, *OF_OURS, "backend", "recompute"]
    assert parameters["num_layers"].default == 1
    text = pydoc.plain(pydoc.render_doc(kind))
    first = next(line for line in text.splitlines() if line.startswith(f" |  {kind.__name__}("))
    for name, parameter in parameters.items():
        assert name in first
        given = {name: parameter.default} if parameter.default is not parameter.empty else {}
        kind(3, 4, **given)  # the name and the default are those that it takes


def test_signature_of_cells():
    names = ["input_size", "hidden_size", "bias", "device", "dtype", "num_heads"]
    names += ["zoneout", "state_dropout", "recurrent_dropout", "cell_clip", "backend"]
    assert list(inspect.signature(fused_rnn.LSTMCell).parameters) == names
    parameters = inspect.signature(fused_rnn.RNNCell).parameters
    assert list(parameters) == [*names[:3], "nonlinearity", *names[3:]]


@pytest.mark.parametrize(
    "text",
    [
        "LSTM(3, 4)",
        "GRU(8, 16, reset_after=False)",
        'PeepholeLSTM(3, 4, num_layers=2, peepholes="io", bias=False)',
        'RNN(3, 4, nonlinearity="relu", batch_first=True)',
        'LSTM(3, 4, proj_size=2, bidirectional=True, backend="sequence", recompute=True)',
        'Recurrent("cifg_lstm", 3, 4)',
        'Recurrent("gru_reset_before", 3, 4, num_heads=(2, 4))',
        'GRUCell(3, 4, bias=False, reset_after=False, backend="reference")',
        'RNNCell(3, 4, nonlinearity="relu")',
        'PeepholeLSTMCell(3, 4, peepholes="f")',
        'RecurrentCell("gru", 3, 4)',
    ],
)
def test_repr_makes_the_module_again(text):
    made = eval(text, vars(fused_rnn))
    assert repr(made) == text
    assert made.cell is eval(repr(made), vars(fused_rnn)).cell


def test_dir_has_the_public_names_only():
    assert dir(fused_rnn) == sorted(fused_rnn.__all__)
    assert all(hasattr(fused_rnn, name) for name in fused_rnn.__all__)
