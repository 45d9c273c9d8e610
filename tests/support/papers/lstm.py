"""The LSTM with full peepholes, the variants of Greff et al. 2015, and later kinds of LSTM."""

import torch
from torch import exp, log, sigmoid, tanh

from .paper import paper


@paper(
    "peephole_lstm_full",
    x="W_xi W_xf W_xC W_xo",
    b="b_i b_f b_C b_o",
    r="W_hi|W_Ci W_hf|W_Cf, W_hC, W_ho|W_Co",
    states="h C",
)
def _full_peepholes(p, x, state, t):
    """Understanding LSTM Networks, whose W_f [C, h, x] is here W_Cf C + W_hf h + W_xf x."""
    h, C = state
    f = sigmoid(p.W_Cf @ C + p.W_hf @ h + p.W_xf @ x + p.b_f)
    i = sigmoid(p.W_Ci @ C + p.W_hi @ h + p.W_xi @ x + p.b_i)
    C = f * C + i * tanh(p.W_hC @ h + p.W_xC @ x + p.b_C)
    o = sigmoid(p.W_Co @ C + p.W_ho @ h + p.W_xo @ x + p.b_o)
    return o * tanh(C), C


def _greff(name, gates, without=None, params="ifo"):
    """The vanilla LSTM of Greff et al. 2015 in its letters, without one of its parts."""

    @paper(
        name,
        x=" ".join(f"W_{gate}" for gate in gates),
        b=" ".join(f"b_{gate}" for gate in gates),
        r=" ".join(f"R_{gate}" for gate in gates),
        states="y c",
        params=" ".join(f"p_{gate}" for gate in params),
    )
    def _step(p, x, state, t):
        y, c = state
        g = h = tanh
        if without == "input activation":
            g = _identity
        if without == "output activation":
            h = _identity
        peephole = 0 if without == "peepholes" else 1
        z = g(p.W_z @ x + p.R_z @ y + p.b_z)
        i = f = o = 1
        if without != "input gate":
            i = sigmoid(p.W_i @ x + p.R_i @ y + (peephole and p.p_i * c) + p.b_i)
        if without != "forget gate":
            f = sigmoid(p.W_f @ x + p.R_f @ y + (peephole and p.p_f * c) + p.b_f)
        c = i * z + f * c
        if without != "output gate":
            o = sigmoid(p.W_o @ x + p.R_o @ y + (peephole and p.p_o * c) + p.b_o)
        return o * h(c), c


def _identity(x):
    return x


_greff("nig_lstm", "fzo", "input gate", "fo")
_greff("nfg_lstm", "izo", "forget gate", "io")
_greff("nog_lstm", "ifz", "output gate", "if")
_greff("niaf_lstm", "ifzo", "input activation")
_greff("noaf_lstm", "ifzo", "output activation")
_greff("np_lstm", "ifzo", "peepholes", "")


@paper(
    "fgr_lstm",
    x="W_i W_f W_o W_z",
    b="b_i b_f b_o b_z",
    r="R_i|R_ii|R_fi|R_oi R_f|R_if|R_ff|R_of R_o|R_io|R_fo|R_oo, R_z",
    states="y c i f o",
    params="p_i p_f p_o",
)
def _full_gate_recurrence(p, x, state, t):
    y, c, i, f, o = state
    i, f, o_before_peephole = (
        p.W_i @ x + p.R_i @ y + p.p_i * c + p.b_i + p.R_ii @ i + p.R_fi @ f + p.R_oi @ o,
        p.W_f @ x + p.R_f @ y + p.p_f * c + p.b_f + p.R_if @ i + p.R_ff @ f + p.R_of @ o,
        p.W_o @ x + p.R_o @ y + p.b_o + p.R_io @ i + p.R_fo @ f + p.R_oo @ o,
    )
    i, f = sigmoid(i), sigmoid(f)
    z = tanh(p.W_z @ x + p.R_z @ y + p.b_z)
    c = i * z + f * c
    o = sigmoid(o_before_peephole + p.p_o * c)
    return o * tanh(c), c, i, f, o


