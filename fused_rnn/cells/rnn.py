"""Simple recurrent networks: one gate and one state.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

from torch import relu, tanh

from .cell import built_in


def _rnn_tanh(pre, state):
    """h = tanh(W x + R h_ + b): torch.nn.RNN, after Elman 1990 (doi 10.1207/s15516709cog1402_1)."""
    (n,) = pre
    return tanh(n)


RNN_TANH = built_in("rnn_tanh", _rnn_tanh, gates=("n",))


def _rnn_relu(pre, state):
    """h = max(0, W x + R h_ + b): torch.nn.RNN with nonlinearity="relu"."""
    (n,) = pre
    return relu(n)


RNN_RELU = built_in("rnn_relu", _rnn_relu, gates=("n",))
