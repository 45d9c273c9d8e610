"""World model: the block GRU of DreamerV3's recurrent state-space model.

Hafner et al. 2023 (arXiv 2301.04104): 512 units in 8 blocks, batches of 16 sequences of 64 steps;
512 steps are a long imagined or replayed sequence. "eager" walks over the steps, with one batched
product of the blocks, the norm over all gates, and the gated update. torchrl's
``DreamerV3BlockGRU`` projects its state before the product, so it is another function.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

import fused_rnn

from .workload import FUSED, Case, Layer, Provider, Workload, as_built, normal, rebuilt


class Core(nn.Module):
    """x (T, B, I) to h (T, B, H); the gates are r, n, u."""

    def __init__(self, sizes):
        super().__init__()
        features, H, blocks = sizes["I"], sizes["H"], sizes["blocks"]
        self.blocks = blocks
        self.weight = nn.Parameter(torch.randn(3 * H, features) * features**-0.5)
        self.bias = nn.Parameter(torch.zeros(3 * H))
        self.kernel = nn.Parameter(torch.randn(blocks, H // blocks, 3, H // blocks) * H**-0.5)
        self.gain = nn.Parameter(torch.ones(3 * H))

    def forward(self, x):
        parts = functional.linear(x, self.weight, self.bias)
        h = x.new_zeros(x.shape[1], len(self.gain) // 3)
        kernel, outputs = self.kernel.flatten(2), []
        for part in parts.unbind():
            h = self.step(part, h, kernel, self.gain)
            outputs.append(h)
        return torch.stack(outputs)

    def step(self, *given):
        return step(*given)


def step(part, h, kernel, gain):
    B, blocks = len(h), len(kernel)
    product = torch.bmm(h.view(B, blocks, -1).transpose(0, 1), kernel)
    product = product.view(blocks, B, 3, -1).permute(1, 2, 0, 3).reshape(B, -1)
    pre = functional.rms_norm(part + product, gain.shape, gain, eps=1e-4)
    r, n, u = pre.chunk(3, -1)
    u = torch.sigmoid(u - 1)
    return u * torch.tanh(torch.sigmoid(r) * n) + (1 - u) * h


class Compiled(Core):
    def __init__(self, sizes):
        super().__init__(sizes)
        self._compiled = torch.compile(step)

    def step(self, *given):
        return self._compiled(*given)


class Fused(Core):
    def forward(self, x):
        size = self.kernel.shape[1]
        matrix = self.kernel.permute(2, 0, 3, 1).reshape(-1, size)
        h = x.new_zeros(x.shape[1], size * self.blocks)
        given = {"input_weight": self.weight, "input_bias": self.bias, "num_heads": self.blocks}
        return fused_rnn.scan("block_gru", x, matrix, h, params=self.gain.chunk(3), **given)[0]


def _case(T):
    return Case(
        f"T {T}",
        {"T": T, "B": 16, "I": 512, "H": 512, "blocks": 8},
        Core,
        lambda sizes, generator: (normal(generator, sizes["T"], sizes["B"], sizes["I"]),),
        {
            "eager": Provider(as_built),
            "torch.compile of the step": Provider(rebuilt(Compiled)),
            FUSED: Provider(rebuilt(Fused)),
        },
        lambda sizes: [
            Layer("block_gru", *(sizes[k] for k in ("T", "B", "I", "H")), heads=sizes["blocks"])
        ],
        cpu={"B": 4} if T > 64 else {},
        tiny={"T": 5 + T // 512, "B": 2, "I": 8, "H": 16, "blocks": 2},
        in_torch=False,
    )


WORKLOAD = Workload(
    "world model, block GRU", "DreamerV3: 512 units in 8 blocks", (_case(64), _case(512))
)
