"""The example of attention: its equations, and that it learns where to look."""

import importlib.util
from pathlib import Path

import torch

PATH = Path(__file__).parents[2] / "examples" / "attention.py"
spec = importlib.util.spec_from_file_location("attention_example", PATH)
example = importlib.util.module_from_spec(spec)
spec.loader.exec_module(example)


def test_attention_is_the_weighted_sum_of_the_paper():
    attention = example.Attention(4, 3).double()
    annotations, h = torch.randn(5, 2, 4).double(), torch.randn(2, 3).double()
    context, weights = attention(annotations, attention.of_annotation(annotations), h)
    W, b = attention.of_annotation.weight, attention.of_annotation.bias
    U, v = attention.of_hidden.weight, attention.score.weight[0]
    for row in range(2):
        e = [v @ torch.tanh(W @ a + b + U @ h[row]) for a in annotations[:, row]]
        total = sum(torch.exp(value) for value in e)
        alpha = [torch.exp(value) / total for value in e]
        beta = torch.sigmoid(attention.gate.weight[0] @ h[row] + attention.gate.bias)
        picked = sum(part * a for part, a in zip(alpha, annotations[:, row], strict=True))
        torch.testing.assert_close(weights[:, row], torch.stack(alpha))
        torch.testing.assert_close(context[row], beta * picked)


def test_it_learns_where_to_look():
    model, losses = example.train(steps=100, symbols=5, length=4, rows=32, hidden=24)
    assert losses[-1] < losses[0] / 5
    source = torch.randint(5, (4, 100))
    with torch.no_grad():
        scores, weights = model(source)
    assert (scores.argmax(-1) == source.flip(0)).float().mean() > 0.9
    assert torch.allclose(weights.sum(1), torch.ones(4, 100))
