"""Gates in another order in ``weight_ih`` than in the cell, with a projection, by a loop."""

import torch
from tolerances import assert_equal_in_float64

from fused_rnn import Cell, Recurrent, cells

REORDERED_LSTM = Cell(
    "reordered_lstm",
    cells.LSTM.step,
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    x_gates=("g", "o", "i", "f"),
)


def test_reordered_gates_with_a_projection():
    """As torch.nn's LSTM whose rows of weight_ih are put in the order of the cell's x_gates."""
    layer = Recurrent(REORDERED_LSTM, 3, 5, proj_size=2, dtype=torch.float64)
    peer = torch.nn.LSTM(3, 5, proj_size=2, dtype=torch.float64)
    order = [REORDERED_LSTM.x_gates.index(gate) for gate in REORDERED_LSTM.gates]
    x = torch.randn(4, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        for name, tensor in peer.named_parameters():
            value = dict(layer.named_parameters())[name]
            if name.startswith(("weight_ih", "bias_ih")):
                value = value.unflatten(0, (4, 5))[order].flatten(0, 1)
            tensor.copy_(value)
    want = peer(x)
    for backend in ("reference", "sequence", "cpp"):
        layer.backend = backend
        got = layer(x)
        pairs = {"output": (got[0], want[0]), "h": (got[1][0], want[1][0])}
        assert_equal_in_float64(
            {name: pair[0].detach() for name, pair in pairs.items()},
            {name: pair[1].detach() for name, pair in pairs.items()},
            backend,
        )
