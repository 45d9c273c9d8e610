"""What people do with the recurrent modules of torch.nn, done with ours in their place."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fused_rnn
from tests.support.tolerances import assert_equal_in_float64

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
    """Losses of Adam's steps on random tokens; the tag of a step is that of the token before."""
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


KINDS = {
    "RNN": (nn.RNN, fused_rnn.RNN),
    "LSTM": (nn.LSTM, fused_rnn.LSTM),
    "GRU": (nn.GRU, fused_rnn.GRU),
}
kinds = pytest.mark.parametrize("kind", KINDS)
backends = pytest.mark.parametrize("backend", ["auto", "sequence", "reference"])
made = pytest.mark.parametrize("how", ["module", "convert"])


def _pair(kind, how, backend=None, **options):
    """torch.nn's module and ours with the same weights, made as such or converted."""
    theirs, mine = KINDS[kind]
    options = {"dtype": torch.float64} | options
    module = theirs(3, 4, 2, **options)
    if how == "convert":
        return module, fused_rnn.convert(copy.deepcopy(module), backend=backend)
    other = mine(3, 4, 2, **options, backend=backend)
    other.load_state_dict(module.state_dict())
    return module, other


def _input():
    return torch.randn(T, B, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def _gradients(module):
    """Output and gradients of input and parameters, for a loss that looks at every step."""
    x = _input().requires_grad_()
    output = module(x)[0]
    inputs = {"x": x} | dict(module.named_parameters())
    found = torch.autograd.grad(output.square().sum(), list(inputs.values()))
    return {"output": output} | {f"d{n}": g for n, g in zip(inputs, found, strict=True)}


@made
@backends
@kinds
def test_memory_that_processes_share(kind, backend, how):
    theirs, mine = _pair(kind, how, backend)
    assert mine.share_memory() is mine
    assert all(p.is_shared() for p in mine.parameters())
    assert_equal_in_float64(_gradients(mine), _gradients(theirs))
    assert all(p.is_shared() for p in mine.parameters())


class _Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm", "old weight_norm", "own"])
@made
@backends
@kinds
def test_parametrized_weights(kind, backend, how, norm):
    theirs, mine = _pair(kind, how, backend)
    for module in (theirs, mine):
        for name in ("weight_hh_l0", "weight_ih_l1"):
            torch.manual_seed(4)
            if norm == "old weight_norm":
                with pytest.warns(FutureWarning, match="weight_norm"):
                    nn.utils.weight_norm(module, name)
            elif norm == "own":
                nn.utils.parametrize.register_parametrization(module, name, _Doubled())
            else:
                getattr(nn.utils.parametrizations, norm)(module, name)
        module.eval()  # where the power iteration of a spectral norm stands still
    assert_equal_in_float64(_gradients(mine), _gradients(theirs))
    if norm != "old weight_norm":
        for module in (theirs, mine):
            nn.utils.parametrize.remove_parametrizations(module, "weight_hh_l0")
        assert_equal_in_float64(_gradients(mine), _gradients(theirs))


class _Counted(nn.Module):
    """Changes with each evaluation, as the power iteration of a spectral norm does."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, weight):
        self.count += 1
        return weight.clone()


@pytest.mark.parametrize("call", ["plain", "lengths", "packed"])
@backends
@kinds
def test_parametrizations_are_evaluated_once_per_forward(kind, backend, call):
    _, mine = _pair(kind, "convert", backend)
    names = list(mine._parameters)
    counted = {name: _Counted() for name in names}
    for name, module in counted.items():
        nn.utils.parametrize.register_parametrization(mine, name, module)
        module.count = 0
    x, lengths = _input(), torch.tensor([3, T, 1, 4, 2])
    if call == "packed":
        mine(pack_padded_sequence(x, lengths, enforce_sorted=False))
    else:
        mine(x, **({"lengths": lengths} if call == "lengths" else {}))
    assert {module.count for module in counted.values()} == {1}


class _Twice(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        output, hx = self.module(x)
        return self.module(x.flip(0), hx)[0] + output, hx


@made
@backends
@kinds
def test_tied_weights(kind, backend, how):
    """Layers that share a matrix, of a module that is called twice."""
    theirs, mine = _pair(kind, how, backend)
    results = []
    for module in (theirs, mine):
        module.weight_hh_l1 = module.weight_hh_l0
        results.append(_gradients(_Twice(module)))
        assert "dmodule.weight_hh_l1" not in results[-1]
    assert_equal_in_float64(results[1], results[0])
    with torch.no_grad():
        mine.weight_hh_l0.zero_()
    assert not mine.weight_hh_l1.any()


@made
@backends
@kinds
def test_weights_that_are_not_contiguous(kind, backend, how):
    """No warning, and the parameters stay where and as they are."""
    theirs, mine = _pair(kind, how, backend)
    want = _gradients(theirs)
    for p in mine.parameters():
        if p.dim() == 2:
            p.data = torch.stack([p.detach().t(), p.detach().t()], -1)[..., 0].t()
            assert not p.is_contiguous()
    places = {name: (p.data_ptr(), p.stride()) for name, p in mine.named_parameters()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mine.flatten_parameters()
        got = _gradients(mine)
    assert_equal_in_float64(got, want)
    assert places == {name: (p.data_ptr(), p.stride()) for name, p in mine.named_parameters()}


@made
@backends
@kinds
def test_hooks(kind, backend, how):
    theirs, mine = _pair(kind, how, backend)
    results = []
    for module in (theirs, mine):
        seen = []
        module.register_forward_pre_hook(lambda m, args: (2 * args[0],))
        module.register_forward_hook(lambda m, args, result: (3 * result[0], result[1]))
        module.register_full_backward_hook(
            lambda m, dinput, doutput, seen=seen: seen.extend([*dinput, doutput[0]])
        )
        results.append(_gradients(module))
        assert len(seen) == 2
        results[-1] |= {f"seen.{i}": tensor for i, tensor in enumerate(seen)}
    assert_equal_in_float64(results[1], results[0])


@made
@backends
@kinds
def test_backward_in_evaluation(kind, backend, how):
    theirs, mine = _pair(kind, how, backend, dropout=0.5)
    assert_equal_in_float64(_gradients(mine.eval()), _gradients(theirs.eval()))


@made
@backends
@kinds
def test_backward_twice_and_changes_of_what_is_saved(kind, backend, how):
    _, mine = _pair(kind, how, backend)
    x = _input().requires_grad_()
    loss = mine(x)[0].square().sum()
    loss.backward(retain_graph=True)
    once = [x.grad.clone(), *(p.grad.clone() for p in mine.parameters())]
    loss.backward()
    for tensor, grad in zip((x, *mine.parameters()), once, strict=True):
        assert torch.equal(tensor.grad, 2 * grad)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    loss = mine(x)[0].square().sum()
    with torch.no_grad():
        mine.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("asked", ["lengths", "reset", "packed"])
@pytest.mark.parametrize("recompute", [False, True])
@backends
def test_same_bits_of_rows(backend, recompute, asked):
    """With the same seed of dropout, and without complaint under deterministic algorithms."""
    torch.use_deterministic_algorithms(True)  # the next test's start undoes it
    module = fused_rnn.LSTM(
        3, 4, 2, dropout=0.5, bidirectional=True, backend=backend, recompute=recompute
    )
    x, lengths = _input().float(), torch.tensor([3, T, 1, 4, 2])
    given = {"lengths": {"lengths": lengths}, "reset": {"reset": torch.rand(T, B) < 0.3}}
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        call = pack_padded_sequence(x, lengths, enforce_sorted=False) if asked == "packed" else x
        output = module(call, **given.get(asked, {}))[0]
        output = output.data if asked == "packed" else output
        gradients = torch.autograd.grad(output.square().sum(), list(module.parameters()))
        results.append((output, *gradients))
    assert all(torch.equal(a, b) for a, b in zip(*results[:2], strict=True))
    assert not torch.equal(results[0][0], results[2][0])
