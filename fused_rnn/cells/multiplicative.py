"""LSTMs whose input and hidden state scale each other first.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

from torch import sigmoid, tanh

from .cell import Cell, built_in
from .parts import Stage, same


def _product(pre, state):
    """m = (W_m x) * (R_m h_), which the gates of ``MULTIPLICATIVE_LSTM`` see."""
    m_x, m_h = pre
    return m_x * m_h


def _multiplicative_lstm(pre, state, candidate=same, memory=same):
    """The LSTM whose gates see m = (W_m x) * (R_m h_) in place of h_: Krause et al. 2016.

    c = f * c_ + i * g, h = o * tanh(c); i = sigmoid(W_i x + R_i m + b_i), f, o and g alike. arXiv
    1609.07959, which has no bias in m.
    """
    i, f, g, o = pre[2:]
    c = state[1]
    c = memory(sigmoid(f) * c + sigmoid(i) * candidate(tanh(g)))
    return sigmoid(o) * tanh(c), c


MULTIPLICATIVE_LSTM = built_in(
    "multiplicative_lstm",
    _multiplicative_lstm,
    gates=("m_x", "m_h", "i", "f", "g", "o"),
    states=("h", "c"),
    x_gates=("m_x", "i", "f", "g", "o"),
    stages=(Stage(("m_h",)), Stage(("i", "f", "g", "o"), _product)),
)


def _mogrified(pre, state):
    """h and x after the rounds that ``pre`` has: x, then a gate for each round."""
    x, *rounds = pre
    h = state[0]
    for k, gate in enumerate(rounds):
        if k % 2:
            h = 2 * sigmoid(gate) * h
        else:
            x = 2 * sigmoid(gate) * x
    return h, x


def _mogrified_h(pre, state):
    return _mogrified(pre, state)[0]


def _mogrified_x(pre, state):
    return _mogrified(pre, state)[1]


def _mogrifier_lstm(pre, state, candidate=same, memory=same):
    """The LSTM of x and h_ after some rounds, for I = H: Melis et al. 2019 (arXiv 1909.01792).

    The first round is x = 2 sigmoid(Q_1 h_) * x, the second h_ = 2 sigmoid(R_2 x) * h_, and so on,
    each with a matrix of its own. The last matrix, (4H, 2H), multiplies [h_, x]. The modules add
    biases to x and in the rounds.
    """
    i, f, g, o = pre[-4:]
    c = state[1]
    c = memory(sigmoid(f) * c + sigmoid(i) * candidate(tanh(g)))
    return sigmoid(o) * tanh(c), c


def _mogrifier_lstm_parts(rounds):
    names, lstm = [f"r{k}" for k in range(1, rounds + 1)], ("i", "f", "g", "o")
    sources = ["h", *(_mogrified_h if k % 2 else _mogrified_x for k in range(2, rounds + 1))]
    stages = [Stage((name,), source) for name, source in zip(names, sources, strict=False)]
    return {
        "gates": ("x", *names, *lstm),
        "states": ("h", "c"),
        "x_gates": ("x",),
        "raw_gates": ("x",),
        "stages": (*stages, Stage(lstm, _mogrified)),
    }


MOGRIFIER_LSTM = built_in("mogrifier_lstm", _mogrifier_lstm, **_mogrifier_lstm_parts(5))


def mogrifier_lstm(rounds: int = 5) -> Cell:
    """``MOGRIFIER_LSTM`` with another number of rounds.

    Raises:
        ValueError: less than 0.
    """
    if rounds < 0:
        raise ValueError(f"rounds: expected at least 0, got {rounds}")
    if rounds == 5:
        return MOGRIFIER_LSTM
    return Cell("mogrifier_lstm", _mogrifier_lstm, **_mogrifier_lstm_parts(rounds))
