"""What stacks have in common whose layers pass on more than their output."""

from unittest import mock

import pytest
import torch
from torch import nn

from fused_rnn import DepthGatedLSTM, GridLSTM
from fused_rnn.nn import stacks
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
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_a_packed_sequence_is_its_rows(kind, batch_first, given):
    module = kind(I, H, 2, batch_first=batch_first, dtype=torch.float64)
    rows = [torch.randn(n, I, dtype=torch.float64, requires_grad=True) for n in (2, 5, 1)]
    hx = torch.randn(2, 2, B, H, dtype=torch.float64, requires_grad=True)
    packed = nn.utils.rnn.pack_sequence(rows, enforce_sorted=False)
    output, (h, m) = module(packed, tuple(hx) if given else None)
    outputs = nn.utils.rnn.unpack_sequence(output)
    inputs = (*rows, *module.parameters(), *([hx] if given else []))

    def gradients(tensors):
        return torch.autograd.grad(sum((t * t.cos()).sum() for t in tensors), inputs)

    alone = [module(row, tuple(hx[:, :, b]) if given else None) for b, row in enumerate(rows)]
    want = {f"output.{b}": single[0] for b, single in enumerate(alone)}
    want |= {f"h.{b}": single[1][0] for b, single in enumerate(alone)}
    want |= {f"m.{b}": single[1][1] for b, single in enumerate(alone)}
    got = {f"output.{b}": row for b, row in enumerate(outputs)}
    got |= {f"h.{b}": h[:, b] for b in range(B)} | {f"m.{b}": m[:, b] for b in range(B)}
    assert_equal_in_float64(got, want)
    pairs = zip(gradients(got.values()), gradients(want.values()), strict=True)
    for i, (mine, theirs) in enumerate(pairs):
        assert_equal_in_float64({str(i): mine}, {str(i): theirs})
    with pytest.raises(RuntimeError, match="lengths, reset: expected none with a PackedSequence"):
        module(packed, lengths=torch.tensor([1, 1, 1]))


@every_stack
def test_dropout_between_layers(kind):
    """Of what a layer hands up, in training; not of the last output, nor of the memory."""
    module = kind(I, H, 2, dropout=0.5)
    plain = kind(I, H, 2)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(T, B, I)
    assert "num_layers=2, dropout=0.5" in repr(module)
    assert torch.equal(module.eval()(x)[0], plain(x)[0])
    calls = []

    def dropped(output, p, training):
        calls.append((output.shape, p, training))
        return 2 * output

    with mock.patch.object(stacks.functional, "dropout", dropped):
        output, hn = module.train()(x)
    assert calls == [((T, B, H), 0.5, True)]
    assert not torch.equal(output, plain(x)[0])
    torch.testing.assert_close(hn[0][0], plain(x)[1][0][0])  # of the first layer
    assert module(x)[0].eq(0).float().mean() < 0.1  # the last output has no zeros
    with pytest.warns(UserWarning, match="dropout=0.5 acts between layers"):
        kind(I, H, dropout=0.5)


@every_stack
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batch_first": 1}, TypeError, "batch_first: expected bool, got int"),
        ({"num_layers": 0}, ValueError, "num_layers: expected a number greater than zero, got 0"),
        ({"backend": "fast"}, ValueError, "backend: expected one of auto, .*, got 'fast'"),
        ({"hidden_size": 0}, ValueError, "hidden_size: expected a number greater than zero, got 0"),
        ({"input_size": 0}, ValueError, "input_size: expected a number greater than zero, got 0"),
        ({"dropout": 1.5}, ValueError, "dropout: expected a probability from 0 to 1, got 1.5"),
        ({"bidirectional": 1}, TypeError, "bidirectional: expected bool, got int"),
        (
            {"bidirectional": True},
            ValueError,
            "bidirectional: expected False, got True: the layers",
        ),
    ],
)
def test_bad_arguments(kind, arguments, error, message):
    with pytest.raises(error, match=message):
        kind(**{"input_size": I, "hidden_size": H} | arguments)


X = torch.ones(T, B, I)
PACKED = nn.utils.rnn.pack_sequence([torch.ones(n, I) for n in (2, 4, 1)], enforce_sorted=False)


@every_stack
@pytest.mark.parametrize(
    ("input", "hx", "error", "message"),
    [
        (torch.ones(T, B, 2), None, RuntimeError, r"input_size = 4 features, got \(5, 3, 2\)"),
        (torch.ones(4), None, RuntimeError, "expected 2 or 3 dimensions"),
        ([X], None, TypeError, "input: expected a Tensor, got list"),
        (
            PACKED,
            (torch.ones(3, B, H),) * 2,
            RuntimeError,
            r"size\(0\) = 2 layers, got \(3, 3, 6\)",
        ),
        (X, torch.ones(2, B, H), RuntimeError, r"hx: expected 2 states .* got 1"),
        (X, (torch.ones(3, B, H),) * 2, RuntimeError, r"size\(0\) = 2 layers, got \(3, 3, 6\)"),
        (X, (torch.ones(2, B, 5),) * 2, RuntimeError, "hx: state h: expected shape"),
        (torch.ones(0, B, I), None, RuntimeError, "sequence length larger than 0"),
    ],
)
def test_bad_input(kind, input, hx, error, message):
    with pytest.raises(error, match=message):
        kind(I, H, 2)(input, hx)
