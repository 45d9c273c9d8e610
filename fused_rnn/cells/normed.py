"""The LSTM and the GRU with layer norm.

In the equations, ``_`` marks a value of the step before, * is the product per unit, and N is layer
norm without gain and bias.
"""

from __future__ import annotations

from functools import partial
from numbers import Real

from torch import sigmoid, tanh

from .cell import Cell, built_in
from .norms import layer_norm, layer_norm_stages
from .parts import Param, Stage, same

_EPS = 1e-5


def _layer_norm_lstm(pre, state, params, eps=_EPS):
    """i, f, o = sigmoid(p), g = tanh(p), with p = a * N(W x) + b * N(R h_) + bias.

    c = f * c_ + i * g; h = o * tanh(a_c * N(c) + bias_c). N(W x) and N(R h_) each span the values
    of all four gates, 4H. Ba et al. 2016 (arXiv 1607.06450), whose biases of the two norms and b,
    which are only ever added up, are here one.
    """
    c, mean, variance = pre[12:]
    normed = params[12] * layer_norm(c, mean, variance, eps) + params[13]
    return sigmoid(_gate(pre, params, eps, 3)) * tanh(normed), c


def _gate(pre, params, eps, k):
    """Gate number k before its sigmoid or tanh."""
    x_mean, h_mean, x_variance, h_variance = pre[8:12]
    of_x = layer_norm(pre[k], x_mean, x_variance, eps)
    of_h = layer_norm(pre[4 + k], h_mean, h_variance, eps)
    return params[k] * of_x + params[4 + k] * of_h + params[8 + k]


def _new_c(pre, state, params, eps=_EPS, candidate=same, memory=same):
    """The LSTM's c, which its norm's two stages and the step read."""
    i, f, g = (_gate(pre, params, eps, k) for k in range(3))
    return memory(sigmoid(f) * state[1] + sigmoid(i) * candidate(tanh(g)))


def _c_alone(pre, state):
    return (pre[12:13],)


def _all_gates(pre, state):
    return pre[:4], pre[4:8]


def _layer_norm_gru(pre, state, params, eps=_EPS, candidate=same):
    """h = (1 - z) * h_ + z * n; r, z = sigmoid(a * N(W x) + b * N(R h_) + bias).

    n = tanh(a_n * N(W_n x) + bias_x + r * (b_n * N(R_n h_) + bias_h)). The norms of r and z span
    both gates, 2H; those of n have it alone. Ba et al. 2016 (arXiv 1607.06450), whose biases that
    are only ever added up are here one. z takes the new value, where torch.nn.GRU's keeps the old.
    """
    means, variances = pre[6:10], pre[10:]
    norms = (0, 0, 1, 2, 2, 3)
    x_r, x_z, x_n, h_r, h_z, h_n = (
        params[k] * layer_norm(pre[k], means[norm], variances[norm], eps)
        for k, norm in enumerate(norms)
    )
    bias_r, bias_z, bias_x, bias_h = params[6:]
    r, z = sigmoid(x_r + h_r + bias_r), sigmoid(x_z + h_z + bias_z)
    return (1 - z) * state[0] + z * candidate(tanh(x_n + bias_x + r * (h_n + bias_h)))


def _gates_and_candidates(pre, state):
    return pre[:2], pre[2:3], pre[3:5], pre[5:6]


def _parts(step, states, gates, norms, biases, eps):
    """The arguments of ``Cell``.

    Args:
        gates: a letter each; every one is two, of W x and of R h_, each with a gain.
        norms: the stages of the norms.
        biases: names of further biases, and "gain_c".
    """
    own, recurrent = ([f"{gate}_{part}" for gate in gates] for part in "xh")
    stages = (Stage(recurrent, "h"), *norms)
    params = [f"gain_{gate}" for gate in (*own, *recurrent)] + biases
    return {
        "step": partial(step, eps=eps),
        "gates": (*own, *(gate for stage in stages for gate in stage.gates)),
        "states": states,
        "params": tuple(Param(p, init=float(p.startswith("gain"))) for p in params),
        "x_gates": own,
        "stages": stages,
    }


def _lstm(eps):
    norms = layer_norm_stages(("x", "h"), _all_gates)
    norms += (Stage(("new_c",), partial(_new_c, eps=eps), "identity"),)
    norms += layer_norm_stages(("c",), _c_alone)
    biases = [f"bias_{gate}" for gate in "ifgo"] + ["gain_c", "bias_c"]
    return _parts(_layer_norm_lstm, ("h", "c"), "ifgo", norms, biases, eps)


def _gru(eps):
    norms = layer_norm_stages(("x", "n_x", "h", "n_h"), _gates_and_candidates)
    biases = ["bias_r", "bias_z", "bias_n_x", "bias_n_h"]
    return _parts(_layer_norm_gru, ("h",), "rzn", norms, biases, eps)


LAYER_NORM_LSTM = built_in("layer_norm_lstm", **_lstm(_EPS))
LAYER_NORM_GRU = built_in("layer_norm_gru", **_gru(_EPS))


def layer_norm_lstm(eps: float = _EPS) -> Cell:
    """The LSTM with layer norm.

    Args:
        eps: added to the variances.

    Raises:
        TypeError, ValueError: ``eps`` is no positive number.
    """
    return LAYER_NORM_LSTM if eps == _EPS else Cell("layer_norm_lstm", **_lstm(_positive(eps)))


def layer_norm_gru(eps: float = _EPS) -> Cell:
    """The GRU with layer norm; argument and errors are those of ``layer_norm_lstm``."""
    return LAYER_NORM_GRU if eps == _EPS else Cell("layer_norm_gru", **_gru(_positive(eps)))


def _positive(eps):
    if isinstance(eps, bool) or not isinstance(eps, Real):
        raise TypeError(f"eps: expected a number, got {type(eps).__name__}")
    value = float(eps)
    if not value > 0:
        raise ValueError(f"eps: expected a positive number, got {eps}")
    return value
