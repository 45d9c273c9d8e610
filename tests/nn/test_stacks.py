"""What stacks have in common whose layers pass on more than their output."""

import pytest
import torch
from torch import nn

from fused_rnn import DepthGatedLSTM, GridLSTM
from tests.support.tolerances import assert_equal_in_float64

T, B, I, H = 5, 3, 4, 6  # noqa: E741
every_stack = pytest.mark.parametrize("kind", [DepthGatedLSTM, GridLSTM])


@every_stack
@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_and_resets(kind, batch_first):
    module = kind(I, H, 2, batch_first=batch_first, dtype=torch.float64)
    x, lengths = torch.randn(B, T, I, dtype=torch.float64), [5, 0, 3]
    reset = torch.zeros(B, T, dtype=torch.bool)
    reset[0, 2] = True
    x[2, 3:] = torch.nan
    given = (x, reset) if batch_first else (x.transpose(0, 1), reset.t())
    output, (h, m) = module(given[0], None, torch.tensor(lengths), given[1])
    output = output if batch_first else output.transpose(0, 1)
    for b, begin, end in ((0, 0, 2), (0, 2, 5), (2, 0, 3)):
        want, (h_n, m_n) = module(x[b, begin:end])
        assert_equal_in_float64({"output": output[b, begin:end]}, {"output": want})
        if end == lengths[b]:
            assert_equal_in_float64({"h": h[:, b], "m": m[:, b]}, {"h": h_n, "m": m_n})
    assert not output[1].any()
    assert not output[2, 3:].any()
    output.sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


@every_stack
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_first": 1}, TypeError, "batch_first: expected bool, got int"),
        ({"num_layers": 0}, ValueError, "num_layers: expected a number greater than zero, got 0"),
        ({"backend": "fast"}, ValueError, "backend: expected one of auto, .*, got 'fast'"),
        ({"hidden_size": 0}, ValueError, "hidden_size: expected a number greater than zero, got 0"),
        ({"input_size": 0}, ValueError, "input_size: expected a number greater than zero, got 0"),
    ],
)
def test_bad_arguments(kind, arguments, error, message):
    with pytest.raises(error, match=message):
        kind(**{"input_size": I, "hidden_size": H} | arguments)


X = torch.ones(T, B, I)


@every_stack
@pytest.mark.parametrize(
    ("input", "hx", "error", "message"),
    [
        (torch.ones(T, B, 2), None, RuntimeError, r"input_size = 4 features, got \(5, 3, 2\)"),
        (torch.ones(4), None, RuntimeError, "expected 2 or 3 dimensions"),
        (nn.utils.rnn.pack_sequence([torch.ones(2, I)]), None, TypeError, "got PackedSequence"),
        (X, torch.ones(2, B, H), RuntimeError, r"hx: expected 2 states .* got 1"),
        (X, (torch.ones(3, B, H),) * 2, RuntimeError, r"size\(0\) = 2 layers, got \(3, 3, 6\)"),
        (X, (torch.ones(2, B, 5),) * 2, RuntimeError, "hx: state h: expected shape"),
        (torch.ones(0, B, I), None, RuntimeError, "sequence length larger than 0"),
    ],
)
def test_bad_input(kind, input, hx, error, message):
    with pytest.raises(error, match=message):
        kind(I, H, 2)(input, hx)
