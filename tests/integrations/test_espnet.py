"""An encoder of ESPnet's form: a projected pyramid of packed layers found by name, and a language
model that asks which layer it holds."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn
from tests.support.tolerances import assert_equal_in_float64
from tests.support.twins import assert_twins_agree, twins


class Pyramid(nn.Module):
    """Its ``RNNP``: one-layer RNNs in a row, each projected, packed and subsampled."""

    def __init__(self, kind, inputs=4, hidden=6, projected=5, subsample=(1, 2, 1)):
        super().__init__()
        self.subsample = subsample
        for i, _ in enumerate(subsample):
            rnn = kind(inputs if i == 0 else projected, hidden, 1, bidirectional=True)
            rnn.batch_first = True
            setattr(self, f"birnn{i}", rnn)
            setattr(self, f"bt{i}", nn.Linear(2 * hidden, projected))

    def forward(self, x: Tensor, lengths: Tensor, before=None):
        states = []
        for i, step in enumerate(self.subsample):
            rnn = getattr(self, f"birnn{i}")
            rnn.flatten_parameters()
            packed = pack_padded_sequence(x, lengths.cpu(), batch_first=True)
            y, state = rnn(packed, hx=None if before is None else before[i])
            y, lengths = pad_packed_sequence(y, batch_first=True)
            y, lengths = y[:, ::step], (lengths + step - 1) // step
            x = torch.tanh(getattr(self, f"bt{i}")(y))
            states.append(state)
        return x, lengths, states


class Language(nn.Module):
    """Its language model for decoding: states per hypothesis, by the class of the layer."""

    def __init__(self, kind):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(5, 4), kind(4, 6, 2, batch_first=True)
        self.decoder = nn.Linear(6, 5)

    def zero_state(self):
        zeros = self.decoder.weight.new_zeros(2, 6)
        return (zeros, zeros) if isinstance(self.rnn, nn.LSTM) else zeros

    def batch_score(self, ys: Tensor, states: list):
        states = [self.zero_state() if s is None else s for s in states]
        if isinstance(self.rnn, nn.LSTM):
            hx = tuple(torch.stack(of_one, 1) for of_one in zip(*states, strict=True))
        else:
            hx = torch.stack(states, 1)
        y, hx = self.rnn(self.embed(ys[:, -1:]), hx)
        if isinstance(self.rnn, nn.LSTM):
            states = list(zip(hx[0].unbind(1), hx[1].unbind(1), strict=True))
        else:
            states = list(hx.unbind(1))
        return self.decoder(y[:, -1]).log_softmax(-1), states


KINDS = pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU], ids=["LSTM", "GRU"])
X, LENGTHS = torch.randn(3, 8, 4, dtype=torch.float64), torch.tensor([8, 5, 2])


@KINDS
def test_encoder(kind):
    assert_twins_agree(Pyramid(kind), lambda model: model(X, LENGTHS)[0])

    def goes_on(model):
        _, _, states = model(X, LENGTHS)
        return model(X, LENGTHS, states)[0]

    model = assert_twins_agree(Pyramid(kind), goes_on)
    assert type(model.birnn1) is getattr(fused_rnn, kind.__name__)


@KINDS
def test_language_model(kind):
    """``convert`` sees the question and gives the layer torch.nn's class, so decoding is right."""
    outputs = []
    for model in twins(Language(kind)):
        states, scores = [None] * 3, []
        for ys in torch.tensor([[1, 2, 3], [0, 4, 1]]):
            score, states = model.batch_score(ys[:, None], states)
            scores.append(score.detach())
        outputs.append({"scores": torch.stack(scores)})
    assert_equal_in_float64(outputs[1], outputs[0])


@KINDS
def test_a_training_step(kind):
    losses = []
    for model in twins(Pyramid(kind)):
        optimizer = torch.optim.Adadelta(model.parameters())
        for _ in range(2):
            loss = model(X, LENGTHS)[0].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append({"loss": loss.detach()})
    assert_equal_in_float64(losses[1], losses[0])


@KINDS
@pytest.mark.filterwarnings("ignore")
def test_export(kind):
    """A language model by torch.jit.trace, which ESPnet's deployments use."""
    model = fused_rnn.convert(Language(kind), torch_classes=False).eval()
    layer, x = model.rnn, torch.randn(2, 3, 4)
    traced = torch.jit.trace(layer, (x,))
    other = torch.randn(1, 5, 4)
    torch.testing.assert_close(traced(other)[0], layer(other)[0])
