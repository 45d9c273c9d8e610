"""The modules with layer norm against torch.nn.functional.layer_norm in a loop."""

import pickle

import pytest
import torch
from torch import nn, sigmoid, tanh
from torch.nn import functional

from fused_rnn import LayerNormGRU, LayerNormLSTM, Recurrent, cells
from tests.support.problems import run_module
from tests.support.tolerances import assert_equal_in_float64

T, B, I, H = 5, 3, 4, 6  # noqa: E741


class _Loop(nn.Module):
    """The oracle of layers in one direction."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, hx):
        lstm = isinstance(self.module, LayerNormLSTM)
        step, states, finals = (_lstm if lstm else _gru), hx if lstm else (hx,), []
        for layer in range(self.module.num_layers):
            own = dict(self.module.named_parameters())
            p = {n[:-3]: v for n, v in own.items() if n.endswith(f"_l{layer}")}
            state, steps = [s[layer] for s in states], []
            for at in x:
                state = step(p, at, state, self.module.eps)
                steps.append(state[0])
            finals.append(state)
            x = torch.stack(steps)
        finals = tuple(map(torch.stack, zip(*finals, strict=True)))
        return x, finals if lstm else finals[0]


def _norm(p, product, bias, gates, part, eps):
    """Of the rows of some gates of W x or R h, with their gains."""
    value = p[f"weight_{'ih' if part == 'x' else 'hh'}"] @ product.mT
    value = value.mT if bias is None else value.mT + bias
    gain = torch.cat([p[f"gain_{gate}_{part}"] for gate in gates])
    order = "ifgo" if "gain_i_x" in p else "rzn"
    value = torch.cat([value.chunk(len(order), -1)[order.index(gate)] for gate in gates], -1)
    return functional.layer_norm(value, value.shape[-1:], gain, None, eps).chunk(len(gates), -1)


def _lstm(p, x, state, eps):
    h, c = state
    of_x = _norm(p, x, p.get("bias_ih"), "ifgo", "x", eps)
    of_h = _norm(p, h, p.get("bias_hh"), "ifgo", "h", eps)
    i, f, g, o = (a + b + p[f"bias_{k}"] for a, b, k in zip(of_x, of_h, "ifgo", strict=True))
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(functional.layer_norm(c, (H,), p["gain_c"], p["bias_c"], eps)), c


def _gru(p, x, state, eps):
    (h,) = state
    of_x = _norm(p, x, p.get("bias_ih"), "rz", "x", eps)
    of_h = _norm(p, h, p.get("bias_hh"), "rz", "h", eps)
    r, z = (sigmoid(a + b + p[f"bias_{k}"]) for a, b, k in zip(of_x, of_h, "rz", strict=True))
    (n_x,) = _norm(p, x, p.get("bias_ih"), "n", "x", eps)
    (n_h,) = _norm(p, h, p.get("bias_hh"), "n", "h", eps)
    n = tanh(n_x + p["bias_n_x"] + r * (n_h + p["bias_n_h"]))
    return ((1 - z) * h + z * n,)


@pytest.mark.parametrize("backend", ["reference", "sequence", "cpp"])
@pytest.mark.parametrize("options", [{}, {"bias": True, "eps": 0.1}], ids=str)
@pytest.mark.parametrize("kind", [LayerNormLSTM, LayerNormGRU])
def test_it_is_its_paper(kind, options, backend):
    module = kind(I, H, 2, backend=backend, dtype=torch.float64, **options)
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    x, h0 = torch.randn(T, B, I), torch.randn(2, B, H)
    hx = (h0, torch.randn(2, B, H)) if kind is LayerNormLSTM else h0
    want = run_module(_Loop(module), x, hx)
    want = {name.replace("dmodule.", "d"): value for name, value in want.items()}
    assert_equal_in_float64(run_module(module, x, hx), want, backend)


@pytest.mark.parametrize("kind", [LayerNormLSTM, LayerNormGRU])
def test_arguments(kind):
    module = kind(3, 4)
    assert repr(module) == f"{kind.__name__}(3, 4, bias=False)"
    assert not any(name.startswith(("bias_ih", "bias_hh")) for name, _ in module.named_parameters())
    for name, parameter in module.named_parameters():
        if "weight" not in name:
            assert (parameter == float("gain" in name)).all()
    assert kind(3, 4, 2, True).bias_ih_l1.shape == module.weight_ih_l0.shape[:1]
    plain = Recurrent(module.cell.name, 3, 4, bias=False)
    assert plain.cell is module.cell
    other = kind(3, 4, eps=0.5)
    assert "eps=0.5" in repr(other)
    x = torch.randn(T, B, 3)
    assert torch.equal(pickle.loads(pickle.dumps(other))(x)[0], other(x)[0])
    with pytest.raises(ValueError, match="eps: expected a positive number, got 0"):
        kind(3, 4, eps=0)
    with pytest.raises(TypeError, match="eps: expected a number, got str"):
        kind(3, 4, eps="small")
    with pytest.raises(
        ValueError, match="proj_size: cell 'layer_norm_.*' cannot have a projection"
    ):
        kind(3, 4, proj_size=2)


def test_large_equal_values_are_normed_to_the_last_digits():
    """E[x²] - E[x]² would be noise."""
    pre = 1e6 + torch.randn(2, 8, dtype=torch.float64)
    mean, variance = pre.mean(-1, True), pre.var(-1, correction=0, keepdim=True)
    got = cells.layer_norm(pre, mean, variance)
    torch.testing.assert_close(got, functional.layer_norm(pre, (8,)), rtol=1e-9, atol=1e-9)


def test_a_softmax_of_large_master_gates_does_not_overflow():
    layer = Recurrent("on_lstm", 3, 4)
    with torch.no_grad():
        layer.bias_ih_l0[16:] = 1e4  # what all units have in common
    for backend in ("sequence", "cpp"):
        layer.backend = backend
        output = layer(torch.randn(T, B, 3))[0]
        output.sum().backward()
        assert output.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
