"""The GRU of Dreamer's world model.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

from torch import sigmoid, tanh

from .cell import built_in
from .norms import rms_norm, rms_norm_stage
from .parts import Param, Stage, same


def _block_gru(pre, state, params, candidate=same):
    """h = u * tanh(r * n) + (1 - u) * h_; r = sigmoid(r), u = sigmoid(u - 1).

    r, n, u are the RMS norm of W x + R h_ + b, which spans all three, 3H, with a gain per value.
    The reset acts on the candidate's pre-activation, and u begins small, so that states last.
    Hafner et al. 2023 (arXiv 2301.04104), where R is block-diagonal: a matrix by heads.
    """
    r, n, u = (gain * rms_norm(gate, pre[3], 1e-4) for gate, gain in zip(pre, params, strict=False))
    u = sigmoid(u - 1)
    return u * candidate(tanh(sigmoid(r) * n)) + (1 - u) * state[0]


def _gates(pre, state):
    return (pre,)


BLOCK_GRU = built_in(
    "block_gru",
    _block_gru,
    gates=("r", "n", "u", "gates_square"),
    params=tuple(Param(f"gain_{gate}", init=1.0) for gate in "rnu"),
    x_gates=("r", "n", "u"),
    stages=(Stage(("r", "n", "u"), "h"), rms_norm_stage(("gates",), _gates)),
)
