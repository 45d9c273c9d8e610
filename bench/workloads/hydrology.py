"""Rainfall and runoff: the LSTMs of the library NeuralHydrology.

Kratzert et al. 2019 (doi 10.5194/hess-23-5089-2019): a year of 365 days, 256 basins, 128 units.
"CudaLSTM" is torch.nn's LSTM with a first bias of 3 at the forget gate, on 5 weather series and 27
numbers of the basin. "EA-LSTM" computes its input gate from these numbers once, and is a loop over
the days in Python there; here it is a cell of one's own, whose input gate is a stream.
"""

from __future__ import annotations

import torch
from torch import nn

import fused_rnn

from .workload import FUSED, Case, Layer, Provider, Workload, as_built, normal

FORGET_BIAS = 3.0


class CudaLSTM(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.lstm = nn.LSTM(sizes["I"], sizes["H"])
        with torch.no_grad():
            self.lstm.bias_hh_l0[sizes["H"] : 2 * sizes["H"]] = FORGET_BIAS

    def forward(self, x):
        return self.lstm(x)[0]


class EALSTM(nn.Module):
    """x (T, B, I) the weather, static (B, S) the basins; gates f, g, o as in the library.

    The library begins with identities as recurrent matrices. Over a year of steps these lose more
    than half of the digits of float32, in its loop too; so here they are half as large.
    """

    def __init__(self, sizes):
        super().__init__()
        H, features, static = sizes["H"], sizes["weather"], sizes["basin"]
        self.input_gate = nn.Linear(static, H)
        self.weight_ih = nn.Parameter(torch.randn(features, 3 * H) * features**-0.5)
        self.weight_hh = nn.Parameter(0.5 * torch.eye(H).repeat(1, 3))
        self.bias = nn.Parameter(torch.zeros(3 * H))
        with torch.no_grad():
            self.bias[:H] = FORGET_BIAS

    def forward(self, x, static):
        i = torch.sigmoid(self.input_gate(static))
        return self.walk(x, i)

    def walk(self, x, i):
        h = c = x.new_zeros(i.shape)
        outputs = []
        for day in x:
            gates = torch.addmm(self.bias, h, self.weight_hh) + torch.mm(day, self.weight_ih)
            f, g, o = gates.chunk(3, 1)
            c = torch.sigmoid(f) * c + i * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs)


def _step(pre, state, params, streams):
    f, g, o = pre
    _, c = state
    (i,) = streams
    c = torch.sigmoid(f) * c + i * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


EA_LSTM = fused_rnn.Cell("ea_lstm", _step, gates=("f", "g", "o"), states=("h", "c"), streams=("i",))


class Fused(EALSTM):
    def walk(self, x, i):
        zeros = x.new_zeros(i.shape)
        given = {"input_weight": self.weight_ih.t(), "input_bias": self.bias}
        given["streams"] = [i.expand(len(x), -1, -1)]
        return fused_rnn.scan(EA_LSTM, x, self.weight_hh.t(), (zeros, zeros), **given)[0]


def _fused(model, sizes):
    other = Fused(sizes).to(model.bias)
    other.load_state_dict(model.state_dict())
    return other


CUDA_LSTM = Case(
    "CudaLSTM",
    {"T": 365, "B": 256, "I": 32, "H": 128},
    CudaLSTM,
    lambda sizes, generator: (normal(generator, sizes["T"], sizes["B"], sizes["I"]),),
    {
        "torch.nn": Provider(as_built),
        FUSED: Provider(lambda model, sizes: fused_rnn.convert(model)),
    },
    lambda sizes: [Layer("lstm", *(sizes[name] for name in ("T", "B", "I", "H")))],
    cpu={"B": 32},
    tiny={"T": 5, "B": 2, "I": 4, "H": 8},
)

ENTITY_AWARE = Case(
    "EA-LSTM",
    {"T": 365, "B": 256, "weather": 5, "basin": 27, "H": 128},
    EALSTM,
    lambda sizes, generator: (
        normal(generator, sizes["T"], sizes["B"], sizes["weather"]),
        normal(generator, sizes["B"], sizes["basin"]),
    ),
    {"the library's loop": Provider(as_built), FUSED: Provider(_fused)},
    lambda sizes: [Layer("lstm", sizes["T"], sizes["B"], sizes["weather"], sizes["H"])],
    cpu={"B": 32},
    tiny={"T": 5, "B": 2, "weather": 4, "basin": 3, "H": 8},
    in_torch=False,
)

WORKLOAD = Workload(
    "hydrology", "NeuralHydrology: a year, 128 units, forget bias 3", (CUDA_LSTM, ENTITY_AWARE)
)
