"""The LSTM with exponential gates of xLSTM.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

import torch
from torch import sigmoid, tanh
from torch.nn.functional import logsigmoid

from .cell import built_in


def _slstm(pre, state):
    """c = f * c_ + i * tanh(g), n = f * n_ + i, h = o * c / n; o = sigmoid(..).

    i = exp(a - m) and f = exp(log sigmoid(b) + m_ - m), where a and b are W x + R h_ + bias and
    m = max(log sigmoid(b) + m_, a) keeps both below 1. Beck et al. 2024 (arXiv 2405.04517), with
    the sigmoid of their two forget gates; their heads are ``num_heads``. Where n_ is 0, at the
    start, m is a, and f at most 1, as in the authors' code.
    """
    i, f, g, o = pre
    h, c, n, m_before = state
    f = logsigmoid(f) + m_before
    m = torch.where(n == 0, i, torch.maximum(f, i))
    i, f = torch.exp(i - m), torch.exp((f - m).clamp(max=0))  # inf * 0 otherwise, at the start
    c, n = f * c + i * tanh(g), f * n + i
    return sigmoid(o) * c / n, c, n, m


SLSTM = built_in("slstm", _slstm, gates=("i", "f", "g", "o"), states=("h", "c", "n", "m"))
