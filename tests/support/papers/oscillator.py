"""Discretised differential equations, from their papers."""

import torch
from torch import sigmoid, tanh

from .paper import paper


@paper("lem", x="V_1 V_2 V_z V_y", b="b_1 b_2 b_z b_y", r="W_1 W_2 W_z, W_y", states="y z")
def _lem(p, x, state, t):
    """Rusch et al. 2021, equation (3)."""
    y, z = state
    dt = 1.0
    dt_n = dt * sigmoid(p.W_1 @ y + p.V_1 @ x + p.b_1)
    dt_bar = dt * sigmoid(p.W_2 @ y + p.V_2 @ x + p.b_2)
    z = (1 - dt_n) * z + dt_n * tanh(p.W_z @ y + p.V_z @ x + p.b_z)
    y = (1 - dt_bar) * y + dt_bar * tanh(p.W_y @ z + p.V_y @ x + p.b_y)
    return y, z


@paper("co_rnn", x="V", b="b", r="W|W_z", states="y z")
def _co_rnn(p, x, state, t):
    """Rusch & Mishra 2020, equation (3) with n-bar = n - 1."""
    y, z = state
    dt, gamma, epsilon = 0.042, 2.7, 4.7
    new_z = z + dt * tanh(p.W @ y + p.W_z @ z + p.V @ x + p.b) - dt * gamma * y - dt * epsilon * z
    return y + dt * new_z, new_z


def _rotated(p, h):
    """(W - W^T - gamma I) h with gamma = 0.01."""
    identity = torch.eye(len(p.W), dtype=p.W.dtype)
    return (p.W - p.W.T - 0.01 * identity) @ h


@paper("antisymmetric_rnn", x="V", b="b", r="W")
def _antisymmetric_rnn(p, x, state, t):
    """Chang et al. 2019, with epsilon = 0.01."""
    (h,) = state
    return h + 0.01 * tanh(_rotated(p, h) + p.V @ x + p.b)


@paper("gated_antisymmetric_rnn", x="V_z V_h", b="b_z b_h 0", r="W")
def _gated_antisymmetric_rnn(p, x, state, t):
    """Chang et al. 2019, with epsilon = 0.01."""
    (h,) = state
    z = sigmoid(_rotated(p, h) + p.V_z @ x + p.b_z)
    return h + 0.01 * z * tanh(_rotated(p, h) + p.V_h @ x + p.b_h)


def _positive(v):
    return 1 + v.abs()


@paper("ctrnn", x="W", b="I", r="w", states="y", params="tau", tau=_positive)
def _ctrnn(p, x, state, t):
    """Beer 1995: tau dy/dt = -y + w s(y) + input, with s = tanh and steps of 0.1."""
    (y,) = state
    derivative = (-y + p.w @ tanh(y) + p.W @ x + p.I) / p.tau
    return y + 0.1 * derivative


@paper("ltc", x="W", b="mu", r="W_r", states="v", params="tau A", tau=_positive)
def _ltc(p, x, state, t):
    """Hasani et al. 2020, algorithm 1 with one step of length 1."""
    (v,) = state
    f = sigmoid(p.W_r @ v + p.W @ x + p.mu)
    return (v + 1.0 * f * p.A) / (1 + 1.0 * (1 / p.tau + f))
