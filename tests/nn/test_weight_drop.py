"""Dropout of the recurrent matrices: its masks, and their places."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn
from fused_rnn import Recurrent, cells
from fused_rnn.cells import draws
from fused_rnn.nn.bases import suffix

T, B, INPUT, H = 5, 3, 4, 6


@pytest.mark.parametrize("backend", ["auto", "aten", "cpp", "reference"])
def test_weight_drop(backend):
    made = fused_rnn.LSTM(INPUT, H, weight_drop=0.5, dtype=torch.float64, backend=backend)
    x = torch.randn(T, B, INPUT, dtype=torch.float64)
    torch.manual_seed(3)
    got, _ = made(x)
    gradient = torch.autograd.grad(got.sum(), made.weight_hh_l0)[0]
    torch.manual_seed(3)
    kept = draws.of_matrix(draws.draw_key(0), 0, 0, (4 * H, H), 0.5)
    mask = 2 * kept.to(x.dtype)
    plain = nn.LSTM(INPUT, H, dtype=torch.float64)
    weights = made.state_dict() | {"weight_hh_l0": made.weight_hh_l0.detach() * mask}
    plain.load_state_dict(weights)
    wanted, _ = plain(x)
    torch.testing.assert_close(got, wanted)
    own = torch.autograd.grad(wanted.sum(), plain.weight_hh_l0)[0] * mask
    torch.testing.assert_close(gradient, own)
    assert not made(x)[0].equal(got)


def test_each_recurrent_matrix_drops_its_own_values():
    """Of two layers, two directions and two matrices, from the key of a call: none are the same."""
    made = Recurrent(
        "peephole_lstm_full", H, H, 2, bidirectional=True, weight_drop=0.4, dtype=torch.float64
    )
    made.train()
    key = cells.draw_key(B)
    plain = Recurrent("peephole_lstm_full", H, H, 2, bidirectional=True, dtype=torch.float64)
    weights, masks = made.state_dict(), []
    for layer, direction in itertools.product(range(2), range(2)):
        names = [n for n in weights if n.startswith("weight_hh")]
        names = [n for n in names if n.endswith(suffix(layer, direction))]
        for number, name in enumerate(names):
            seed = draws.of_layer(key, layer)
            masks.append(draws.of_matrix(seed, number, direction, weights[name].shape, 0.6))
            weights[name] = weights[name] * masks[-1] / 0.6
    plain.load_state_dict(weights)
    x = torch.randn(T, B, H, dtype=torch.float64)
    torch.testing.assert_close(made(x, key=key), plain(x))
    for a, b in itertools.combinations(masks, 2):
        rows = min(len(a), len(b))
        assert not a[:rows].equal(b[:rows])
    torch.testing.assert_close(made.eval()(x, key=key), made(x))


def test_packed_input_drops_the_same_values():
    made = fused_rnn.LSTM(INPUT, H, weight_drop=0.5)
    x, key = torch.randn(T, B, INPUT), cells.draw_key(B)
    packed = pack_padded_sequence(x, torch.tensor([3, 5, 2]), enforce_sorted=False)
    got, lengths = pad_packed_sequence(made(packed, key=key)[0])
    torch.testing.assert_close(got, made(x, lengths=lengths, key=key)[0])