@paper("grid_lstm", x="W_u W_f W_c W_o", b="b_u b_f b_c b_o", r="R_u R_f R_c R_o", states="h m")
def _grid_lstm(p, x, state, t):
    """Kalchbrenner et al. 2015, along one dimension: W of H = [x; h] is [W, R] here."""
    h, m = state
    u = sigmoid(p.W_u @ x + p.R_u @ h + p.b_u)
    f = sigmoid(p.W_f @ x + p.R_f @ h + p.b_f)
    o = sigmoid(p.W_o @ x + p.R_o @ h + p.b_o)
    c = tanh(p.W_c @ x + p.R_c @ h + p.b_c)
    m = f * m + u * c
    return tanh(o * m), m


def _positive(v):
    return 1 + v.abs()


@paper(
    "slstm",
    x="W_i W_f W_z W_o",
    b="b_i b_f b_z b_o",
    r="R_i R_f R_z R_o",
    states="h c n m",
    n_0=_positive,
)
def _slstm(p, x, state, t):
    """Beck et al. 2024, equations (8) to (17), with one head and a sigmoid forget gate."""
    h, c, n, m = state
    z = tanh(p.W_z @ x + p.R_z @ h + p.b_z)
    i = exp(p.W_i @ x + p.R_i @ h + p.b_i)
    f = sigmoid(p.W_f @ x + p.R_f @ h + p.b_f)
    o = sigmoid(p.W_o @ x + p.R_o @ h + p.b_o)
    new_m = torch.maximum(log(f) + m, log(i))
    i_prime, f_prime = exp(log(i) - new_m), exp(log(f) + m - new_m)
    c = f_prime * c + i_prime * z
    n = f_prime * n + i_prime
    return o * (c / n), c, n, new_m


@paper(
    "multiplicative_lstm",
    x="W_mx W_ix W_fx W_hx W_ox",
    b="0 b_i b_f b_h b_o 0",
    r="W_mh, W_im W_fm W_hm W_om",
    states="h c",
)
def _multiplicative_lstm(p, x, state, t):
    """Krause et al. 2016."""
    h, c = state
    m = (p.W_mx @ x) * (p.W_mh @ h)
    h_hat = p.W_hx @ x + p.W_hm @ m + p.b_h
    i = sigmoid(p.W_ix @ x + p.W_im @ m + p.b_i)
    o = sigmoid(p.W_ox @ x + p.W_om @ m + p.b_o)
    f = sigmoid(p.W_fx @ x + p.W_fm @ m + p.b_f)
    c = f * c + i * tanh(h_hat)
    return tanh(c) * o, c


@paper(
    "mogrifier_lstm",
    x="",
    b="0 0 0 0 0 0 b_i b_f b_j b_o",
    r="Q_1, R_2, Q_3, R_4, Q_5, W_hi|W_xi W_hf|W_xf W_hj|W_xj W_ho|W_xo",
    states="h c",
    raw=True,
)
def _mogrifier_lstm(p, x, state, t):
    """Melis et al. 2019, with five rounds."""
    h, c = state
    x = 2 * sigmoid(p.Q_1 @ h) * x
    h = 2 * sigmoid(p.R_2 @ x) * h
    x = 2 * sigmoid(p.Q_3 @ h) * x
    h = 2 * sigmoid(p.R_4 @ x) * h
    x = 2 * sigmoid(p.Q_5 @ h) * x
    f = sigmoid(p.W_xf @ x + p.W_hf @ h + p.b_f)
    i = sigmoid(p.W_xi @ x + p.W_hi @ h + p.b_i)
    j = tanh(p.W_xj @ x + p.W_hj @ h + p.b_j)
    o = sigmoid(p.W_xo @ x + p.W_ho @ h + p.b_o)
    c = f * c + i * j
    return o * tanh(c), c
