"""A recogniser of kraken's form: text lines as columns, LSTMs along both axes, CTC."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn
from tests.support.tolerances import assert_equal_in_float64
from tests.support.twins import assert_twins_agree, results, twins


class Transposed(nn.Module):
    """An LSTM along the width or the height of (N, C, H, W), perhaps its last output alone."""

    def __init__(self, inputs, hidden, along_height=False, last=False):
        super().__init__()
        self.along_height, self.last = along_height, last
        self.layer = nn.LSTM(inputs, hidden, bidirectional=not last, batch_first=True)

    def forward(self, x: Tensor, widths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        if self.along_height:
            x = x.transpose(2, 3)
        n, c, rows, steps = x.shape
        x = x.permute(0, 2, 3, 1).reshape(n * rows, steps, c)
        if widths is not None and rows == 1:
            packed = pack_padded_sequence(x, widths, batch_first=True, enforce_sorted=False)
            y, widths = pad_packed_sequence(self.layer(packed)[0], batch_first=True)
        else:
            y, _ = self.layer(x)
        y = y[:, -1:] if self.last else y
        y = y.reshape(n, rows, y.shape[1], -1).permute(0, 3, 1, 2)
        return y.transpose(2, 3) if self.along_height else y, widths


class Recognizer(nn.Module):
    """The network of a specification such as [1,8,0,1 Cr3,3,4 Lfys4 Lbx6 O1c5]."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.height = Transposed(4, 4, along_height=True, last=True)
        self.width = Transposed(4, 6)
        self.out = nn.Linear(12, 5)
        self.apply(self._start)

    @staticmethod
    def _start(module):
        """As kraken: orthogonal recurrent weights, by the class of the layer and its names."""
        if isinstance(module, nn.RNNBase):
            for name, parameter in module.named_parameters():
                if "weight_hh" in name:
                    nn.init.orthogonal_(parameter)

    def forward(self, x: Tensor, widths: Tensor | None = None):
        y, _ = self.height(self.conv(x).relu())
        y, widths = self.width(y, widths)
        return self.out(y.squeeze(2).transpose(1, 2)).log_softmax(-1), widths


X = torch.randn(3, 1, 8, 10, dtype=torch.float64)
WIDTHS = torch.tensor([10, 4, 7])


@pytest.mark.parametrize("widths", [None, WIDTHS], ids=["whole", "packed"])
def test_parity(widths):
    model = assert_twins_agree(Recognizer(), lambda model: model(X, widths)[0])
    assert isinstance(model.width.layer, fused_rnn.LSTM)


def test_a_step_with_ctc():
    labels, sizes, losses = torch.tensor([[1, 2], [3, 1], [2, 4]]), torch.tensor([2, 1, 2]), []

    def loss(model):
        y, widths = model(X, WIDTHS)
        return nn.functional.ctc_loss(y.transpose(0, 1), labels, widths, sizes)

    for model in twins(Recognizer()):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        first = results(model, loss)
        optimizer.step()
        losses.append(first | {"later": loss(model).detach()})
    assert_equal_in_float64(losses[1], losses[0])
    assert losses[1]["later"] < losses[1]["output"]


def test_initialisers_reach_ours():
    model = fused_rnn.convert(Recognizer())
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    model.apply(Recognizer._start)
    square = model.width.layer.weight_hh_l0.detach()
    torch.testing.assert_close(square.mT @ square, torch.eye(6))


@pytest.mark.filterwarnings("ignore")
def test_export():
    model, x = fused_rnn.convert(Recognizer()).eval(), X.float()
    graph = torch.export.export(model, (x,), dynamic_shapes=({3: torch.export.Dim("width")},))
    torch.testing.assert_close(graph.module()(x[..., :6])[0], model(x[..., :6])[0])
