"""Cells with one gate, or with one gate less than the LSTM and the GRU that they come from.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
``regularized`` says what ``candidate`` is for.
"""

import functools

from torch import relu, sigmoid, tanh

from .cell import Cell, built_in
from .parts import Stage, same


def _forgotten_hidden(pre, state):
    """f * h_, the source of the second stage of ``MGU``."""
    (f,) = pre
    (h,) = state
    return sigmoid(f) * h


def _mgu(pre, state, candidate=same):
    """h = (1 - f) * h_ + f * n, n = tanh(W_n x + R_n (f * h_) + b_n), f = sigmoid(..).

    The minimal gated unit: Zhou et al. 2016 (arXiv 1603.09420).
    """
    f, n = pre
    (h,) = state
    f = sigmoid(f)
    return (1 - f) * h + f * candidate(tanh(n))


MGU = built_in(
    "mgu", _mgu, gates=("f", "n"), stages=(Stage(("f",)), Stage(("n",), _forgotten_hidden))
)


def _janet(pre, state, beta=1.0, candidate=same):
    """h = sigmoid(s) * h_ + (1 - sigmoid(s - beta)) * n, n = tanh(W_n x + R_n h_ + b_n).

    s = W_s x + R_s h_ + b_s. "Just another network": van der Westhuizen & Lasenby 2018
    (arXiv 1804.04849). Its h and c are the same.
    """
    s, n = pre
    (h,) = state
    return sigmoid(s) * h + (1 - sigmoid(s - beta)) * candidate(tanh(n))


JANET = built_in("janet", _janet, gates=("s", "n"))


def janet(beta: float = 1.0) -> Cell:
    """``JANET`` with another beta; with 0 the forget gate and the input gate add up to 1."""
    if beta == 1:
        return JANET
    return Cell("janet", functools.partial(_janet, beta=beta), gates=JANET.gates)


def _li_gru(pre, state, candidate=same):
    """h = z * h_ + (1 - z) * n, n = max(0, W_n x + R_n h_ + b_n), z = sigmoid(..).

    The light GRU: Ravanelli et al. 2018 (arXiv 1803.10225). Their batch norm of W x acts on all
    steps at once; give its result to ``scan`` as the input part.
    """
    z, n = pre
    (h,) = state
    z = sigmoid(z)
    return z * h + (1 - z) * candidate(relu(n))


LI_GRU = built_in("li_gru", _li_gru, gates=("z", "n"))


def _light_ru(pre, state, candidate=same):
    """h = (1 - f) * h_ + f * tanh(W_n x), f = sigmoid(W_f x + R_f h_ + b_f).

    The light recurrent unit: Ye et al. 2024 (doi 10.3390/electronics13163204). The modules add a
    bias to W_n x.
    """
    f, n = pre
    (h,) = state
    f = sigmoid(f)
    return (1 - f) * h + f * candidate(tanh(n))


LIGHT_RU = built_in("light_ru", _light_ru, gates=("f", "n"), stages=(Stage(("f",)),))


def _star(pre, state):
    """h = tanh((1 - k) * h_ + k * z), z = tanh(W_z x + b_z), k = sigmoid(W_k x + R_k h_ + b_k).

    The stackable recurrent cell: Turkoglu et al. 2019 (arXiv 1911.11033).
    """
    k, z = pre
    (h,) = state
    k = sigmoid(k)
    return tanh((1 - k) * h + k * tanh(z))


STAR = built_in("star", _star, gates=("k", "z"), stages=(Stage(("k",)),))


def _hidden_and_latent(pre, state):
    """(h_, z), the source of u in ``MINIMAL_RNN``."""
    (z,) = pre
    (h,) = state
    return h, tanh(z)


def _minimal_rnn(pre, state):
    """h = u * h_ + (1 - u) * z, z = tanh(W x + b_z), u = sigmoid(U_h h_ + U_z z + b_u).

    Chen 2017 (arXiv 1711.06788), with one layer and tanh for the map of the input. ``weight_hh``
    is [U_h, U_z], (H, 2H).
    """
    z, u = pre
    (h,) = state
    u = sigmoid(u)
    return u * h + (1 - u) * tanh(z)


MINIMAL_RNN = built_in(
    "minimal_rnn",
    _minimal_rnn,
    gates=("z", "u"),
    x_gates=("z",),
    stages=(Stage(("u",), _hidden_and_latent),),
)
