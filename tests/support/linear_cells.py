"""Cells without recurrent products that are linear in their states, beyond the built-in ones."""

import torch
from torch import exp, sigmoid, tanh

from fused_rnn import Cell, cells
from fused_rnn.cells import regularized
from fused_rnn.cells.derived import derive
from tests.support.cells import GATED_AVERAGE, LEAKING_ALONE


def _rotation(pre, state, params):
    """A complex state times a learned complex number; its real part is the output, gated."""
    x, y, o = pre
    _, re, im = state
    a, b = (0.7 * tanh(param) for param in params)
    re, im = a * re - b * im + x, b * re + a * im + y
    return sigmoid(o) * tanh(re), re, im


# Two states that read each other, and an output that is not linear in them and that no step reads.
ROTATION = Cell(
    "rotation",
    _rotation,
    gates=("x", "y", "o"),
    states=("h", "re", "im"),
    params=("real", "imaginary"),
    stages=(),
)


def _chain(pre, state, params, streams, t):
    """Each state reads all three."""
    a, b = pre
    fast, middle, slow = state
    (rate,) = params
    (noise,) = streams
    mean = (fast + middle - slow) / (3 + t)
    fast = sigmoid(a) * fast + b + 0.5 * mean
    middle = torch.where(noise > 0, middle, mean) - exp(-rate * rate) * slow
    return fast, middle, torch.lerp(slow, fast, sigmoid(b)) + noise


CHAIN = Cell(
    "chain",
    _chain,
    gates=("a", "b"),
    states=("fast", "middle", "slow"),
    params=("rate",),
    streams=("noise",),
    stages=(),
)


def _growing(pre, state):
    return 1.5 * state[0] + pre[0]


# Its states grow beyond all float32 numbers, unless they are zero.
GROWING = Cell("growing", _growing, gates=("x",), stages=())

LINEAR = (
    GATED_AVERAGE,
    LEAKING_ALONE,
    ROTATION,
    CHAIN,
    *map(cells.get, ("min_gru", "min_lstm", "qrnn", "tgru", "tlstm")),
    derive(cells.QRNN, True, 1, 1),
    derive(cells.MIN_GRU, True, 2, 0),
    regularized.regularize(cells.TLSTM, (0.3, 0.2), 0.0, 0.0, 0.0, True),
)
