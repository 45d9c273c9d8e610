"""Discretised differential equations, from their papers."""

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
