"""The LSTM with ordered neurons.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

from torch import exp, sigmoid, tanh

from .cell import built_in
from .parts import Stage, same


def _on_lstm(pre, state, candidate=same, memory=same):
    """c = (f * w + F - w) * c_ + (i * w + I - w) * g; h = o * tanh(c); w = F * I.

    i, f, o = sigmoid(..), g = tanh(..); the master gates are F = cumax(..) and I = 1 - cumax(..),
    where cumax is the running sum of the softmax over the units. Shen et al. 2019 (arXiv
    1810.09536), with one value of the master gates per unit (their chunk factor 1). In float16 the
    exponentials of a softmax, of what exceeds the mean, must have a sum below 65504.
    """
    i, f, g, o = pre[:4]
    forget, enter = pre[10], 1 - pre[11]
    both = forget * enter
    f = sigmoid(f) * both + forget - both
    i = sigmoid(i) * both + enter - both
    c = memory(f * state[1] + i * candidate(tanh(g)))
    return sigmoid(o) * tanh(c), c


def _masters(pre, state):
    return pre[4:6]


def _exponentials(pre, state):
    """Of what exceeds the mean: a softmax does not see what all units have in common, and its
    exponentials could overflow. (The largest value is no sum over the units, as the mean is.)"""
    return exp(pre[4] - pre[6]), exp(pre[5] - pre[7])


def _softmax(pre, state):
    f, i = _exponentials(pre, state)
    return f / pre[8], i / pre[9]


ON_LSTM = built_in(
    "on_lstm",
    _on_lstm,
    gates=("i", "f", "g", "o", "mf", "mi", "mean_f", "mean_i", "sum_f", "sum_i", "cu_f", "cu_i"),
    states=("h", "c"),
    x_gates=("i", "f", "g", "o", "mf", "mi"),
    stages=(
        Stage(("i", "f", "g", "o", "mf", "mi"), "h"),
        Stage(("mean_f", "mean_i"), _masters, "mean"),
        Stage(("sum_f", "sum_i"), _exponentials, "sum"),
        Stage(("cu_f", "cu_i"), _softmax, "cumsum"),
    ),
)
