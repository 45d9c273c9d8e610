"""Tagger of sentences: two bidirectional LSTMs over packed rows, as in Flair and AllenNLP.

A batch of 32 sentences whose lengths are spread as in the news of CoNLL 2003 (most have fewer than
20 words, few have 50), 100 features per word, 256 units per direction (Lample et al. 2016,
arXiv 1603.01360, and Akbik et al. 2018).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn

from .workload import FUSED, Case, Layer, Provider, Workload, as_built, normal


class Encoder(nn.Module):
    """x (T, B, I) and lengths (B,), on the CPU as torch.nn's packing asks."""

    def __init__(self, sizes, kind=nn.LSTM):
        super().__init__()
        self.rnn = kind(sizes["I"], sizes["H"], 2, bidirectional=True)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths.cpu(), enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], total_length=len(x))[0]


class Padded(Encoder):
    """The padded batch with its lengths, without packing."""

    def forward(self, x, lengths):
        return self.rnn(x, lengths=lengths)[0]


def _padded(model, sizes):
    other = Padded(sizes, type(model.rnn)).to(model.rnn.weight_ih_l0)
    other.load_state_dict(model.state_dict())
    return fused_rnn.convert(other)


def _inputs(sizes, generator):
    T, B = sizes["T"], sizes["B"]
    spread = torch.rand(B, generator=generator).square()  # mean a third of the longest
    lengths = (1 + spread * (T - 1)).long()
    lengths[0] = T
    return normal(generator, T, B, sizes["I"]), lengths


def _case(name, kind):
    cell = name.lower()
    return Case(
        name,
        {"T": 50, "B": 32, "I": 100, "H": 256},
        lambda sizes: Encoder(sizes, kind),
        _inputs,
        {
            "torch.nn": Provider(as_built),
            FUSED: Provider(lambda model, sizes: fused_rnn.convert(model)),
            "fused_rnn, lengths=": Provider(_padded),
        },
        lambda sizes: [
            Layer(cell, sizes["T"], sizes["B"], features, sizes["H"], directions=2)
            for features in (sizes["I"], 2 * sizes["H"])
        ],
        tiny={"T": 6, "B": 3, "I": 5, "H": 8},
    )


WORKLOAD = Workload(
    "tagger, packed",
    "Lample et al. 2016, Flair: 2 bidirectional layers",
    (_case("LSTM", nn.LSTM), _case("GRU", nn.GRU)),
)
