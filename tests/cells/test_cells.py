"""Every cell against an oracle written from its paper, and what a ``Cell`` accepts."""

import copy
import functools
import pickle
import subprocess
import sys

import pytest
import torch

import fused_rnn
import tests.support.cells as ours
from fused_rnn import Cell, Stage, cells
from tests.cells.test_operations import CPP
from tests.support import oracles
from tests.support.oracles import Values
from tests.support.papers import PAPERS
from tests.support.tolerances import assert_equal_in_float64

ORACLES = {
    "rnn_tanh": oracles.torch_rnn_tanh,
    "rnn_relu": oracles.torch_rnn_relu,
    "lstm": oracles.torch_lstm,
    "cifg_lstm": oracles.cifg_lstm,
    "gru": oracles.torch_gru,
    "gru_reset_before": oracles.gru_reset_before,
    "peephole_lstm": oracles.peephole_lstm("ifo"),
    **{f"peephole_lstm_{p}": oracles.peephole_lstm(p) for p in ours.PEEPHOLES},
    "sparse_lstm": oracles.sparse_lstm,
    "zoneout_lstm": oracles.zoneout_lstm,
    "clockwork_rnn": oracles.clockwork_rnn,
    "gate_recurrent_lstm": oracles.gate_recurrent_lstm,
    "full_peephole_lstm": oracles.full_peephole_lstm,
    "mut1": oracles.mut1,
    "faded_rnn": oracles.faded_rnn,
    "gated_average": oracles.gated_average,
    "fading_units": oracles.fading_units,
    "multiplicative_lstm": oracles.multiplicative_lstm,
    "attentive_gru": oracles.attentive_gru,
}
USER = {cell.name: cell for cell in ours.USER}

# What the oracle calls the recurrent matrices of a gate, one per vector that its stage multiplies.
SEVERAL = {
    ("gate_recurrent_lstm", 0): ("", "i", "f", "o"),
    ("full_peephole_lstm", 0): ("", "c"),
    ("full_peephole_lstm", 1): ("", "c"),
}


def _scan(cell, v, backend):
    """``scan`` with the matrices of an oracle's values."""

    def matrix(gate):
        return v[f"W_{gate[0]}"]

    def recurrent(gate, stage):
        return torch.cat([v[f"R_{gate[0]}{s}"] for s in SEVERAL.get((cell.name, stage), ("",))], 1)

    def bias(gate):
        return v["b_hn" if gate == "n_h" else f"b_{gate[0]}"]

    x = [
        v.x if gate in cell.raw_gates else v.x @ matrix(gate).T + bias(gate)
        for gate in cell.x_gates
    ]
    return fused_rnn.scan(
        cell,
        torch.cat(x, -1),
        [torch.cat([recurrent(g, s) for g in stage.gates]) for s, stage in enumerate(cell.stages)],
        [v[state] if len(cell.states) > 1 else v["h"] for state in cell.states],
        bias=torch.cat([bias(gate) for gate in cell.bias_gates]) if cell.bias_gates else None,
        params=[v[name] for name in cell.params],
        streams=[v[name] for name in cell.streams],
        backend=backend,
    )


def _with_gradients(v, outputs, finals):
    """Outputs and the gradients of all of ``v`` for the same random cotangents."""
    outputs = [outputs, *finals]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
    gradients = torch.autograd.grad(outputs, list(v.values()), cotangents, materialize_grads=True)
    named = {f"output.{i}": output for i, output in enumerate(outputs)}
    return named | {f"d{name}": g for name, g in zip(v, gradients, strict=True)}


@pytest.mark.parametrize("backend", ["reference", "sequence", pytest.param("cpp", marks=CPP)])
@pytest.mark.parametrize("name", ORACLES)
def test_cell_is_its_paper(name, backend):
    cell = USER.get(name) or cells.get(name)
    v = Values(I=6, H=6)  # as many inputs as units, for cells with raw gates
    if "period" in cell.params:
        v["period"] = torch.tensor([1.0, 2, 3, 1, 2, 3], dtype=torch.float64, requires_grad=True)
    want = _with_gradients(v, *ORACLES[name](v))
    got = _with_gradients(v, *_scan(cell, v, backend))
    assert_equal_in_float64(got, want)


def test_every_builtin_cell_has_an_oracle():
    assert set(cells.names()) <= set(ORACLES) | set(PAPERS)


