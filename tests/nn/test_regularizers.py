"""Zoneout, dropout of the old output and of the matrices, against loops with the same masks."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import fused_rnn
from fused_rnn import Recurrent, cells
from fused_rnn.nn import regularizers
from tests.support.tolerances import assert_equal_in_float64

T, B, INPUT, H = 5, 3, 4, 6
backends = pytest.mark.parametrize("backend", ["cpp", "sequence", "reference"])
OPTIONS = [
    {"zoneout": 0.4},
    {"zoneout": (0.3, 0.0)},
    {"state_dropout": 0.5},
    {"zoneout": (0.2, 0.3), "state_dropout": 0.5},
]


@pytest.fixture
def drawn(monkeypatch):
    """What the calls of a layer draw, in their order."""
    found, draw = [], regularizers.disturb

    def spy(*arguments):
        cell, streams = draw(*arguments)
        found.append((cell, streams))
        return cell, streams

    monkeypatch.setattr(regularizers, "disturb", spy)
    return found


def _loop(made, x, streams, side=""):
    """The oracle: torch.nn's cell of one step, with what was drawn for one direction."""
    kind, states = (nn.LSTMCell, 2) if made.cell is cells.LSTM else (nn.GRUCell, 1)
    one = kind(INPUT, H, dtype=x.dtype)
    weights = {n: getattr(made, f"{n}_l0{side}") for n in one.state_dict()}
    state, outputs = [x.new_zeros(B, H)] * states, []
    given, masks = made._regularizers, list(streams)
    zoned = {i: masks.pop(0) for i in range(states) if given.zoneout and given.zoneout[i]}
    kept = masks[0] if masks else torch.ones(T, B, H, dtype=x.dtype)
    for t in range(T):
        # The GRU's own update reads h as it is: only the product sees the mask.
        seen = [state[0] * kept[t], *state[1:]]
        if states == 2:
            new = torch.func.functional_call(one, weights, (x[t], tuple(seen)))
        else:
            rows = functional.linear(x[t], weights["weight_ih"], weights["bias_ih"])
            products = functional.linear(seen[0], weights["weight_hh"], weights["bias_hh"])
            (r, z, n), (pr, pz, pn) = rows.chunk(3, -1), products.chunk(3, -1)
            z = torch.sigmoid(z + pz)
            n = torch.tanh(n + torch.sigmoid(r + pr) * pn)
            new = [(1 - z) * n + z * state[0]]
        state = [
            torch.where(zoned[i][t] > 0.5, old, now) if i in zoned else now
            for i, (old, now) in enumerate(zip(state, new, strict=True))
        ]
        outputs.append(state[0])
    return torch.stack(outputs), state


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@backends
def test_training_has_the_masks_that_were_drawn(options, backend, drawn):
    made = fused_rnn.LSTM(INPUT, H, dtype=torch.float64, backend=backend, **options)
    x = torch.randn(T, B, INPUT, dtype=torch.float64, requires_grad=True)
    leaves, results = [x, *made.parameters()], []
    got = made(x)
    ((_, streams),) = drawn
    for mask in streams:
        assert mask.shape == (T, B, 1, H)
        assert 0 < mask.count_nonzero() < mask.numel()
    wanted = _loop(made, x, [s.squeeze(2) for s in streams])
    for output, states in (got, wanted):
        gradients = torch.autograd.grad(output.square().sum() + states[1].sum(), leaves)
        results.append({str(i): t.squeeze(0) for i, t in enumerate([output, *states, *gradients])})
    assert_equal_in_float64(*results)


@pytest.mark.parametrize("options", [{"zoneout": 0.4}, {"state_dropout": 0.5}], ids=str)
def test_gru_updates_from_the_whole_state(options, drawn):
    made = fused_rnn.GRU(INPUT, H, dtype=torch.float64, **options)
    x = torch.randn(T, B, INPUT, dtype=torch.float64)
    output, _ = made(x)
    torch.testing.assert_close(output, _loop(made, x, [s.squeeze(2) for s in drawn[0][1]])[0])


def test_a_dropped_unit_stays_hidden_for_a_row(drawn):
    fused_rnn.LSTM(INPUT, H, bidirectional=True, state_dropout=0.5)(torch.randn(T, B, INPUT))
    (mask,) = drawn[0][1]
    assert (mask == mask[0]).all()
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    assert not (mask[:, :, 0] == mask[:, :, 1]).all()


@backends
def test_evaluation_takes_the_expectation_of_zoneout(backend):
    made = fused_rnn.GRU(INPUT, H, zoneout=0.25, dtype=torch.float64, backend=backend).eval()
    x, h, outputs = torch.randn(T, B, INPUT, dtype=torch.float64), torch.zeros(B, H).double(), []
    one = nn.GRUCell(INPUT, H, dtype=torch.float64)
    weights = {n: getattr(made, f"{n}_l0") for n in one.state_dict()}
    for t in range(T):
        h = 0.25 * h + 0.75 * torch.func.functional_call(one, weights, (x[t], h))
        outputs.append(h)
    torch.testing.assert_close(made(x)[0], torch.stack(outputs))


