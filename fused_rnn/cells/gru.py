"""Gated recurrent units: the reset gate acts after the recurrent product, or before it.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
``regularized`` says what ``candidate`` is for.
"""

from torch import sigmoid, tanh

from .cell import built_in
from .parts import Stage, same


def _gru(pre, state, candidate=same):
    """h = (1 - z) * n + z * h_, n = tanh(n_x + r * n_h), r, z = sigmoid(..).

    torch.nn.GRU and cuDNN: the reset gate acts after the product, so the input part n_x = W x + b
    and the recurrent part n_h = R h_ + b of n stay apart. A variant of Cho et al. 2014.
    """
    r, z, n_h, n_x = pre
    (h,) = state
    z = sigmoid(z)
    return (1 - z) * candidate(tanh(n_x + sigmoid(r) * n_h)) + z * h


GRU = built_in(
    "gru",
    _gru,
    gates=("r", "z", "n_h", "n_x"),
    x_gates=("r", "z", "n_x"),
    stages=(Stage(("r", "z", "n_h")),),
)


def _reset_hidden(pre, state):
    """r * h_, the source of the second stage of ``GRU_RESET_BEFORE``."""
    r, z = pre
    (h,) = state
    return sigmoid(r) * h


def _gru_reset_before(pre, state, candidate=same):
    """h = (1 - z) * n + z * h_, n = tanh(W x + R (r * h_) + b), r, z = sigmoid(..).

    Cho et al. 2014 (arXiv 1406.1078); Keras with reset_after=False, ONNX with
    linear_before_reset=0. z keeps the old state, as in torch.nn. The essay "Understanding LSTM
    Networks" writes z and 1 - z the other way round: the same cell with the weights and biases of
    z negated.
    """
    r, z, n = pre
    (h,) = state
    z = sigmoid(z)
    return (1 - z) * candidate(tanh(n)) + z * h


GRU_RESET_BEFORE = built_in(
    "gru_reset_before",
    _gru_reset_before,
    gates=("r", "z", "n"),
    stages=(Stage(("r", "z")), Stage(("n",), _reset_hidden)),
)
