"""The block of Grid LSTM.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

from torch import sigmoid, tanh

from .cell import built_in


def _grid_lstm(pre, state):
    """m = f * m_ + i * g, h = tanh(o * m); i, f, o = sigmoid(W x + R h_ + b), g = tanh(..).

    The LSTM block of Kalchbrenner et al. 2015 (arXiv 1507.01526), with their u as i and c as g: as
    the LSTM, but for the tanh. Along time x is the hidden vector of the other dimensions; the
    module ``GridLSTM`` has the dimension of depth too.
    """
    i, f, g, o = pre
    m = sigmoid(f) * state[1] + sigmoid(i) * tanh(g)
    return tanh(sigmoid(o) * m), m


GRID_LSTM = built_in("grid_lstm", _grid_lstm, gates=("i", "f", "g", "o"), states=("h", "m"))
