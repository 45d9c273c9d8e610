"""Gated cells whose candidate depends on the input only.

In the equations, ``_`` marks a value of the step before and * is the product per unit. The papers
have no bias where none is written; the modules have one for each product with x.
"""

from torch import sigmoid, tanh

from .cell import built_in
from .parts import Stage


def _ran(pre, state):
    """c = i * W_n x + f * c_, h = tanh(c); i, f = sigmoid(W x + R h_ + b).

    Recurrent additive networks: Lee et al. 2017 (arXiv 1705.07393), with their g = tanh.
    """
    i, f, n = pre
    h, c = state
    c = sigmoid(i) * n + sigmoid(f) * c
    return tanh(c), c


RAN = built_in("ran", _ran, gates=("i", "f", "n"), states=("h", "c"), stages=(Stage(("i", "f")),))


def _atr(pre, state):
    """h = sigmoid(p + q) * p + sigmoid(p - q) * h_, p = W x, q = R h_.

    Addition-subtraction twin-gated networks: Zhang et al. 2018 (arXiv 1810.12546).
    """
    q, p = pre
    (h,) = state
    return sigmoid(p + q) * p + sigmoid(p - q) * h


ATR = built_in("atr", _atr, gates=("q", "p"), x_gates=("p",), stages=(Stage(("q",)),))


def _cfn(pre, state):
    """h = a * tanh(h_) + b * tanh(W_n x); a, b = sigmoid(W x + R h_ + bias).

    The chaos free network: Laurent & von Brecht 2016 (arXiv 1612.06212), theta and eta there.
    """
    a, b, n = pre
    (h,) = state
    return sigmoid(a) * tanh(h) + sigmoid(b) * tanh(n)


CFN = built_in("cfn", _cfn, gates=("a", "b", "n"), stages=(Stage(("a", "b")),))
