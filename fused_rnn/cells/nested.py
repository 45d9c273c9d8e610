"""Cells with a cell inside.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

from torch import sigmoid, tanh

from .cell import built_in
from .parts import Stage


def _inner_input_and_hidden(pre, state):
    """(i * g, f * c_): what an LSTM would add up is the input and the state of the inner one."""
    i, f, g, o = pre
    c = state[1]
    return sigmoid(i) * tanh(g), sigmoid(f) * c


def _nested_lstm(pre, state):
    """The LSTM whose memory is another LSTM: c = o' * tanh(m), h = o * tanh(c).

    m = f' * m_ + i' * g' is the inner memory. The inner gates are those of an LSTM with the input
    i * g and the hidden state f * c_, so their ``weight_hh1`` is (4H, 2H). Moniz & Krueger 2018
    (arXiv 1801.10308), with one inner LSTM.
    """
    o = pre[3]
    inner_i, inner_f, inner_g, inner_o = pre[4:]
    m = sigmoid(inner_f) * state[2] + sigmoid(inner_i) * tanh(inner_g)
    c = sigmoid(inner_o) * tanh(m)
    return sigmoid(o) * tanh(c), c, m


_OUTER = ("i", "f", "g", "o")
_INNER = ("inner_i", "inner_f", "inner_g", "inner_o")

NESTED_LSTM = built_in(
    "nested_lstm",
    _nested_lstm,
    gates=_OUTER + _INNER,
    states=("h", "c", "m"),
    x_gates=_OUTER,
    stages=(Stage(_OUTER), Stage(_INNER, _inner_input_and_hidden)),
)
