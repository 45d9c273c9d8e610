"""What people do with the recurrent modules of torch.nn, done with ours in their place."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn

T, B = 7, 5


class Tagger(nn.Module):
    """Embedding, LSTM in both directions with dropout between its layers, a linear head."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 8)
        self.rnn = nn.LSTM(8, 12, 2, bidirectional=True, dropout=0.3)
        self.head = nn.Linear(24, 4)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(self.embedding(tokens), lengths, enforce_sorted=False)
        return self.head(pad_packed_sequence(self.rnn(packed)[0])[0])


def _losses(model, steps):
    """Of so many steps of Adam, on random tokens; each step's tag is that of the token before."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    generator, losses = torch.Generator().manual_seed(1), []
    torch.manual_seed(2)  # of the dropout
    for _ in range(steps):
        tokens = torch.randint(0, 8, (T, B), generator=generator)
        lengths = torch.randint(1, T + 1, (B,), generator=generator)
        lengths[0] = T
        tags = tokens.roll(1, 0) % 4
        tags[torch.arange(T)[:, None] >= lengths] = -100  # no loss there
        loss = functional.cross_entropy(model(tokens, lengths).flatten(0, 1), tags.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("backend", ["auto", "sequence"])
def test_a_converted_model_trains_step_for_step_like_the_original(backend):
    """With dropout's own random numbers, from the same seed: ours are drawn as torch.nn's are."""
    torch.manual_seed(0)
    original = Tagger()
    converted = fused_rnn.convert(copy.deepcopy(original), backend=backend)
    assert type(converted.rnn) is fused_rnn.LSTM
    want, got = _losses(original, 50), _losses(converted, 50)
    assert want[-5:].mean() < 0.8 * want[:5].mean()
    # float32; rounding that grows over 50 steps.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
