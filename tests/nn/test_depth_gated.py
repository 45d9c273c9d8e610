"""The depth-gated LSTM against a loop of its paper over time and layers."""

import pickle

import pytest
import torch
from torch import nn

from fused_rnn import DepthGatedLSTM, cells
from tests.support.problems import run_module
from tests.support.tolerances import assert_equal_in_float64

T, B, I, H, L = 5, 3, 4, 6, 3  # noqa: E741


class _Loop(nn.Module):
    """The oracle: at each step, from the bottom to the top."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, hx):
        states = [(h, c) for h, c in zip(*hx, strict=True)]
        output = []
        for step in x:
            below = step @ self.module.project.weight.T
            for k, layer in enumerate(self.module.layers):
                h, c = states[k]
                pre = step @ layer.weight_ih_l0.T + layer.bias_ih_l0
                i, f, g, o, d = pre.split(H, -1)
                r_i, r_f, r_g, r_o = (h @ layer.weight_hh_l0.T + layer.bias_hh_l0).split(H, -1)
                d = d + layer.w_cd_l0 * c + (layer.w_ld_l0 * below if k else 0)
                memory = (f + r_f).sigmoid() * c + (i + r_i).sigmoid() * (g + r_g).tanh()
                c = d.sigmoid() * below + memory
                h = (o + r_o).sigmoid() * c.tanh()
                states[k] = h, c
                step, below = h, c
            output.append(step)
        return torch.stack(output), tuple(map(torch.stack, zip(*states, strict=True)))


@pytest.mark.parametrize("backend", ["reference", "sequence", "cpp"])
@pytest.mark.parametrize("layers", [1, L])
def test_it_is_its_paper(layers, backend):
    module = DepthGatedLSTM(I, H, layers, dtype=torch.float64, backend=backend)
    x, hx = torch.randn(T, B, I), torch.randn(2, layers, B, H)
    want = run_module(_Loop(module), x, tuple(hx))
    want = {name.replace("dmodule.", "d"): value for name, value in want.items()}
    assert_equal_in_float64(run_module(module, x, tuple(hx)), want, backend)


def test_layouts():
    module = DepthGatedLSTM(I, H, L, batch_first=True)
    x, (h, c) = torch.randn(B, T, I), torch.randn(2, L, B, H)
    output, (h_n, c_n) = module(x, (h, c))
    other = DepthGatedLSTM(I, H, L)
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other(x.transpose(0, 1), (h, c))[0].transpose(0, 1), output)
    alone, (h_alone, c_alone) = module(x[0], (h[:, 0], c[:, 0]))
    torch.testing.assert_close(alone, output[0])
    torch.testing.assert_close(h_alone, h_n[:, 0])
    torch.testing.assert_close(c_alone, c_n[:, 0])
    zeros = torch.zeros(2, L, B, H)
    torch.testing.assert_close(module(x)[0], module(x, tuple(zeros))[0])
    assert torch.equal(pickle.loads(pickle.dumps(module))(x)[0], module(x)[0])
    assert not any("bias" in n for n, _ in DepthGatedLSTM(I, H, bias=False).named_parameters())
    assert "DepthGatedLSTM(\n  4, 6, num_layers=3, batch_first=True\n" in repr(module)
    assert all(p.abs().max() <= H**-0.5 for p in module.parameters())
    names = [hasattr(layer, "w_ld_l0") for layer in module.layers]
    assert names == [False, True, True]
    assert cells.depth_gated_lstm() is cells.get("depth_gated_lstm")
