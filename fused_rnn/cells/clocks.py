"""Cells with clocks: units that act now and then, and inputs at irregular times.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

import functools
import math

import torch
from torch import nn, relu, sigmoid, tanh

from .cell import Cell, built_in
from .parts import Param, Stage, same


def _group(units, groups):
    """The group of each unit, 0 to ``groups`` - 1: as equal in size as can be."""
    return torch.arange(units) * groups // units


def _set_periods(period, groups=9):
    """1, 2, 4, ... for the groups of units."""
    return period.copy_(2 ** _group(len(period), groups))


def _from_slower(matrix, groups=9):
    """The matrix with zeros where a group would be fed by a faster one."""
    group = _group(len(matrix), groups)
    return matrix * (group[:, None] <= group).to(matrix)


def _clockwork_rnn(pre, state, params, t):
    """h = tanh(W x + R h_ + b) for units whose period divides t, h_ for the others.

    Koutnik et al. 2014 (arXiv 1402.3511). The groups of units have the periods 1, 2, 4, ..., and
    each is fed by itself and by slower ones: the rest of R is zero. t counts from 0, so all units
    act at the first step. 9 groups are those of their first experiment. The periods are constants,
    which ``state_dict`` has; R is masked by the groups that they have at first.
    """
    (n,) = pre
    (h,) = state
    (period,) = params
    return torch.where(t % period == 0, tanh(n), h)


def _clockwork_rnn_parts(groups):
    periods = functools.partial(_set_periods, groups=groups)
    return {
        "step": _clockwork_rnn,
        "gates": ("n",),
        "params": (Param("period", periods, learned=False),),
        "stages": (Stage(("n",), "h", functools.partial(_from_slower, groups=groups)),),
    }


CLOCKWORK_RNN = built_in("clockwork_rnn", **_clockwork_rnn_parts(9))


def clockwork_rnn(groups: int = 9) -> Cell:
    """``CLOCKWORK_RNN`` with another number of groups.

    Raises:
        ValueError: less than 1.
    """
    if groups < 1:
        raise ValueError(f"groups: expected at least 1, got {groups}")
    return CLOCKWORK_RNN if groups == 9 else Cell("clockwork_rnn", **_clockwork_rnn_parts(groups))


def _log_uniform(tau):
    """exp of U(0, 3)."""
    return nn.init.uniform_(tau, 0, 3).exp_()


def _shift(s):
    return nn.init.uniform_(s, 0, math.exp(3))


def _openness(time, tau, s, r_on=0.05, leak=0.001):
    """k: rises to 1 and falls in the first r_on of each period, and leaks in the rest."""
    phase = ((time - s) % tau) / tau
    rising, falling = 2 * phase / r_on, 2 - 2 * phase / r_on
    return torch.where(phase < r_on / 2, rising, torch.where(phase < r_on, falling, leak * phase))


def _phased_lstm(pre, state, params, streams):
    """c = k * c' + (1 - k) * c_, h = k * o * tanh(c') + (1 - k) * h_, c' = f * c_ + i * g.

    k depends on the stream "time": with the phase p = ((time - s) mod tau) / tau it is 2 p / r for
    p < r / 2, 2 - 2 p / r for p < r, and leak * p for others. Neil et al. 2016 (arXiv 1610.09513),
    with their peepholes, r = 0.05 and leak = 0.001. tau begins as exp(U(0, 3)), as there, and s,
    which counts modulo tau, in U(0, exp(3)).
    """
    i, f, g, o = pre
    h, c = state
    p_i, p_f, p_o, tau, s = params
    k = _openness(streams[0], tau, s)
    new = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * tanh(g)
    opened = sigmoid(o + p_o * new) * tanh(new)
    return k * opened + (1 - k) * h, k * new + (1 - k) * c


PHASED_LSTM = built_in(
    "phased_lstm",
    _phased_lstm,
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    params=("p_i", "p_f", "p_o", Param("tau", _log_uniform), Param("s", _shift)),
    streams=("time",),
)


def _time_aware_lstm(pre, state, streams, candidate=same, memory=same):
    """The LSTM whose c_ is first c_ - d + d / log(e + elapsed), d = tanh(R_d c_ + b_d).

    d is the short-term part of the memory, and the stream "elapsed" the time since the step before.
    Baytas et al. 2017 (doi 10.1145/3097983.3097997), with their decay for long times.
    """
    i, f, g, o, d = pre
    c = state[1]
    (elapsed,) = streams
    d = tanh(d)
    c = c - d + d / torch.log(math.e + elapsed)
    c = memory(sigmoid(f) * c + sigmoid(i) * candidate(tanh(g)))
    return sigmoid(o) * tanh(c), c


TIME_AWARE_LSTM = built_in(
    "time_aware_lstm",
    _time_aware_lstm,
    gates=("i", "f", "g", "o", "d"),
    states=("h", "c"),
    streams=("elapsed",),
    x_gates=("i", "f", "g", "o"),
    stages=(Stage(("i", "f", "g", "o")), Stage(("d",), "c")),
)


def _decayed(pre, state):
    """exp(-max(0, d)) * h_, the source of r and z in ``GRU_D``."""
    d = pre[0]
    (h,) = state
    return torch.exp(-relu(d)) * h


def _reset_decayed(pre, state):
    return sigmoid(pre[1]) * _decayed(pre, state)


def _gru_d(pre, state):
    """The GRU (reset before the product) of a decayed state: h = (1 - z) * h' + z * n.

    h' = exp(-max(0, d)) * h_, and n = tanh(.. + R_n (r * h')). Che et al. 2018 (doi
    10.1038/s41598-018-24271-9, arXiv 1606.01865). The parts of x are W x' + V m + b for r, z and n,
    with their imputed x' and the mask m, and W delta + b for d, with the times since the last
    observations. Give these to ``scan``; a module takes [x', m, delta] side by side and has the
    other products too.
    """
    _, r, z, n = pre
    z = sigmoid(z)
    return (1 - z) * _decayed(pre, state) + z * tanh(n)


GRU_D = built_in(
    "gru_d",
    _gru_d,
    gates=("d", "r", "z", "n"),
    stages=(Stage(("r", "z"), _decayed), Stage(("n",), _reset_decayed)),
)
