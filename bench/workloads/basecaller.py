"""Nanopore basecaller: the encoder of Bonito's "hac" models, five LSTMs that alternate direction.

Oxford Nanopore's Bonito, ``bonito/crf/model.py`` and ``bonito/nn.py``: after three convolutions
with a stride of 6 a chunk of 10,000 samples has 1,666 steps of 384 features; the batch has 64
chunks, in float16 under autocast. A reversed layer there is ``flip``, an LSTM and ``flip``.
"""

from __future__ import annotations

import torch
from torch import nn

import fused_rnn

from .workload import FUSED, Case, Layer, Provider, Workload, as_built, normal

DEPTH = 5


class Encoder(nn.Module):
    """The LSTMs as Bonito builds them; x (T, B, H)."""

    def __init__(self, sizes):
        super().__init__()
        self.rnns = nn.ModuleList(nn.LSTM(sizes["H"], sizes["H"]) for _ in range(DEPTH))

    def forward(self, x):
        for number, rnn in enumerate(self.rnns):
            x = self.reversed(rnn, x) if number % 2 == 0 else rnn(x)[0]
        return x

    def reversed(self, rnn, x):
        return rnn(x.flip(0))[0].flip(0)


class Backward(Encoder):
    """Reversed layers walk backward, and nothing is flipped."""

    def reversed(self, rnn, x):
        own = {"input_weight": rnn.weight_ih_l0, "input_bias": rnn.bias_ih_l0 + rnn.bias_hh_l0}
        zeros = x.new_zeros(x.shape[1], rnn.hidden_size)
        return fused_rnn.scan("lstm", x, rnn.weight_hh_l0, (zeros, zeros), reverse=True, **own)[0]


def _backward(model, sizes):
    other = Backward(sizes)
    other.load_state_dict(model.state_dict())
    return fused_rnn.convert(other.to(next(model.parameters())))


HAC = Case(
    "hac",
    {"T": 1666, "B": 64, "H": 384},
    Encoder,
    lambda sizes, generator: (normal(generator, sizes["T"], sizes["B"], sizes["H"]),),
    {
        "torch.nn": Provider(as_built),
        FUSED: Provider(lambda model, sizes: fused_rnn.convert(model)),
        "fused_rnn, reverse=": Provider(_backward),
    },
    lambda sizes: [Layer("lstm", sizes["T"], sizes["B"], sizes["H"], sizes["H"])] * DEPTH,
    cpu={"T": 333, "B": 2},
    tiny={"T": 5, "B": 2, "H": 16},
    autocast=torch.float16,
)

WORKLOAD = Workload("nanopore basecaller", "Bonito, dna hac: 5 alternating LSTMs", (HAC,))
