"""Euler steps of differential equations that neither explode nor vanish.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

import functools

import torch
from torch import sigmoid, tanh

from .cell import Cell, built_in
from .parts import Stage


def _antisymmetric(matrix, gamma=0.01):
    """W - W^T - gamma I."""
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return matrix - matrix.mT - gamma * identity


def _antisymmetric_rnn(pre, state, epsilon=0.01):
    """h = h_ + epsilon * tanh((W - W^T - gamma I) h_ + V x + b).

    Chang et al. 2019 (arXiv 1902.09689). ``weight_hh`` is W. The paper tunes epsilon and gamma;
    both are 0.01 here.
    """
    (n,) = pre
    (h,) = state
    return h + epsilon * tanh(n)


def _gated_antisymmetric_rnn(pre, state, epsilon=0.01):
    """h = h_ + epsilon * sigmoid(M h_ + V_z x + b_z) * tanh(M h_ + V_h x + b_h).

    The same paper: M = W - W^T - gamma I is shared by the gate and the candidate.
    """
    m, z, n = pre
    (h,) = state
    return h + epsilon * sigmoid(m + z) * tanh(m + n)


def _parts(step, gates, epsilon, gamma):
    matrix = functools.partial(_antisymmetric, gamma=gamma)
    return {
        "step": functools.partial(step, epsilon=epsilon),
        "gates": gates,
        "x_gates": gates[1:] or gates,
        "stages": (Stage(gates[:1], "h", matrix),),
    }


_PLAIN = _antisymmetric_rnn, ("n",)
_GATED = _gated_antisymmetric_rnn, ("m", "z", "n")

ANTISYMMETRIC_RNN = built_in("antisymmetric_rnn", **_parts(*_PLAIN, 0.01, 0.01))
GATED_ANTISYMMETRIC_RNN = built_in("gated_antisymmetric_rnn", **_parts(*_GATED, 0.01, 0.01))


def antisymmetric_rnn(epsilon: float = 0.01, gamma: float = 0.01, gated: bool = False) -> Cell:
    """``ANTISYMMETRIC_RNN``, or with ``gated`` the other, with another step size and diffusion."""
    if (epsilon, gamma) == (0.01, 0.01):
        return GATED_ANTISYMMETRIC_RNN if gated else ANTISYMMETRIC_RNN
    name = "gated_antisymmetric_rnn" if gated else "antisymmetric_rnn"
    return Cell(name, **_parts(*(_GATED if gated else _PLAIN), epsilon, gamma))
