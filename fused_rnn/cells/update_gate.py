"""The cells of Collins et al. 2016 (arXiv 1611.09913), made to be easy to train.

In the equations, ``_`` marks a value of the step before and * is the product per unit. The paper
adds a constant to the biases of the gates g; here it is part of them.
"""

from torch import relu, sigmoid, tanh

from .cell import built_in
from .parts import Stage, same


def _ugrnn(pre, state, candidate=same):
    """h = g * h_ + (1 - g) * n, n = tanh(W_n x + R_n h_ + b_n), g = sigmoid(..).

    The update gate RNN, with the paper's nonlinearity s = tanh.
    """
    n, g = pre
    (h,) = state
    g = sigmoid(g)
    return g * h + (1 - g) * candidate(tanh(n))


UGRNN = built_in("ugrnn", _ugrnn, gates=("n", "g"))


def _intersection_rnn(pre, state):
    """y = g * x + (1 - g) * max(0, u), h = k * h_ + (1 - k) * tanh(n), for I = H.

    The +RNN. g, k = sigmoid(..); u, n, g and k are W x + R h_ + b. The output is y; its initial
    value is not used. The modules add a bias to x.
    """
    u, n, g, k, x = pre
    y, h = state
    g, k = sigmoid(g), sigmoid(k)
    return g * x + (1 - g) * relu(u), k * h + (1 - k) * tanh(n)


INTERSECTION_RNN = built_in(
    "intersection_rnn",
    _intersection_rnn,
    gates=("u", "n", "g", "k", "x"),
    states=("y", "h"),
    raw_gates=("x",),
    stages=(Stage(("u", "n", "g", "k"), "h"),),
)
