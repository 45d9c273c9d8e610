"""A user's program, for the type checker: ``make types`` checks it, and a test runs it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from typing_extensions import assert_type

import fused_rnn


class Tagger(nn.Module):
    def __init__(self, words: int, tags: int):
        super().__init__()
        self.embed = nn.Embedding(words, 8)
        self.lstm = fused_rnn.LSTM(8, 16, 1, bidirectional=True, backend="auto")
        self.tag = nn.Linear(32, tags)

    def forward(self, sentence: Tensor) -> Tensor:
        embedded: Tensor = self.embed(sentence)
        output, (h, c) = self.lstm(embedded)
        assert_type(output, Tensor)
        assert_type(h, Tensor)
        assert_type(c, Tensor)
        return self.tag(output)


def train() -> float:
    model = Tagger(words=10, tags=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sentence, tags = torch.randint(10, (5, 2)), torch.randint(3, (5, 2))
    loss = nn.functional.cross_entropy(model(sentence).flatten(0, 1), tags.flatten())
    loss.backward()
    optimizer.step()
    return loss.item()


def layers() -> None:
    x, lengths = torch.randn(5, 2, 3), torch.tensor([5, 2])
    gru = fused_rnn.GRU(3, 4, reset_after=False)
    output, h = gru(x, None, lengths)
    assert_type((output, h), tuple[Tensor, Tensor])
    outputs, _ = gru(x, h, return_states=True)
    assert_type(outputs, tuple[Tensor, ...])
    packed, _ = gru(pack_sequence([torch.randn(5, 3), torch.randn(2, 3)]))
    assert_type(packed, PackedSequence)

    cell = fused_rnn.LSTMCell(3, 4, bias=False)
    state = cell(x[0])
    assert_type(state, tuple[Tensor, Tensor])
    h, _ = cell(x[1], state)
    assert_type(h, Tensor)
    peephole, rnn = fused_rnn.PeepholeLSTM(3, 4, peepholes="fo"), fused_rnn.RNN(3, 4, 1, "relu")
    assert_type(peephole(x)[1], tuple[Tensor, Tensor])
    assert_type(rnn(x)[1], Tensor)
    stack = fused_rnn.DepthGatedLSTM(3, 4, 2, dropout=0.1)
    output, (h, c) = stack(torch.randn(5, 2, 3))
    assert_type(output, Tensor)
    assert_type(c, Tensor)
    packed, _ = stack(nn.utils.rnn.pack_sequence([torch.randn(5, 3)]))
    assert_type(packed, nn.utils.rnn.PackedSequence)


def update_gate(pre: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    c, g = pre
    (h,) = state
    gate = torch.sigmoid(g)
    return (gate * h + (1 - gate) * torch.tanh(c),)


def own_cell() -> None:
    cell = fused_rnn.Cell("ugrnn", update_gate, gates=("c", "g"), states=("h",))
    layer = fused_rnn.Recurrent(cell, 3, 4, num_layers=2)
    output, _ = layer(torch.randn(5, 2, 3))
    assert_type(output, Tensor)
    weight, h = torch.randn(8, 4, requires_grad=True), torch.zeros(2, 4)
    output, finals = fused_rnn.scan(cell, torch.randn(5, 2, 8), weight, h)
    assert_type(output, Tensor)
    assert_type(finals, tuple[Tensor, ...])
    x, weight = torch.randn(5, 2, 16), torch.randn(16, 4)
    outputs, _ = fused_rnn.scan("lstm", x, weight, (h, h), return_states=True)
    assert_type(outputs, tuple[Tensor, ...])
    print(cell.name, built_in())


def built_in() -> list[str]:
    found = [fused_rnn.cells.get(name) for name in fused_rnn.cells.names()]
    assert_type(found, list[fused_rnn.Cell])
    return [cell.name for cell in found]


def converted() -> None:
    report: list[fused_rnn.Conversion] = []
    model = fused_rnn.convert(
        nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 4)), backend="sequence", report=report
    )
    assert_type(model, nn.Module)
    with fused_rnn.use_backend("reference"), fused_rnn.fast_activations():
        print(report[0].after, fused_rnn.revert(model))
    print(fused_rnn.explain("lstm", T=10, B=2, H=4).backend)


def main() -> None:
    print(train())
    layers()
    own_cell()
    converted()


if __name__ == "__main__":
    main()
