"""Grid LSTM against a loop of its paper over time and depth."""

import pickle

import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn import GridLSTM
from tests.support.problems import run_module
from tests.support.tolerances import assert_equal_in_float64

T, B, I, H, L = 5, 3, 4, 6, 3  # noqa: E741


def _lstm(hidden, m, weight, bias):
    """Equation (1) of the paper: H, m to h', m', with the rows u, f, c, o in ``weight``."""
    u, f, c, o = (hidden @ weight.T + bias).split(H, -1)
    m = f.sigmoid() * m + u.sigmoid() * c.tanh()
    return (o.sigmoid() * m).tanh(), m


class _Loop(nn.Module):
    """The oracle: block after block, at each step from the bottom to the top."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, hx):
        grid = self.module
        states = [(h, m) for h, m in zip(*hx, strict=True)]
        output = []
        for step in x:
            h_d, m_d = (step @ grid.project.weight.T + grid.project.bias).split(H, -1)
            for layer in range(L):
                k = 0 if grid.tied else layer
                time, depth = grid.time[k], grid.depth[k]
                h_t, m_t = states[layer]
                weight = torch.cat([time.weight_ih_l0, time.weight_hh_l0], 1)
                bias = time.bias_ih_l0 + time.bias_hh_l0
                h_t, m_t = _lstm(torch.cat([h_d, h_t], -1), m_t, weight, bias)
                h_d, m_d = _lstm(torch.cat([h_t, h_d], -1), m_d, depth.weight, depth.bias)
                states[layer] = h_t, m_t
            output.append(h_d)
        return torch.stack(output), tuple(map(torch.stack, zip(*states, strict=True)))


@pytest.mark.parametrize("backend", ["reference", "sequence", "cpp"])
@pytest.mark.parametrize("tied", [False, True])
def test_it_is_its_paper(tied, backend):
    module = GridLSTM(I, H, L, tied=tied, dtype=torch.float64, backend=backend)
    assert len(module.time) == len(module.depth) == (1 if tied else L)
    x, hx = torch.randn(T, B, I), torch.randn(2, L, B, H)
    want = run_module(_Loop(module), x, tuple(hx))
    want = {name.replace("dmodule.", "d"): value for name, value in want.items()}
    assert_equal_in_float64(run_module(module, x, tuple(hx)), want, backend)


def test_layouts():
    module = GridLSTM(I, H, L, batch_first=True)
    x, (h, m) = torch.randn(B, T, I), torch.randn(2, L, B, H)
    output, (h_n, m_n) = module(x, (h, m))
    other = GridLSTM(I, H, L)
    other.load_state_dict(module.state_dict())
    torch.testing.assert_close(other(x.transpose(0, 1), (h, m))[0].transpose(0, 1), output)
    alone, (h_alone, m_alone) = module(x[0], (h[:, 0], m[:, 0]))
    torch.testing.assert_close(alone, output[0])
    torch.testing.assert_close(h_alone, h_n[:, 0])
    torch.testing.assert_close(m_alone, m_n[:, 0])
    zeros = torch.zeros(2, L, B, H)
    torch.testing.assert_close(module(x)[0], module(x, tuple(zeros))[0])
    assert torch.equal(pickle.loads(pickle.dumps(module))(x)[0], module(x)[0])
    assert not any("bias" in n for n, _ in GridLSTM(I, H, bias=False).named_parameters())
    assert "GridLSTM(\n  4, 6, num_layers=3, batch_first=True\n" in repr(module)
    assert all(p.abs().max() <= H**-0.5 for p in module.parameters())


def test_tied_is_a_flag():
    with pytest.raises(TypeError, match="tied: expected bool, got int"):
        GridLSTM(I, H, tied=1)
    assert "grid_lstm" in fused_rnn.cells.names()
