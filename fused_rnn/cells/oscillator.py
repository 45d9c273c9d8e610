"""Discretised differential equations with two states: LEM and coRNN.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

import functools

from torch import sigmoid, tanh

from .cell import Cell, built_in
from .parts import Stage


def _new_z(pre, state, dt=1.0):
    """z, the source of the second stage of ``LEM``."""
    a, n = pre[0], pre[2]
    z = state[1]
    a = dt * sigmoid(a)
    return (1 - a) * z + a * tanh(n)


def _lem(pre, state, dt=1.0):
    """z = (1 - a) * z_ + a * tanh(W_z y_ + V_z x + b_z), y = (1 - b) * y_ + b * tanh(m).

    a, b = dt * sigmoid(W y_ + V x + bias), m = W_y z + V_y x + b_y with the new z. Long expressive
    memory: Rusch et al. 2021 (arXiv 2110.04744).
    """
    b, m = pre[1], pre[3]
    y = state[0]
    b = dt * sigmoid(b)
    return (1 - b) * y + b * tanh(m), _new_z(pre, state, dt)


def _lem_parts(dt):
    return {
        "step": functools.partial(_lem, dt=dt),
        "gates": ("a", "b", "n", "m"),
        "states": ("y", "z"),
        "stages": (
            Stage(("a", "b", "n"), "y"),
            Stage(("m",), functools.partial(_new_z, dt=dt)),
        ),
    }


LEM = built_in("lem", **_lem_parts(1.0))


def lem(dt: float = 1.0) -> Cell:
    """``LEM`` with another time step."""
    return LEM if dt == 1 else Cell("lem", **_lem_parts(dt))


def _co_rnn(pre, state, dt=0.042, gamma=2.7, epsilon=4.7):
    """z = z_ + dt * (tanh(W y_ + U z_ + V x + b) - gamma * y_ - epsilon * z_), y = y_ + dt * z.

    Coupled oscillators: Rusch & Mishra 2020 (arXiv 2010.00951), with the explicit damping of their
    code. The constants are theirs for sequential MNIST. ``weight_hh`` is [W, U], (H, 2H).
    """
    (n,) = pre
    y, z = state
    z = z + dt * (tanh(n) - gamma * y - epsilon * z)
    return y + dt * z, z


def _co_rnn_parts(dt, gamma, epsilon):
    return {
        "step": functools.partial(_co_rnn, dt=dt, gamma=gamma, epsilon=epsilon),
        "gates": ("n",),
        "states": ("y", "z"),
        "stages": (Stage(("n",), ("y", "z")),),
    }


CO_RNN = built_in("co_rnn", **_co_rnn_parts(0.042, 2.7, 4.7))


def co_rnn(dt: float = 0.042, gamma: float = 2.7, epsilon: float = 4.7) -> Cell:
    """``CO_RNN`` with another time step, frequency and damping."""
    if (dt, gamma, epsilon) == (0.042, 2.7, 4.7):
        return CO_RNN
    return Cell("co_rnn", **_co_rnn_parts(dt, gamma, epsilon))
