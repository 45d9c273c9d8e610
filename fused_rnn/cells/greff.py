"""The variants of the LSTM that Greff et al. 2015 compare (arXiv 1503.04069).

Each is their LSTM changed in one place. In the equations, ``_`` marks a value of the step before
and * is the product per unit. The peepholes p are vectors:

    i = sigmoid(W_i x + R_i h_ + p_i * c_ + b_i)        c = f * c_ + i * g
    f = sigmoid(W_f x + R_f h_ + p_f * c_ + b_f)        h = o * tanh(c)
    o = sigmoid(W_o x + R_o h_ + p_o * c + b_o)         g = tanh(W_g x + R_g h_ + b_g)

Greff et al. write z for g and y for h. Their CIFG, f = 1 - i, is ``lstm.CIFG_LSTM`` if it has no
peepholes. ``regularized`` says what ``candidate`` and ``memory`` are for.
"""

from torch import sigmoid, tanh

from .cell import built_in
from .lstm import LSTM
from .parts import Stage, same


def _nig_lstm(pre, state, params, candidate=same, memory=same):
    """NIG, no input gate: i = 1."""
    f, g, o = pre
    h, c = state
    p_f, p_o = params
    c = memory(sigmoid(f + p_f * c) * c + candidate(tanh(g)))
    return sigmoid(o + p_o * c) * tanh(c), c


NIG_LSTM = built_in(
    "nig_lstm", _nig_lstm, gates=("f", "g", "o"), states=("h", "c"), params=("p_f", "p_o")
)


def _nfg_lstm(pre, state, params, candidate=same, memory=same):
    """NFG, no forget gate: f = 1."""
    i, g, o = pre
    h, c = state
    p_i, p_o = params
    c = memory(c + sigmoid(i + p_i * c) * candidate(tanh(g)))
    return sigmoid(o + p_o * c) * tanh(c), c


NFG_LSTM = built_in(
    "nfg_lstm", _nfg_lstm, gates=("i", "g", "o"), states=("h", "c"), params=("p_i", "p_o")
)


def _nog_lstm(pre, state, params, candidate=same, memory=same):
    """NOG, no output gate: o = 1."""
    i, f, g = pre
    h, c = state
    p_i, p_f = params
    c = memory(sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * candidate(tanh(g)))
    return tanh(c), c


NOG_LSTM = built_in(
    "nog_lstm", _nog_lstm, gates=("i", "f", "g"), states=("h", "c"), params=("p_i", "p_f")
)


def _niaf_lstm(pre, state, params, candidate=same, memory=same):
    """NIAF, no input activation function: g = W_g x + R_g h_ + b_g."""
    i, f, g, o = pre
    h, c = state
    p_i, p_f, p_o = params
    c = memory(sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * candidate(g))
    return sigmoid(o + p_o * c) * tanh(c), c


NIAF_LSTM = built_in(
    "niaf_lstm",
    _niaf_lstm,
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    params=("p_i", "p_f", "p_o"),
)


def _noaf_lstm(pre, state, params, candidate=same, memory=same):
    """NOAF, no output activation function: h = o * c."""
    i, f, g, o = pre
    h, c = state
    p_i, p_f, p_o = params
    c = memory(sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * candidate(tanh(g)))
    return sigmoid(o + p_o * c) * c, c


NOAF_LSTM = built_in(
    "noaf_lstm",
    _noaf_lstm,
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    params=("p_i", "p_f", "p_o"),
)


# NP, no peepholes: the same as ``lstm``.
NP_LSTM = built_in("np_lstm", LSTM.step, gates=LSTM.gates, states=LSTM.states)


def _fgr_lstm(pre, state, params, candidate=same, memory=same):
    """FGR, full gate recurrence: the gates see the gates of the step before.

    i, f and o each add R i_ + R f_ + R o_ inside the sigmoid, with nine more matrices and the
    gates' values after it. These are states, so ``weight_hh0`` is (3H, 4H), for [h_, i_, f_, o_].
    """
    i, f, o, g = pre
    c = state[1]
    p_i, p_f, p_o = params
    i, f = sigmoid(i + p_i * c), sigmoid(f + p_f * c)
    c = memory(f * c + i * candidate(tanh(g)))
    o = sigmoid(o + p_o * c)
    return o * tanh(c), c, i, f, o


FGR_LSTM = built_in(
    "fgr_lstm",
    _fgr_lstm,
    gates=("i", "f", "o", "g"),
    states=("h", "c", "i", "f", "o"),
    params=("p_i", "p_f", "p_o"),
    stages=(Stage(("i", "f", "o"), ("h", "i", "f", "o")), Stage(("g",))),
)
