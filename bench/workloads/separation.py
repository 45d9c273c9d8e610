"""Source separation: the three bidirectional LSTMs of Open-Unmix.

Stöter et al. 2019 (doi 10.21105/joss.01667), ``openunmix/model.py``: 512 features after the first
layer, 256 units per direction, dropout of 0.4 between layers; training has 16 pieces of 6 s, which
are 255 frames.
"""

from __future__ import annotations

from torch import nn

import fused_rnn

from .workload import FUSED, Case, Layer, Provider, Workload, as_built, normal


class Core(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.lstm = nn.LSTM(
            sizes["I"], sizes["H"], sizes["layers"], bidirectional=True, dropout=0.4
        )

    def forward(self, x):
        return self.lstm(x)[0]


def _layers(sizes):
    T, B, H = sizes["T"], sizes["B"], sizes["H"]
    return [
        Layer("lstm", T, B, 2 * H if layer else sizes["I"], H, directions=2)
        for layer in range(sizes["layers"])
    ]


OPEN_UNMIX = Case(
    "Open-Unmix",
    {"T": 255, "B": 16, "I": 512, "H": 256, "layers": 3},
    Core,
    lambda sizes, generator: (normal(generator, sizes["T"], sizes["B"], sizes["I"]),),
    {
        "torch.nn": Provider(as_built),
        FUSED: Provider(lambda model, sizes: fused_rnn.convert(model)),
    },
    _layers,
    cpu={"B": 2},
    tiny={"T": 5, "B": 2, "I": 8, "H": 8, "layers": 2},
)

WORKLOAD = Workload("source separation", "Open-Unmix: 3 bidirectional LSTMs", (OPEN_UNMIX,))
