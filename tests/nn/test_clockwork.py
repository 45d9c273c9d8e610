"""The clockwork RNN's module against a loop of its paper, unit by unit."""

import pickle

import pytest
import torch
from torch import nn

from fused_rnn import ClockworkRNN, Recurrent, cells
from tests.support.problems import run_module
from tests.support.tolerances import assert_equal_in_float64

T, B, I, H = 7, 3, 4, 7  # noqa: E741
PERIODS = [1, 1, 1, 2, 2, 4, 4]  # of three groups


class _Loop(nn.Module):
    """The oracle of layers in both directions: each unit, step by step, hears the slower ones."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, hx):
        finals = []
        for layer in range(self.module.num_layers):
            both = []
            for end in (f"_l{layer}", f"_l{layer}_reverse"):
                backward, steps = end.endswith("reverse"), []
                y = hx[len(finals)]
                for t, at in enumerate(x.flip(0) if backward else x):
                    y = self._step(at, y, t, end)
                    steps.append(y)
                finals.append(y)
                both.append(torch.stack(steps[::-1] if backward else steps))
            x = torch.cat(both, -1)
        return x, torch.stack(finals)

    def _step(self, x, y, t, end):
        w, r, b, c = (
            getattr(self.module, name + end)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        units = []
        for i, period in enumerate(PERIODS):
            heard = sum(r[i, j] * y[:, j] for j in range(H) if PERIODS[j] >= period)
            units.append(y[:, i] if t % period else (x @ w[i] + heard + b[i] + c[i]).tanh())
        return torch.stack(units, -1)


@pytest.mark.parametrize("backend", ["reference", "sequence", "cpp"])
def test_it_is_its_paper(backend):
    options = {"num_layers": 2, "bidirectional": True, "dtype": torch.float64}
    module = ClockworkRNN(I, H, groups=3, backend=backend, **options)
    x, hx = torch.randn(T, B, I), torch.randn(4, B, H)
    want = run_module(_Loop(module), x, hx)
    want = {name.replace("dmodule.", "d"): value for name, value in want.items()}
    assert_equal_in_float64(run_module(module, x, hx), want, backend)


def test_it_is_recurrent_of_its_cell():
    module, plain = ClockworkRNN(I, 18), Recurrent("clockwork_rnn", I, 18)
    assert module.cell is plain.cell
    plain.load_state_dict(module.state_dict())
    assert module.period_l0.tolist() == [2**k for k in range(9) for _ in range(2)]
    x = torch.randn(T, B, I)
    assert torch.equal(module(x)[0], plain(x)[0])
    assert repr(module) == "ClockworkRNN(4, 18)"
    assert repr(ClockworkRNN(4, 18, groups=2)) == "ClockworkRNN(4, 18, groups=2)"
    some = ClockworkRNN(I, H, groups=3)
    assert torch.equal(pickle.loads(pickle.dumps(some))(x)[0], some(x)[0])
    assert some.cell.key != cells.get("clockwork_rnn").key


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groups": 0}, ValueError, "groups: expected at least 1, got 0"),
        ({"groups": 2.5}, TypeError, "groups: expected int, got float"),
        ({"num_heads": 7}, ValueError, "num_heads: a function makes the matrix of stage"),
        ({"proj_size": 2}, ValueError, "proj_size: cell 'clockwork_rnn' cannot have a projection"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ClockworkRNN(I, H, **arguments)
