"""The mutated units of Jozefowicz et al. 2015 (proceedings.mlr.press/v37/jozefowicz15.html).

In the equations, ``_`` marks a value of the step before and * is the product per unit. The paper
writes h_t for the state before step t and h_{t+1} for the one after it. Where x enters without a
matrix, it has as many features as there are units; in the modules it then has a bias that the
paper leaves out.
"""

from torch import sigmoid, tanh

from .cell import built_in
from .parts import Stage


def _mut1(pre, state):
    """h = tanh(R_h (r * h_) + tanh(x) + b_h) * z + h_ * (1 - z), for I = H.

    r = sigmoid(W_r x + R_r h_ + b_r), z = sigmoid(W_z x + b_z).
    """
    r, n, z, x = pre
    (h,) = state
    z = sigmoid(z)
    return tanh(n + tanh(x)) * z + h * (1 - z)


def _reset_by_first(pre, state):
    """r * h_, for cells whose first gate is r."""
    r = pre[0]
    (h,) = state
    return sigmoid(r) * h


MUT1 = built_in(
    "mut1",
    _mut1,
    gates=("r", "n", "z", "x"),
    x_gates=("r", "z", "x"),
    raw_gates=("x",),
    stages=(Stage(("r",)), Stage(("n",), _reset_by_first)),
)


def _mut(pre, state):
    """h = tanh(R_h (r * h_) + W_h x + b_h) * z + h_ * (1 - z)."""
    r, z, n = pre
    (h,) = state
    z = sigmoid(z)
    return tanh(n) * z + h * (1 - z)


def _mut2(pre, state):
    """h as in MUT3; r = sigmoid(x + R_r h_ + b_r), z = sigmoid(W_z x + R_z h_ + b_z), for I = H."""
    return _mut(pre, state)


MUT2 = built_in(
    "mut2",
    _mut2,
    gates=("r", "z", "n"),
    raw_gates=("r",),
    stages=(Stage(("r", "z")), Stage(("n",), _reset_by_first)),
)


def _squashed(pre, state):
    """tanh(h_), the source of z in MUT3."""
    (h,) = state
    return tanh(h)


def _mut3(pre, state):
    """h = tanh(R_h (r * h_) + W_h x + b_h) * z + h_ * (1 - z).

    r = sigmoid(W_r x + R_r h_ + b_r), z = sigmoid(W_z x + R_z tanh(h_) + b_z).
    """
    return _mut(pre, state)


MUT3 = built_in(
    "mut3",
    _mut3,
    gates=("r", "z", "n"),
    stages=(Stage(("r",)), Stage(("z",), _squashed), Stage(("n",), _reset_by_first)),
)
