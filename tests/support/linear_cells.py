"""Cells without recurrent products that are linear in their states, beyond the built-in ones."""

import torch
from hypothesis import assume
from hypothesis import strategies as st
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

# What a random cell multiplies a state by, and adds.
_FUNCTIONS = (sigmoid, tanh, lambda v: exp(-v * v), lambda v: 0.5 - 0.9 * sigmoid(v), torch.sin)


@st.composite
def linear_cells(draw):
    """A cell of one to three states: each is a sum over some of them, times functions of gates."""
    states, gates = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    term = st.tuples(st.sampled_from(_FUNCTIONS), st.integers(0, gates - 1))
    rows = draw(st.lists(
        st.tuples(term, st.lists(st.none() | term, min_size=states, max_size=states)),
        min_size=states, max_size=states,
    ))  # fmt: skip

    assume(any(factor for _, factors in rows for factor in factors))  # it reads a state

    def step(pre, state):
        new = []
        for (function, gate), factors in rows:
            total = function(pre[gate])
            for old, factor in zip(state, factors, strict=True):
                if factor is not None:
                    total = total + factor[0](pre[factor[1]]) * old
            new.append(total)
        return tuple(new)

    names = {"gates": tuple("abc"[:gates]), "states": tuple("hcd"[:states])}
    return Cell("random_linear", step, stages=(), **names)
