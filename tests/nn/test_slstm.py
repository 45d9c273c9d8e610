"""The sLSTM's modules against a loop of their paper, head by head."""

import inspect
import pickle

import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn import SLSTM, Recurrent, SLSTMCell, cells
from tests.support.problems import run_module
from tests.support.tolerances import assert_equal_in_float64

T, B, I, H, N = 6, 3, 5, 12, 4  # noqa: E741


class _Loop(nn.Module):
    """The oracle of one layer: each head is an sLSTM of its own, without a stabiliser.

    c, n and m of ours are those of this, divided by exp(m).
    """

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, hx):
        layer, size = self.module, H // N
        pre = x @ layer.weight_ih_l0.T + layer.bias_ih_l0 + layer.bias_hh_l0
        pre, matrix = pre.unflatten(-1, (4, N, size)), layer.weight_hh_l0.view(4, N, size, size)
        heads = []
        for head in range(N):
            own = slice(head * size, (head + 1) * size)
            h, c, n, m = (state[0, :, own] for state in hx)
            c, n, output = c * m.exp(), n * m.exp(), []
            for step in pre[:, :, :, head]:
                i, f, z, o = (step[:, g] + h @ matrix[g, head].T for g in range(4))
                m = torch.maximum(f.sigmoid().log() + m, i)
                c = f.sigmoid() * c + i.exp() * z.tanh()
                n = f.sigmoid() * n + i.exp()
                h = o.sigmoid() * c / n
                output.append(h)
            heads.append((torch.stack(output), h, c * (-m).exp(), n * (-m).exp(), m))
        output, *finals = (torch.cat(parts, -1) for parts in zip(*heads, strict=True))
        return output, tuple(final[None] for final in finals)


def _states(dtype=torch.float64):
    """h0, c0, n0 > 0 and m0."""
    h, c, n, m = torch.randn(4, 1, B, H, dtype=dtype)
    return h, c, n.abs() + 1, m


@pytest.mark.parametrize("backend", ["reference", "sequence", "cpp"])
def test_it_is_its_paper_by_heads(backend):
    module = SLSTM(I, H, num_heads=N, dtype=torch.float64, backend=backend)
    x, hx = torch.randn(T, B, I), _states()
    want = run_module(_Loop(module), x, hx)
    want = {name.replace("dmodule.", "d"): value for name, value in want.items()}
    assert_equal_in_float64(run_module(module, x, hx), want, backend)


def test_it_is_recurrent_of_its_cell():
    options = {"num_layers": 2, "bidirectional": True, "num_heads": 4, "dtype": torch.float64}
    module, plain = SLSTM(I, H, **options), Recurrent("slstm", I, H, **options)
    plain.load_state_dict(module.state_dict())
    x, lengths = torch.randn(T, B, I), torch.tensor([6, 0, 3])
    assert module.cell is plain.cell
    assert_equal_in_float64(
        run_module(module, x, lengths=lengths), run_module(plain, x, lengths=lengths)
    )
    other = pickle.loads(pickle.dumps(module))
    assert torch.equal(other(x.double())[0], module(x.double())[0])
    assert repr(module) == "SLSTM(5, 12, num_layers=2, bidirectional=True, num_heads=4)"


def test_one_step():
    layer, cell = SLSTM(I, H, num_heads=N), SLSTMCell(I, H, num_heads=N)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in layer.state_dict().items()})
    x, hx = torch.randn(T, B, I), None
    for step in x:
        hx = cell(step, hx)
    for got, want in zip(hx, layer(x)[1], strict=True):
        torch.testing.assert_close(got, want[0])


def test_signatures():
    for kind, base in ((SLSTM, Recurrent), (SLSTMCell, fused_rnn.RecurrentCell)):
        names = list(inspect.signature(base).parameters)[1:]
        assert list(inspect.signature(kind).parameters) == names


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_heads": 5}, ValueError, "num_heads: expected numbers that divide hidden_size 12"),
        ({"num_heads": 0}, ValueError, "num_heads: expected a number greater than zero, got 0"),
        ({"num_heads": 2.0}, TypeError, "num_heads: expected int, got float"),
        ({"num_layers": 0}, ValueError, "num_layers: expected a number greater than zero"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        SLSTM(I, H, **arguments)


def test_bad_states():
    with pytest.raises(RuntimeError, match=r"hx: expected 4 states \('h', 'c', 'n', 'm'\), got 2"):
        SLSTM(I, H)(torch.ones(T, B, I), (torch.ones(1, B, H),) * 2)
    assert cells.get("slstm").states == ("h", "c", "n", "m")