def test_evaluation_drops_nothing():
    made = fused_rnn.LSTM(INPUT, H, state_dropout=0.5, weight_drop=0.5).eval()
    plain = nn.LSTM(INPUT, H)
    plain.load_state_dict(made.state_dict())
    x = torch.randn(T, B, INPUT)
    torch.testing.assert_close(made(x)[0], plain(x)[0])


@pytest.mark.parametrize("backend", ["auto", "aten", "cpp", "reference"])
def test_weight_drop(backend):
    made = fused_rnn.LSTM(INPUT, H, weight_drop=0.5, dtype=torch.float64, backend=backend)
    x = torch.randn(T, B, INPUT, dtype=torch.float64)
    torch.manual_seed(3)
    got, _ = made(x)
    gradient = torch.autograd.grad(got.sum(), made.weight_hh_l0)[0]
    torch.manual_seed(3)
    mask = functional.dropout(torch.ones(4 * H, H, dtype=torch.float64), 0.5)
    plain = nn.LSTM(INPUT, H, dtype=torch.float64)
    weights = made.state_dict() | {"weight_hh_l0": made.weight_hh_l0.detach() * mask}
    plain.load_state_dict(weights)
    wanted, _ = plain(x)
    torch.testing.assert_close(got, wanted)
    own = torch.autograd.grad(wanted.sum(), plain.weight_hh_l0)[0] * mask
    torch.testing.assert_close(gradient, own)
    assert not made(x)[0].equal(got)


def test_seeds_repeat_the_masks_on_every_backend():
    made = Recurrent(
        "gru", INPUT, H, 2, bidirectional=True, zoneout=0.3, state_dropout=0.3, weight_drop=0.1
    )
    x, results = torch.randn(T, B, INPUT), []
    for backend in ("cpp", "sequence", "reference"):
        made.backend = backend
        torch.manual_seed(1)
        results.append(made(x)[0])
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])
    torch.manual_seed(2)
    assert not made(x)[0].equal(results[2])


def test_kernels(interpreter):
    made = fused_rnn.LSTM(INPUT, H, zoneout=0.3, state_dropout=0.3, backend="triton")
    x = torch.randn(T, B, INPUT)
    torch.manual_seed(1)
    got, _ = made(x)
    made.backend = "reference"
    torch.manual_seed(1)
    torch.testing.assert_close(got, made(x)[0])


def test_lengths_and_resets():
    made = fused_rnn.LSTM(INPUT, H, zoneout=0.25, dtype=torch.float64).eval()
    x, reset = torch.randn(T, B, INPUT, dtype=torch.float64), torch.zeros(T, B, dtype=torch.bool)
    reset[2, 0] = True
    output, _ = made(x, reset=reset, lengths=torch.tensor([5, 3, 4]))
    torch.testing.assert_close(output[2:, 0], made(x[2:, 0])[0])
    torch.testing.assert_close(output[:3, 1], made(x[:3, 1])[0])


def test_compiled_and_kept():
    made = fused_rnn.GRU(INPUT, H, zoneout=0.3)
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    compiled(torch.randn(T, B, INPUT))[0].sum().backward()
    made.eval()
    x = torch.randn(T, B, INPUT)
    torch.testing.assert_close(compiled(x), made(x))
    assert "zoneout=0.3" in repr(made)
    with pytest.warns(UserWarning, match="torch.nn has no zoneout"):
        fused_rnn.revert(made)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"zoneout": 1.0}, ValueError, "zoneout: expected a probability from 0 to below 1"),
        ({"zoneout": (0.1,)}, ValueError, r"one for each of the states \('h', 'c'\)"),
        ({"zoneout": "0.1"}, TypeError, "zoneout: expected a number, got str"),
        ({"state_dropout": -0.1}, ValueError, "state_dropout: expected a probability"),
        ({"weight_drop": True}, TypeError, "weight_drop: expected a number, got bool"),
        ({"zoneout": 0.1, "proj_size": 2}, ValueError, "zoneout: expected 0 with proj_size=2"),
        ({"cell": "min_gru", "weight_drop": 0.1}, ValueError, "has no recurrent product"),
    ],
)
def test_refused(options, kind, words):
    options = {"cell": "lstm", "input_size": INPUT, "hidden_size": H} | options
    with pytest.raises(kind, match=words):
        Recurrent(**options)


def test_torch_nn_has_no_zoneout():
    made = fused_rnn.LSTM(INPUT, H, zoneout=0.1, backend="aten")
    with pytest.raises(RuntimeError, match='"aten" cannot run zoneout'):
        made(torch.randn(T, B, INPUT))
