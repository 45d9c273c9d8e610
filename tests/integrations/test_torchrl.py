"""torchrl's LSTMModule and GRUModule: recurrent mode with resets, one step, a training step."""

import copy

import pytest
import torch
from torch import nn

import fused_rnn
from tests.support.tolerances import assert_equal_in_float64
from tests.support.twins import assert_same_weights

modules = pytest.importorskip("torchrl.modules", reason="torchrl is not installed")
data = pytest.importorskip("tensordict", reason="tensordict is not installed")

T, B, INPUT, H = 5, 3, 4, 6
KINDS = pytest.mark.parametrize("kind", ["lstm", "gru"])


def _pair(kind, layers=2):
    """torchrl's module around torch.nn's layer, and the same converted."""
    states = ("h", "c") if kind == "lstm" else ("h",)
    layer = getattr(nn, kind.upper())(INPUT, H, layers, batch_first=True, dtype=torch.float64)
    original = getattr(modules, f"{kind.upper()}Module")(
        **{kind: layer},
        in_keys=["x", *states],
        out_keys=["y", *[("next", state) for state in states]],
    )
    return original, fused_rnn.convert(copy.deepcopy(original))


def _rollout(kind, layers=2):
    """A batch of rows, one of which has an episode's start in the middle."""
    starts = torch.zeros(B, T, 1, dtype=torch.bool)
    starts[:, 0] = starts[1, 3] = True
    states = ("h", "c") if kind == "lstm" else ("h",)
    given = {s: torch.randn(B, T, layers, H, dtype=torch.float64) for s in states}
    return given | {"x": torch.randn(B, T, INPUT, dtype=torch.float64), "is_init": starts}


@KINDS
def test_recurrent_mode(kind):
    pair, given, results = _pair(kind), _rollout(kind), []
    calls = []
    getattr(pair[1], kind).register_forward_hook(lambda *_: calls.append(1))
    for module in pair:
        with modules.set_recurrent_mode(True):
            output = module(data.TensorDict(dict(given), [B, T]))
        found = torch.autograd.grad(output["y"].square().sum(), list(module.parameters()))
        names = dict(module.named_parameters())
        results.append({"y": output["y"], **dict(zip(names, found, strict=True))})
    assert_equal_in_float64(results[1], results[0])
    assert calls


@KINDS
def test_one_step_of_a_policy(kind):
    pair, given = _pair(kind), _rollout(kind)
    step = {key: value[:, 0] for key, value in given.items()}
    outputs = [module(data.TensorDict(dict(step), [B])) for module in pair]
    keys = [key for key in outputs[0].keys(True, True) if key not in given]
    got, want = ({str(key): output[key] for key in keys} for output in reversed(outputs))
    assert_equal_in_float64(got, want)


@KINDS
def test_training(kind):
    pair = _pair(kind)
    given = [_rollout(kind) for _ in range(3)]
    before = copy.deepcopy(pair[1])
    for module in pair:
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
        for batch in given:
            with modules.set_recurrent_mode(True):
                loss = module(data.TensorDict(dict(batch), [B, T]))["y"].square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert_same_weights(pair[1], pair[0], atol=1e-9)
    moved = zip(pair[1].parameters(), before.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in moved)


@KINDS
def test_backends_are_a_fixed_set(kind):
    """No backend of ours can be registered there: the layer is where ours comes in."""
    with pytest.raises(ValueError, match="must be one of 'auto', 'pad', 'scan' or 'triton'"):
        getattr(modules, f"{kind.upper()}Module")(
            INPUT, H, in_key="x", out_key="y", recurrent_backend="fused_rnn"
        )
