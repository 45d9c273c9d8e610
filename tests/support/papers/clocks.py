"""Cells with clocks, and for irregular times, from their papers."""

import math

import torch
from torch import exp, log, relu, sigmoid, tanh

from .paper import paper


def _periods(v):
    """1, 2, 4, ... in 9 groups of units."""
    return torch.tensor([2.0 ** (9 * k // len(v)) for k in range(len(v))]).to(v)


@paper("clockwork_rnn", x="W_I", b="b", r="W_H", params="T", fixed="T", T=_periods)
def _clockwork_rnn(p, x, state, t):
    """Koutnik et al. 2014: only modules with t mod T_i = 0 act, fed by those with T_j >= T_i."""
    (y,) = state
    rows = []
    for i, period in enumerate(p.T):
        if t % int(period) == 0:
            slower = [j for j in range(len(p.T)) if p.T[j] >= period]
            heard = sum(p.W_H[i, j] * y[j] for j in slower)
            rows.append(tanh(p.W_I[i] @ x + heard + p.b[i]))
        else:
            rows.append(y[i])
    return torch.stack(rows)


@paper(
    "phased_lstm",
    x="W_xi W_xf W_xc W_xo",
    b="b_i b_f b_c b_o",
    r="W_hi W_hf W_hc W_ho",
    states="h c",
    params="w_ci w_cf w_co tau s",
    streams="time",
    tau=lambda v: 1 + 3 * v.abs(),
    s=lambda v: 3 * v.abs(),
    time=lambda v: 20 * v.abs(),
)
def _phased_lstm(p, x, state, t):
    """Neil et al. 2016, with r_on = 0.05 and alpha = 0.001."""
    h, c = state
    phi = torch.remainder(p.time[t] - p.s, p.tau) / p.tau
    up, down, closed = 2 * phi / 0.05, 2 - 2 * phi / 0.05, 0.001 * phi
    k = torch.where(phi < 0.05 / 2, up, torch.where(phi < 0.05, down, closed))
    i = sigmoid(p.W_xi @ x + p.W_hi @ h + p.w_ci * c + p.b_i)
    f = sigmoid(p.W_xf @ x + p.W_hf @ h + p.w_cf * c + p.b_f)
    c_tilde = f * c + i * tanh(p.W_xc @ x + p.W_hc @ h + p.b_c)
    o = sigmoid(p.W_xo @ x + p.W_ho @ h + p.w_co * c_tilde + p.b_o)
    h_tilde = o * tanh(c_tilde)
    return k * h_tilde + (1 - k) * h, k * c_tilde + (1 - k) * c


@paper(
    "time_aware_lstm",
    x="W_i W_f W_c W_o",
    b="b_i b_f b_c b_o b_d",
    r="U_i U_f U_c U_o, W_d",
    states="h C",
    streams="delta",
    delta=lambda v: 5 * v.abs(),
)
def _time_aware_lstm(p, x, state, t):
    """Baytas et al. 2017, with g(delta) = 1 / log(e + delta)."""
    h, C = state
    C_short = tanh(p.W_d @ C + p.b_d)
    C_short_discounted = C_short * (1 / log(math.e + p.delta[t]))
    C_long = C - C_short
    C_adjusted = C_long + C_short_discounted
    f = sigmoid(p.W_f @ x + p.U_f @ h + p.b_f)
    i = sigmoid(p.W_i @ x + p.U_i @ h + p.b_i)
    o = sigmoid(p.W_o @ x + p.U_o @ h + p.b_o)
    C_tilde = tanh(p.W_c @ x + p.U_c @ h + p.b_c)
    C = f * C_adjusted + i * C_tilde
    return o * tanh(C), C


@paper(
    "gru_d",
    x="W_gamma@delta W_r+V_r@m W_z+V_z@m W+V@m",
    b="b_gamma b_r b_z b",
    r="U_r U_z, U",
    inputs="m delta",
)
def _gru_d(p, x, state, t):
    """Che et al. 2018, where x is their imputed one."""
    (h,) = state
    m, delta = p.m[t], p.delta[t]
    gamma = exp(-relu(p.W_gamma @ delta + p.b_gamma))
    h = gamma * h
    z = sigmoid(p.W_z @ x + p.U_z @ h + p.V_z @ m + p.b_z)
    r = sigmoid(p.W_r @ x + p.U_r @ h + p.V_r @ m + p.b_r)
    h_tilde = tanh(p.W @ x + p.U @ (r * h) + p.V @ m + p.b)
    return (1 - z) * h + z * h_tilde


def _odd(v):
    """2 i + 1, in a memory of order 8."""
    return torch.tensor([2.0 * i + 1 if i < 8 else 0.0 for i in range(len(v))]).to(v)


def _sign(v):
    return torch.tensor([(-1.0) ** i for i in range(len(v))]).to(v)


@paper(
    "lmu",
    x="W_u W_x",
    b="0 b",
    r="W_h|W_m",
    states="h m",
    params="e_h e_m odd sign",
    fixed="odd sign",
    odd=_odd,
    sign=_sign,
)
def _lmu(p, x, state, t):
    """Voelker et al. 2019, equations 2, 6 and 7 by Euler's method, with theta = 100 and dt = 1.

    The order is 8, and the memory's further units are 0; the encoder of x is the sum of W_u's rows.
    """
    h, m = state
    d, units = min(8, len(m)), len(m)
    u = (p.W_u @ x).sum(0) + (p.e_h * h).sum(0) + (p.e_m[:d] * m[:d]).sum(0)
    A = torch.tensor(
        [
            [(2 * i + 1) * (-1.0 if i < j else (-1.0) ** (i - j + 1)) for j in range(d)]
            for i in range(d)
        ]
    ).to(m)
    B = torch.tensor([[(2 * i + 1) * (-1.0) ** i] for i in range(d)]).to(m)
    memory = m[:d] + (A @ m[:d] + B * u) / 100
    m = torch.cat([memory, m.new_zeros(units - d, m.shape[1])])
    return tanh(p.W_x @ x + p.W_h @ h + p.W_m @ m + p.b), m