@pytest.mark.parametrize(
    ("oracle", "cell", "gate", "renamed"),
    [
        (oracles.gru_essay, cells.GRU_RESET_BEFORE, "z", "z"),
        (oracles.cifg_lstm_greff, cells.CIFG_LSTM, "i", "f"),
    ],
    ids=["understanding_lstm_networks_gru", "greff_cifg"],
)
def test_gate_that_couples_the_other_way_is_the_negated_one(oracle, cell, gate, renamed):
    v = Values()
    want, finals = oracle(v)
    for kind in "WRb":
        v[f"{kind}_{renamed}"] = -v[f"{kind}_{gate}"]
    got, got_finals = _scan(cell, v, "reference")
    assert_equal_in_float64({"h": got, "h_n": got_finals[0]}, {"h": want, "h_n": finals[0]})


def _keep(pre, state):
    return pre[0] + state[0]


def _keep_two(pre, state):
    return pre[0] + state[0], state[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "two words"}, "name: expected a Python identifier, got 'two words'"),
        ({"gates": ()}, "at least one gate and one state"),
        ({"states": ()}, "at least one gate and one state"),
        ({"gates": ("n", "n")}, r"gates: expected distinct names, got \('n', 'n'\)"),
        ({"states": ("h", "h")}, "states: expected distinct"),
        ({"params": ("p", "p")}, "params: expected distinct"),
        ({"streams": ("s", "s")}, "streams: expected distinct"),
        ({"x_gates": ("n", "n")}, "x_gates: expected distinct"),
        ({"x_gates": ("m",)}, r"x_gates: expected some of \('n',\), got \['m'\]"),
        ({"raw_gates": ("m",)}, r"raw_gates: expected some of \('n',\), got \['m'\]"),
        ({"raw_gates": ("n",), "x_gates": ()}, r"raw_gates: expected some of \(\), got \['n'\]"),
        ({"stages": (Stage(("n",), "c"),)}, r"source: expected some of \('h',\), got \['c'\]"),
        ({"stages": (Stage(("m",)),)}, r"stages: expected some of \('n',\), got \['m'\]"),
        ({"stages": (Stage(()),)}, "stage 0: expected gates and a source"),
        ({"gates": ("n", "m"), "stages": (Stage(("m", "n")),)}, "stage 0: .* follow each other"),
        ({"gates": ("n", "x", "m"), "stages": (Stage(("n", "m")),)}, "stage 0: .* follow each"),
        ({"gates": ("n", "m"), "stages": (Stage(("n",)), Stage(("n",)))}, "stage 1: .* after"),
        ({"gates": ("n", "m"), "stages": (Stage(("m",)), Stage(("n",)))}, "stage 1: .* after"),
        (
            {"gates": ("n", "m"), "x_gates": ("n",), "stages": ()},
            r"gates: neither an input nor a recurrent part: \['m'\]",
        ),
        (
            {"gates": ("n", "m"), "x_gates": ("n",), "stages": (Stage(("n",)),)},
            r"gates: neither an input nor a recurrent part: \['m'\]",
        ),
        ({"step": _keep_two}, "step: expected 1 tensors, got 2"),
        ({"states": ("h", "c")}, "step: expected 2 tensors, got 1"),
    ],
)
def test_bad_cell_is_a_value_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        Cell(**({"name": "bad", "step": _keep, "gates": ("n",)} | arguments))


@pytest.mark.parametrize(
    "function",
    [
        lambda state, pre: state[0],
        lambda pre: pre[0],
        lambda pre, state, t, params: pre[0],
        lambda pre, state, x: pre[0],
        lambda *args: args[0][0],
        lambda pre, state, scale=1, t=0: pre[0],
    ],
    ids=["swapped", "no state", "order", "unknown", "variable", "default between"],
)
@pytest.mark.parametrize("where", ["step", "source"])
def test_function_with_other_parameters_is_a_type_error(function, where):
    bad = {"step": function} if where == "step" else {"stages": (Stage(("n",), function),)}
    with pytest.raises(TypeError, match="expected the parameters pre, state and then any of"):
        Cell(**({"name": "bad", "step": _keep, "gates": ("n",)} | bad))


@pytest.mark.parametrize("partial", [False, True])
def test_further_parameters_keep_their_defaults(partial):
    def scaled(pre, state, t, scale=2.0):
        return scale * pre[0] + 0 * t

    step = functools.partial(scaled, scale=3.0) if partial else scaled
    cell = Cell("scaled", step, gates=("n",))
    ones = (torch.ones(1, 1),)
    assert cell.run_step(ones, ones, t=5)[0].item() == (3 if partial else 2)


def test_names_are_kept_as_tuples():
    cell = Cell("listed", _keep_two, gates=["n"], states=["h", "c"], stages=[Stage(["n"], ["h"])])
    assert (cell.gates, cell.states, cell.x_gates) == (("n",), ("h", "c"), ("n",))
    assert cell.stages[0] == Stage(("n",), "h")


