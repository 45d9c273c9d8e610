"""What modules say to bad arguments, which is as in torch.nn, and which backend they choose."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import cells_for_tests as ours
import pytest
import torch
from fused_rnn.kernels import cpu
from torch import nn

import fused_rnn
from fused_rnn import Recurrent, aten, backends, cells, compiler, engines, function, use_backend

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
        ("bias", 1, "bias: expected bool, got int"),
        ("batch_first", "yes", "batch_first: expected bool, got str"),
        ("dropout", -0.1, "dropout: expected a probability from 0 to 1, got -0.1"),
        ("dropout", 1.1, "dropout: expected a probability from 0 to 1, got 1.1"),
        ("dropout", "half", "dropout: expected a probability from 0 to 1, got 'half'"),
        ("dropout", True, "dropout: expected a probability from 0 to 1, got True"),
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
        (ValueError, "takes streams", lambda: Recurrent(ours.ZONEOUT_LSTM, 3, 4)),
        (ValueError, "expected hidden_size = 4 .*got 3", lambda: Recurrent(ours.MUT1, 3, 4)),
        (ValueError, "proj_size: cell .gru. cannot", lambda: fused_rnn.GRU(3, 4, proj_size=2)),
        (ValueError, "proj_size: expected 0 or", lambda: fused_rnn.LSTM(3, 4, proj_size=4)),
    ):
        with pytest.raises(error, match=message):
            run()


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


@pytest.fixture
def ran(monkeypatch):
    """The backends that ran, in order; torch.nn's kernels are taken for faster where they exist."""
    names = []
    monkeypatch.setattr(engines, "aten_wins", lambda row: True)

    def watch(name, function):
        def run(*args, **options):
            names.append(name)
            return function(*args, **options)

        return run

    for name in ("sequence", "reference"):
        module = getattr(function, name)
        monkeypatch.setattr(module, "forward", watch(name, module.forward))
    monkeypatch.setattr(cpu, "_forward", watch("cpp", cpu._forward))
    for name, kernel in aten._KERNELS.items():
        monkeypatch.setitem(aten._KERNELS, name, watch("aten", kernel))
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
    monkeypatch.setattr(engines, "aten_wins", lambda row: row.mode == "inference")
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
    assert backends.requested(None) == "auto"
    with pytest.raises(ValueError, match=r"backend: expected one of auto, .*, got 'fast'"):
        use_backend("fast").__enter__()


def test_context_is_that_of_its_thread():
    with use_backend("reference"), ThreadPoolExecutor(1) as other:
        assert other.submit(backends.requested, None).result() == "auto"


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
        patch.setattr(backends, "triton_installed", lambda: True)
        with pytest.raises(RuntimeError, match=on_the_cpu):
            fused_rnn.LSTM(3, 4, backend="triton")(X)
    monkeypatch.setattr(backends, "triton_installed", lambda: False)
    with pytest.raises(RuntimeError, match=r'"triton" cannot run .*: Triton is not installed'):
        fused_rnn.LSTM(3, 4, backend="triton")(X)


def test_auto_takes_the_kernels_when_interpreted(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backends, "triton_installed", lambda: True)
    chosen = [
        backends.choose("auto", cells.LSTM, torch.device("cpu"), d)
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
