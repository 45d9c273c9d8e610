"""The block GRU's modules against a loop of its paper, whose matrices are dense."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import fused_rnn
from fused_rnn import BlockGRU, BlockGRUCell
from tests.support.problems import run_module
from tests.support.tolerances import assert_equal_in_float64

T, B, I, H, N = 5, 3, 4, 12, 3  # noqa: E741


class _Loop(nn.Module):
    """The oracle of one layer: one matrix of a row's three gates, with zeros between its blocks."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, hx):
        layer = self.module
        blocks = layer.weight_hh_l0.view(3, N, H // N, H // N)
        matrix = torch.cat([torch.block_diag(*gate) for gate in blocks])
        gains = torch.cat([layer.get_parameter(f"{name}_l0") for name in layer.cell.params])
        h, outputs = hx[0], []
        for row in x:
            pre = functional.linear(row, layer.weight_ih_l0, layer.bias_ih_l0)
            pre = pre + functional.linear(h, matrix, layer.bias_hh_l0)
            r, n, u = functional.rms_norm(pre, (3 * H,), gains, eps=1e-4).chunk(3, -1)
            u = torch.sigmoid(u - 1)
            h = u * torch.tanh(torch.sigmoid(r) * n) + (1 - u) * h
            outputs.append(h)
        return torch.stack(outputs), h[None]


@pytest.mark.parametrize("backend", ["reference", "sequence", "cpp"])
def test_it_is_its_paper(backend):
    module = BlockGRU(I, H, num_heads=N, dtype=torch.float64, backend=backend)
    for name in module.cell.params:
        nn.init.normal_(module.get_parameter(f"{name}_l0"))
    x, hx = torch.randn(T, B, I), torch.randn(1, B, H)
    want = run_module(_Loop(module), x, hx)
    want = {name.replace("dmodule.", "d"): value for name, value in want.items()}
    assert_equal_in_float64(run_module(module, x, hx), want, backend)


def test_one_step():
    layer, cell = BlockGRU(I, H, num_heads=N), BlockGRUCell(I, H, num_heads=N)
    cell.load_state_dict({n.removesuffix("_l0"): v for n, v in layer.state_dict().items()})
    x = torch.randn(B, I)
    torch.testing.assert_close(cell(x), layer(x[None])[1][0])
    assert repr(cell) == "BlockGRUCell(4, 12, num_heads=3)"
    assert isinstance(layer, fused_rnn.Recurrent)
