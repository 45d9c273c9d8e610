"""Taggers and recognizers whose cells torch.nn lacks, beside the Python loops of their projects.

- LiGRU: Ravanelli et al. 2018 (arXiv 1803.10225), SpeechBrain's ``LiGRU``; 512 units, utterances of
  200 frames, batches of 8. Their batch norm of ``W x`` precedes the loop on both sides.
- Highway LSTM: He et al. 2017 (doi 10.18653/v1/P17-1044), AllenNLP's ``AugmentedLstm``, a layer of
  the semantic role labeller: 300 units, 80 sentences of up to 40 words.
- Variational LSTM: Gal & Ghahramani 2016 (arXiv 1512.05287): one mask per row hides units of h from
  the recurrent product at all steps. Results are compared without dropout.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

import fused_rnn

from .workload import FUSED, Case, Layer, Provider, Workload, as_built, normal


class Loop(nn.Module):
    """A layer as a loop: the product of x once, then a step at a time."""

    gates: int
    states: int
    recurrent: int

    def __init__(self, sizes):
        super().__init__()
        features, H = sizes["I"], sizes["H"]
        self.w = nn.Linear(features, self.gates * H)
        self.u = nn.Linear(H, self.recurrent * H, bias=False)

    def forward(self, x):
        return self.walk(self.w(x))

    def walk(self, parts):
        h = parts.new_zeros(parts.shape[1], self.u.in_features)
        states, outputs = (h,) * self.states, []
        for part in parts.unbind():
            states = self.step(part, states)
            outputs.append(states[0])
        return torch.stack(outputs)


class LiGRU(Loop):
    gates, states, recurrent = 2, 1, 2

    def __init__(self, sizes):
        super().__init__(sizes)
        self.norm = nn.BatchNorm1d(2 * sizes["H"], momentum=0.05)

    def forward(self, x):
        parts = self.w(x)
        return self.walk(self.norm(parts.flatten(0, 1)).view_as(parts))

    def step(self, part, states):
        (h,) = states
        z, n = (part + self.u(h)).chunk(2, 1)
        z = torch.sigmoid(z)
        return (z * h + (1 - z) * torch.relu(n),)


class Highway(Loop):
    gates, states, recurrent = 6, 2, 5

    def step(self, part, states):
        h, c = states
        size = h.shape[1]
        i, f, g, o, r = (part[:, : 5 * size] + self.u(h)).chunk(5, 1)
        c = torch.sigmoid(i) * torch.tanh(g) + torch.sigmoid(f) * c
        r = torch.sigmoid(r)
        return r * (torch.sigmoid(o) * torch.tanh(c)) + (1 - r) * part[:, 5 * size :], c


class Variational(nn.Module):
    """An LSTM with torch.nn's parameters, as a loop with the mask of the row."""

    drop = 0.25

    def __init__(self, sizes):
        super().__init__()
        self.rnn = nn.LSTM(sizes["I"], sizes["H"])

    def forward(self, x):
        _, _, bias_ih, bias_hh = own = self.rnn._flat_weights
        parts = functional.linear(x, own[0], bias_ih + bias_hh)
        h = c = x.new_zeros(x.shape[1], self.rnn.hidden_size)
        mask = functional.dropout(torch.ones_like(h), self.drop, self.training)
        matrix, outputs = own[1].t(), []
        for part in parts.unbind():
            i, f, g, o = torch.addmm(part, h * mask, matrix).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        return torch.stack(outputs)


class FusedLiGRU(LiGRU):
    def walk(self, parts):
        h = parts.new_zeros(parts.shape[1], self.u.in_features)
        return fused_rnn.scan("li_gru", parts, self.u.weight, h)[0]


class FusedHighway(Highway):
    def forward(self, x):
        zeros = x.new_zeros(x.shape[1], self.u.in_features)
        own = {"input_weight": self.w.weight, "input_bias": self.w.bias}
        return fused_rnn.scan("highway_lstm", x, self.u.weight, (zeros, zeros), **own)[0]


def _made_of(kind):
    def make(model, sizes):
        other = kind(sizes).to(model.w.weight)
        other.load_state_dict(model.state_dict())
        return other

    return make


class FusedVariational(Variational):
    def forward(self, x):
        return self.rnn(x)[0]


def _variational(model, sizes):
    other = FusedVariational(sizes)
    drop = Variational.drop
    other.rnn = fused_rnn.LSTM(sizes["I"], sizes["H"], state_dropout=drop)
    other.load_state_dict(model.state_dict())
    return other.to(model.rnn.weight_ih_l0)


def _case(name, kind, cell, fused, real, cpu, baseline):
    return Case(
        name,
        real,
        kind,
        lambda sizes, generator: (normal(generator, sizes["T"], sizes["B"], sizes["I"]),),
        {baseline: Provider(as_built), FUSED: Provider(fused)},
        lambda sizes: [Layer(cell, *(sizes[name] for name in ("T", "B", "I", "H")))],
        cpu=cpu,
        tiny={"T": 5, "B": 3, "I": 6, "H": 8},
        in_torch=False,
    )


WORKLOAD = Workload(
    "taggers that torch.nn lacks",
    "SpeechBrain's LiGRU, AllenNLP's AugmentedLstm, Gal & Ghahramani 2016",
    (
        _case(
            "LiGRU",
            LiGRU,
            "li_gru",
            _made_of(FusedLiGRU),
            {"T": 200, "B": 8, "I": 512, "H": 512},
            {},
            "SpeechBrain's loop",
        ),
        _case(
            "highway LSTM",
            Highway,
            "highway_lstm",
            _made_of(FusedHighway),
            {"T": 40, "B": 80, "I": 300, "H": 300},
            {"B": 16},
            "AllenNLP's loop",
        ),
        _case(
            "variational LSTM",
            Variational,
            "lstm",
            _variational,
            {"T": 50, "B": 32, "I": 100, "H": 256},
            {},
            "a loop over cells",
        ),
    ),
)