def test_key_is_the_name_until_it_is_taken():
    def other(pre, state):
        return pre[0] - state[0]

    first = Cell("keyed", _keep, gates=("n",))
    again = Cell("keyed", _keep, gates=("n",))
    second = Cell("keyed", other, gates=("n",))
    third = Cell("keyed", _keep, gates=("n",), x_gates=())
    assert (first.key, again.key, second.key, third.key) == (
        "keyed",
        "keyed",
        "keyed#2",
        "keyed#3",
    )
    assert cells.lookup("keyed").step is _keep
    assert cells.lookup("keyed#2") is second
    assert cells.lookup("keyed#3") is third


def test_names_and_get():
    assert all(cells.get(name).name == name for name in cells.names())
    assert cells.get("lstm") is cells.LSTM
    with pytest.raises(ValueError, match=r"cell: expected one of rnn_tanh, .*gru.*, got 'elman'"):
        cells.get("elman")


@pytest.mark.parametrize("peepholes", ours.PEEPHOLES)
def test_there_is_one_peephole_lstm_per_subset(peepholes):
    cell = cells.peephole_lstm(peepholes)
    assert cell is cells.peephole_lstm(peepholes=peepholes)
    assert cell is cells.get(f"peephole_lstm_{peepholes}")
    assert cell.key == cell.name
    assert cell.params == tuple(f"p_{gate}" for gate in peepholes)


def test_all_peepholes_is_the_default():
    assert cells.peephole_lstm("ifo") is cells.peephole_lstm() is cells.PEEPHOLE_LSTM
    assert cells.get("peephole_lstm") is cells.PEEPHOLE_LSTM


@pytest.mark.parametrize("peepholes", ["", "oi", "ii", "g", "ifgo"])
def test_other_peepholes_are_a_value_error(peepholes):
    with pytest.raises(ValueError, match=f"peepholes: .*'ifo' in this order, got '{peepholes}'"):
        cells.peephole_lstm(peepholes)


BUILTIN_AND_PEEPHOLES = [*ours.BUILTIN, *map(cells.peephole_lstm, ours.PEEPHOLES)]


@pytest.mark.parametrize("cell", BUILTIN_AND_PEEPHOLES, ids=ours.name_of)
def test_builtin_cell_is_one_object(cell):
    assert pickle.loads(pickle.dumps(cell)) is cell
    assert copy.deepcopy(cell) is cell
    assert copy.copy(cell) is cell


def _prefixed(pre, state):
    return pre[0] * state[0]


PREFIXED = Cell("peephole_lstm_mine", _prefixed, gates=("n",))


@pytest.mark.parametrize("cell", [*ours.USER, PREFIXED], ids=ours.name_of)
def test_user_cell_comes_back_from_pickle_under_its_key(cell):
    back = pickle.loads(pickle.dumps(cell))
    assert back.key == cell.key
    assert all(getattr(back, a) == getattr(cell, a) for a in ("step", "stages", "gates", "params"))
    assert copy.deepcopy(cell) is cell


def test_peephole_lstm_comes_back_in_another_process():
    data = pickle.dumps(cells.peephole_lstm("io"))
    code = f"import pickle; print(pickle.loads({data!r}).params)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.strip() == "('p_i', 'p_o')"


def test_repr():
    want = "Cell('lstm', gates=('i', 'f', 'g', 'o'), states=('h', 'c'))"
    assert repr(cells.LSTM) == want


def test_wiring_as_numbers():
    cell = ours.MUT1
    assert cell.recurrent_gates == ("r", "n")
    assert cell.spans == ((0, 1), (1, 2))
    assert cell.x_index == (0, -1, 1, 2)
    assert cell.bias_gates == ("n",)
    assert cell.bias_index == (-1, 0, -1, -1)
    assert cell.source_sizes == (1, 1)
    assert ours.GATE_RECURRENT_LSTM.source_sizes == (4, 1)
    cell = ours.ATTENTIVE_GRU
    assert cell.recurrent_gates == ("r", "n")
    assert cell.spans == ((1, 2), (3, 4))
    assert cell.recurrent_index == (-1, 0, -1, 1, -1)
    assert cell.x_index == (2, 3, 1, -1, 0)
    assert cell.bias_index == (-1, -1, -1, 0, -1)
    assert ours.GATED_AVERAGE.spans == ours.GATED_AVERAGE.source_sizes == ()
    assert cells.GRU.bias_gates == ("n_h",)
