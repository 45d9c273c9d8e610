"""Word language model with weight drop: the three LSTMs of AWD-LSTM.

Merity et al. 2017 (arXiv 1708.02182) and fastai's ``WeightDropout``: 400 features, layers of 1,150,
1,150 and 400 units, 70 steps, 80 rows; half of the values of each recurrent matrix are zero in a
training step. "weight drop" copies that wrapper: the dropped matrix is set before each call of the
layer. The results are compared without dropout, since each side draws its own masks.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional

import fused_rnn

from .workload import FUSED, Case, Layer, Provider, Workload, normal

DROP = 0.5


class Plain(nn.Module):
    """The layers with their weights, without weight drop."""

    def __init__(self, sizes):
        super().__init__()
        widths = (sizes["I"], sizes["H"], sizes["H"], sizes["I"])
        self.rnns = nn.ModuleList(map(nn.LSTM, widths, widths[1:]))

    def forward(self, x):
        for number, rnn in enumerate(self.rnns):
            x = self.layer(number, rnn, x)
        return x

    def layer(self, number, rnn, x):
        return rnn(x)[0]


class WeightDropped(Plain):
    """A layer's call with a dropped matrix in the place of ``weight_hh_l0``."""

    def layer(self, number, rnn, x):
        dropped = functional.dropout(rnn.weight_hh_l0, DROP, self.training)
        found, _ = torch.func.functional_call(rnn, {"weight_hh_l0": dropped}, (x,))
        return found


def _dropped(model, sizes):
    other = WeightDropped(sizes).to(model.rnns[0].weight_hh_l0)
    other.load_state_dict(model.state_dict())
    return other


def _fused(model, sizes):
    for number, rnn in enumerate(model.rnns):
        own = fused_rnn.LSTM(rnn.input_size, rnn.hidden_size, weight_drop=DROP)
        own.load_state_dict(rnn.state_dict())
        model.rnns[number] = own.to(rnn.weight_hh_l0)
    return model


def _layers(sizes):
    widths = (sizes["I"], sizes["H"], sizes["H"], sizes["I"])
    return [Layer("lstm", sizes["T"], sizes["B"], *pair) for pair in itertools.pairwise(widths)]


AWD_LSTM = Case(
    "AWD-LSTM",
    {"T": 70, "B": 80, "I": 400, "H": 1150},
    Plain,
    lambda sizes, generator: (normal(generator, sizes["T"], sizes["B"], sizes["I"]),),
    {"torch.nn, weight drop": Provider(_dropped), FUSED: Provider(_fused)},
    _layers,
    cpu={"B": 4},
    tiny={"T": 5, "B": 2, "I": 6, "H": 8},
)

WORKLOAD = Workload("word language model", "AWD-LSTM: weight drop of 0.5", (AWD_LSTM,))
