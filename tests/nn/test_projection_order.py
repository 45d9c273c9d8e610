"""Gates in another order in ``weight_ih`` than in the cell, with a projection: as torch.nn."""

import pytest
import torch

from fused_rnn import Cell, Recurrent, cells
from tests.support.tolerances import assert_equal_in_float64

REORDERED_LSTM = Cell(
    "reordered_lstm",
    cells.LSTM.step,
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    x_gates=("g", "o", "i", "f"),
)
ORDER = [REORDERED_LSTM.gates.index(gate) for gate in REORDERED_LSTM.x_gates]


def reordered(tensors):
    """torch.nn's parameters, or their gradients, in the order of the cell's ``x_gates``."""
    return {
        name: value.unflatten(0, (4, 5))[ORDER].flatten(0, 1) if name.endswith("ih_l0") else value
        for name, value in tensors.items()
    }


def results(layer, x):
    output, (h, c) = layer(x)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    loss = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum() + c.square().sum()
    gradients = torch.autograd.grad(loss, (x, *parameters))
    gradients = dict(zip(("x", *names), gradients, strict=True))
    return {"output": output.detach(), "h": h.detach(), "c": c.detach()}, gradients


@pytest.mark.parametrize("recompute", (False, True))
@pytest.mark.parametrize("backend", ("reference", "sequence", "cpp"))
def test_reordered_gates_with_a_projection(backend, recompute):
    options = {"proj_size": 2, "dtype": torch.float64}
    layer = Recurrent(REORDERED_LSTM, 3, 5, backend=backend, recompute=recompute, **options)
    peer = torch.nn.LSTM(3, 5, **options)
    layer.load_state_dict(reordered(peer.state_dict()))
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    (got, dgot), (want, dwant) = results(layer, x), results(peer, x)
    assert_equal_in_float64(got, want, backend)
    assert_equal_in_float64(dgot, reordered(dwant), backend)
