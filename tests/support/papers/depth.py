"""Highways, and cells inside cells, from their papers."""

from torch import sigmoid, tanh

from .paper import paper


@paper(
    "highway_lstm",
    x="W_xi W_xf W_xc W_xo W_xr W_h",
    b="b_i b_f b_c b_o b_r 0",
    r="W_hi W_hf W_hc W_ho W_hr",
    states="h c",
)
def _highway_lstm(p, x, state, t):
    """He et al. 2017, whose W_i [h, x] is here W_hi h + W_xi x."""
    h, c = state
    i = sigmoid(p.W_hi @ h + p.W_xi @ x + p.b_i)
    o = sigmoid(p.W_ho @ h + p.W_xo @ x + p.b_o)
    f = sigmoid(p.W_hf @ h + p.W_xf @ x + p.b_f)
    r = sigmoid(p.W_hr @ h + p.W_xr @ x + p.b_r)
    c = i * tanh(p.W_hc @ h + p.W_xc @ x + p.b_c) + f * c
    h_prime = o * tanh(c)
    return r * h_prime + (1 - r) * (p.W_h @ x), c


@paper(
    "depth_gated_lstm",
    x="W_xi W_xf W_xc W_xo W_xd",
    b="b_i b_f b_c b_o b_d",
    r="W_hi W_hf W_hc W_ho",
    states="h c",
    params="w_cd w_ld",
    streams="c_below",
)
def _depth_gated_lstm(p, x, state, t):
    """Yao et al. 2015."""
    h, c = state
    below = p.c_below[t]
    i = sigmoid(p.W_xi @ x + p.W_hi @ h + p.b_i)
    f = sigmoid(p.W_xf @ x + p.W_hf @ h + p.b_f)
    o = sigmoid(p.W_xo @ x + p.W_ho @ h + p.b_o)
    d = sigmoid(p.b_d + p.W_xd @ x + p.w_cd * c + p.w_ld * below)
    c = d * below + f * c + i * tanh(p.W_xc @ x + p.W_hc @ h + p.b_c)
    return o * tanh(c), c


_DEPTH = range(1, 6)


@paper(
    "rhn",
    x="W_H W_T",
    b=" ".join(f"b_H{k} b_T{k}" for k in _DEPTH),
    r=", ".join(f"R_H{k} R_T{k}" for k in _DEPTH),
    states="s",
)
def _rhn(p, x, state, t):
    """Zilly et al. 2016, with the carry gate 1 - t and depth 5."""
    (s,) = state
    for k in _DEPTH:
        w_h, w_t = (p.W_H @ x, p.W_T @ x) if k == 1 else (0, 0)
        h = tanh(w_h + getattr(p, f"R_H{k}") @ s + getattr(p, f"b_H{k}"))
        t = sigmoid(w_t + getattr(p, f"R_T{k}") @ s + getattr(p, f"b_T{k}"))
        s = h * t + s * (1 - t)
    return s


@paper(
    "nested_lstm",
    x="W_xi W_xf W_xc W_xo",
    b="b_i b_f b_c b_o bt_i bt_f bt_c bt_o",
    r="W_hi W_hf W_hc W_ho, Wt_xi|Wt_hi Wt_xf|Wt_hf Wt_xc|Wt_hc Wt_xo|Wt_ho",
    states="h c ct",
)
def _nested_lstm(p, x, state, t):
    """Moniz & Krueger 2018; a tilde is written as t."""
    h, c, ct = state
    i = sigmoid(p.W_xi @ x + p.W_hi @ h + p.b_i)
    f = sigmoid(p.W_xf @ x + p.W_hf @ h + p.b_f)
    o = sigmoid(p.W_xo @ x + p.W_ho @ h + p.b_o)
    ht, xt = f * c, i * tanh(p.W_xc @ x + p.W_hc @ h + p.b_c)
    it = sigmoid(p.Wt_xi @ xt + p.Wt_hi @ ht + p.bt_i)
    ft = sigmoid(p.Wt_xf @ xt + p.Wt_hf @ ht + p.bt_f)
    ct = ft * ct + it * tanh(p.Wt_xc @ xt + p.Wt_hc @ ht + p.bt_c)
    ot = sigmoid(p.Wt_xo @ xt + p.Wt_ho @ ht + p.bt_o)
    c = ot * tanh(ct)
    return o * tanh(c), c, ct
