"""Soft attention over a memory, as in Show, Attend and Tell: each step picks from a collection.

    python examples/attention.py

An LSTM decoder writes a sequence of symbols in reverse. At each step it looks at the outputs of a
bidirectional encoder: Xu et al. 2015 (arXiv 1502.03044), section 3.1.2, with its gating scalar. The
encoder is one call of a layer; the decoder takes one step per symbol, since what a step attends to
depends on the step before.
"""

from __future__ import annotations

import argparse
import os

# Idle threads give their core away: on a busy machine that is ten times as fast.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from torch.nn import functional

import fused_rnn


class Attention(nn.Module):
    """Σ_i α_i a_i over the annotations a, with α = softmax of an additive score of a_i and h."""

    def __init__(self, annotation_size: int, hidden_size: int):
        super().__init__()
        self.of_annotation = nn.Linear(annotation_size, hidden_size)
        self.of_hidden = nn.Linear(hidden_size, hidden_size, bias=False)
        self.score = nn.Linear(hidden_size, 1, bias=False)
        self.gate = nn.Linear(hidden_size, 1)

    def forward(self, annotations: Tensor, keys: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            annotations: (L, B, A), the memory.
            keys: ``of_annotation(annotations)``, which is the same at every step.
            h: (B, H), of the decoder after the step before.

        Returns:
            context: (B, A), weighed by the gate β.
            weights: (L, B), the α.
        """
        weights = self.score(torch.tanh(keys + self.of_hidden(h))).squeeze(-1).softmax(0)
        context = (weights.unsqueeze(-1) * annotations).sum(0)
        return torch.sigmoid(self.gate(h)) * context, weights


class Translator(nn.Module):
    """A bidirectional encoder, and an LSTM decoder that attends to its outputs."""

    def __init__(self, symbols: int, hidden_size: int):
        super().__init__()
        annotation_size = 2 * hidden_size
        self.symbols = symbols
        self.embed = nn.Embedding(symbols + 1, hidden_size)  # the last one begins a sequence
        self.encoder = fused_rnn.LSTM(hidden_size, hidden_size, bidirectional=True)
        self.attention = Attention(annotation_size, hidden_size)
        self.start = nn.Linear(annotation_size, 2 * hidden_size)
        self.decoder = fused_rnn.LSTMCell(hidden_size + annotation_size, hidden_size)
        self.output = nn.Linear(hidden_size + annotation_size, symbols)

    def forward(self, source: Tensor, target: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Decode as many symbols as ``source`` has.

        Args:
            source: (L, B), symbols.
            target: (L, B), what the decoder is told to have written; None for its own choices.

        Returns:
            scores: (L, B, symbols).
            weights: (L, L, B), of each step for each annotation.
        """
        annotations, _ = self.encoder(self.embed(source))
        keys = self.attention.of_annotation(annotations)
        h, c = torch.tanh(self.start(annotations.mean(0))).chunk(2, -1)
        written = torch.full_like(source[0], self.symbols)
        scores, weights = [], []
        for step in range(len(source)):
            context, alpha = self.attention(annotations, keys, h)
            h, c = self.decoder(torch.cat([self.embed(written), context], -1), (h, c))
            scores.append(self.output(torch.cat([h, context], -1)))
            weights.append(alpha)
            written = scores[-1].argmax(-1) if target is None else target[step]
        return torch.stack(scores), torch.stack(weights)


def train(
    steps: int = 200, symbols: int = 10, length: int = 8, rows: int = 64, hidden: int = 48
) -> tuple[Translator, list[float]]:
    """Train to write random sequences in reverse; returns the model and the losses."""
    model, losses = Translator(symbols, hidden), []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for step in range(steps):
        source = torch.randint(symbols, (length, rows))
        target = source.flip(0)
        scores, _ = model(source, target)
        loss = functional.cross_entropy(scores.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 0:
            print(f"step {step:4}  loss {losses[-1]:.3f}")
    return model, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    torch.manual_seed(0)
    model, _ = train(parser.parse_args().steps)
    source = torch.randint(model.symbols, (8, 256))
    with torch.no_grad():
        scores, weights = model(source)
    right = (scores.argmax(-1) == source.flip(0)).float().mean().item()
    print(f"symbols written right, on its own: {100 * right:.1f} %")
    print("where it looks, per step the weights of the eight annotations, in tenths:")
    for row in (10 * weights[:, :, 0]).round().int().tolist():
        print("  " + " ".join(f"{weight:2}" if weight else " ." for weight in row))


if __name__ == "__main__":
    main()
