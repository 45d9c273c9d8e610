"""The cell that a search over architectures found.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

from torch import relu, sigmoid, tanh

from .cell import built_in
from .parts import Stage


def _nas(pre, state):
    """c = tanh(tanh(a_0 * a_1) + c_) * tanh(a_2 + a_3), h = tanh(c * m).

    m = tanh(tanh(a_4 * a_5) + sigmoid(a_6 + a_7)). a_3 = max(0, (W_3 x) * (R_3 h_ + b_3)); the
    others are of W x + R h_ + b: sigmoid for 0, 2, 5 and 7, relu for 1, tanh for 4 and 6. Zoph & Le
    2017 (arXiv 1611.01578), as in their code, TensorFlow's NASCell. The modules add a bias to
    W_3 x.
    """
    n0, n1, n2, n3, n4, n5, n6, n7, x3 = pre
    h, c = state
    c = tanh(tanh(sigmoid(n0) * relu(n1)) + c) * tanh(sigmoid(n2) + relu(x3 * n3))
    m = tanh(tanh(tanh(n4) * sigmoid(n5)) + sigmoid(tanh(n6) + sigmoid(n7)))
    return tanh(c * m), c


_PRODUCTS = tuple(f"n{k}" for k in range(8))

NAS = built_in(
    "nas",
    _nas,
    gates=(*_PRODUCTS, "x3"),
    states=("h", "c"),
    x_gates=("n0", "n1", "n2", "x3", "n4", "n5", "n6", "n7"),
    stages=(Stage(_PRODUCTS),),
)
