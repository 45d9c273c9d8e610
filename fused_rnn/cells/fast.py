"""FastRNN and FastGRNN: Kusupati et al. 2018 (arXiv 1901.02358).

In the equations, ``_`` marks a value of the step before and * is the product per unit. The scalars
alpha, beta, zeta and nu are learned; their values here are before a sigmoid. They begin as in the
authors' code.
"""

from torch import sigmoid, tanh

from .cell import built_in
from .parts import Param


def _fast_rnn(pre, state, params):
    """h = sigmoid(alpha) * tanh(W x + U h_ + b) + sigmoid(beta) * h_."""
    (n,) = pre
    (h,) = state
    alpha, beta = params
    return sigmoid(alpha) * tanh(n) + sigmoid(beta) * h


FAST_RNN = built_in(
    "fast_rnn",
    _fast_rnn,
    gates=("n",),
    params=(Param("alpha", -3.0, scalar=True), Param("beta", 3.0, scalar=True)),
)


def _fast_grnn(pre, state, params):
    """h = (sigmoid(zeta) * (1 - z) + sigmoid(nu)) * tanh(a + b_h) + z * h_.

    z = sigmoid(a + b_z), a = W x + U h_: the gate and the candidate share the matrices. In the
    modules a has a bias too, which adds to b_z and b_h.
    """
    (a,) = pre
    (h,) = state
    b_z, b_h, zeta, nu = params
    z = sigmoid(a + b_z)
    return (sigmoid(zeta) * (1 - z) + sigmoid(nu)) * tanh(a + b_h) + z * h


FAST_GRNN = built_in(
    "fast_grnn",
    _fast_grnn,
    gates=("a",),
    params=(
        Param("b_z", 1.0),
        Param("b_h", 1.0),
        Param("zeta", 1.0, scalar=True),
        Param("nu", -4.0, scalar=True),
    ),
)
