"""Zero-shot forecaster: the sLSTM of a block of TiRex.

NX-AI's TiRex: a context of 2,048 values in patches of 32, so 64 steps; 512 units in four heads. The
step is that of the package xlstm, ``slstm_forward_pointwise``, in which a head's recurrent kernel
multiplies its own units; "eager" walks over the steps as the package's ``slstm_forward`` does, and
"xlstm, vanilla" is that function, where the package is installed.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import logsigmoid

import fused_rnn

from .workload import FUSED, Case, Layer, Provider, Workload, as_built, normal, rebuilt


class Recurrence(nn.Module):
    """The cell; x (T, B, 4·H) are the gates' input parts, i, f, z, o."""

    def __init__(self, sizes):
        super().__init__()
        heads, size = sizes["heads"], sizes["H"] // sizes["heads"]
        self.kernel = nn.Parameter(torch.randn(heads, size, 4, size) * size**-0.5)
        self.bias = nn.Parameter(torch.randn(4, sizes["H"]))

    def forward(self, x):
        T, B, _ = x.shape
        heads, size = self.kernel.shape[:2]
        kernel = self.kernel.flatten(2)
        y = c = n = m = x.new_zeros(B, heads * size)
        bias = self.bias.flatten()
        outputs = []
        for t in range(T):
            product = torch.einsum("bhd,hdg->bhg", y.view(B, heads, size), kernel)
            product = product.view(B, heads, 4, size).transpose(1, 2).reshape(B, -1)
            y, c, n, m = self.step(x[t], product, bias, c, n, m)
            outputs.append(y)
        return torch.stack(outputs)

    def step(self, x, product, bias, c, n, m):
        return pointwise(x, product, bias, c, n, m)


def pointwise(x, product, bias, c, n, m):
    i, f, z, o = (x + product + bias).chunk(4, -1)
    f = m + logsigmoid(f)
    m = i if torch.all(n == 0.0) else torch.max(i, f)
    i = torch.minimum(torch.exp(i - m), torch.ones_like(i))
    f = torch.minimum(torch.exp(f - m), torch.ones_like(i))
    c, n = f * c + i * torch.tanh(z), f * n + i
    return torch.sigmoid(o) * c / n, c, n, m


class Compiled(Recurrence):
    """The pointwise step compiled by PyTorch, as the package compiles it."""

    def __init__(self, sizes):
        super().__init__(sizes)
        self._compiled = torch.compile(_without_branch)

    def step(self, *given):
        return self._compiled(*given)


def _without_branch(x, product, bias, c, n, m):
    # The question whether all n are 0 would break the graph at each step.
    i, f, z, o = (x + product + bias).chunk(4, -1)
    f = m + logsigmoid(f)
    m = torch.where((n == 0.0).all(), i, torch.max(i, f))
    i = torch.minimum(torch.exp(i - m), torch.ones_like(i))
    f = torch.minimum(torch.exp(f - m), torch.ones_like(i))
    c, n = f * c + i * torch.tanh(z), f * n + i
    return torch.sigmoid(o) * c / n, c, n, m


class Xlstm(Recurrence):
    """By the loop of the package xlstm, which keeps all states and gates."""

    def forward(self, x):
        from xlstm.blocks.slstm.src.vanilla import slstm_forward, slstm_pointwise_function_registry

        kernel = self.kernel.flatten(2).transpose(1, 2)
        states = x.new_zeros(4, x.shape[1], self.bias.shape[1])
        step = slstm_pointwise_function_registry["slstm"]
        return slstm_forward(x, states, kernel, self.bias.flatten(), step)[0][0, 1:]


class Fused(Recurrence):
    def forward(self, x):
        heads, size = self.kernel.shape[:2]
        matrix = self.kernel.permute(2, 0, 3, 1).reshape(-1, size)
        zero = x.new_zeros(x.shape[1], heads * size)
        given = {"input_bias": self.bias.flatten(), "num_heads": heads}
        return fused_rnn.scan("slstm", x, matrix, (zero,) * 4, **given)[0]


def _case(B):
    return Case(
        f"B {B}",
        {"T": 64, "B": B, "H": 512, "heads": 4},
        Recurrence,
        lambda sizes, generator: (normal(generator, sizes["T"], sizes["B"], 4 * sizes["H"]),),
        {
            "eager": Provider(as_built),
            "torch.compile of the step": Provider(rebuilt(Compiled)),
            "xlstm, vanilla": Provider(rebuilt(Xlstm), ("xlstm", "omegaconf", "einops")),
            FUSED: Provider(rebuilt(Fused)),
        },
        lambda sizes: [
            Layer("slstm", sizes["T"], sizes["B"], sizes["H"], sizes["H"], heads=sizes["heads"])
        ],
        tiny={"T": 5, "H": 16, "heads": 2, "B": min(B, 3)},
        in_torch=False,
    )


WORKLOAD = Workload(
    "sLSTM forecaster",
    "TiRex and xlstm: 4 heads of 128, 64 patches of 32",
    (_case(1), _case(32), _case(256)),
)
