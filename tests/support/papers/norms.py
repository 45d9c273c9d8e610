"""Cells with norms and with a softmax over their units."""

import torch
from torch import sigmoid, tanh
from torch.nn import functional

from .paper import paper


def _norm(*parts, gain=None, bias=None, eps=1e-5):
    """Layer norm of columns (H, B), which spans all of ``parts``."""
    rows = torch.cat(parts).mT
    gain, bias = (None if v is None else torch.cat(v).squeeze(1) for v in (gain, bias))
    return functional.layer_norm(rows, rows.shape[1:], gain, bias, eps).mT.chunk(len(parts))


@paper(
    "layer_norm_lstm",
    x="W_xi W_xf W_xg W_xo",
    b="0 0 0 0 0 0 0 0",
    r="W_hi W_hf W_hg W_ho",
    states="h c",
    params="a2_i a2_f a2_g a2_o a1_i a1_f a1_g a1_o b_i b_f b_g b_o a3 b3",
)
def _layer_norm_lstm(p, x, state, t):
    """Ba et al. 2016, equations 20 to 22, where b is the sum of b and both norms' biases."""
    h, c = state
    h_parts = [W @ h for W in (p.W_hf, p.W_hi, p.W_ho, p.W_hg)]
    x_parts = [W @ x for W in (p.W_xf, p.W_xi, p.W_xo, p.W_xg)]
    bias = (p.b_f, p.b_i, p.b_o, p.b_g)
    of_h = _norm(*h_parts, gain=(p.a1_f, p.a1_i, p.a1_o, p.a1_g), bias=bias)
    of_x = _norm(*x_parts, gain=(p.a2_f, p.a2_i, p.a2_o, p.a2_g))
    f, i, o, g = (a + b for a, b in zip(of_h, of_x, strict=True))
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    (normed,) = _norm(c, gain=(p.a3,), bias=(p.b3,))
    return sigmoid(o) * tanh(normed), c


@paper(
    "layer_norm_gru",
    x="W_xr W_xz W",
    b="0 0 0 0 0 0",
    r="W_hr W_hz U",
    params="a2_r a2_z a3 a1_r a1_z a4 b_r b_z b3 b4",
)
def _layer_norm_gru(p, x, state, t):
    """Ba et al. 2016, the supplementary equations of the GRU."""
    (h,) = state
    of_h = _norm(p.W_hz @ h, p.W_hr @ h, gain=(p.a1_z, p.a1_r), bias=(p.b_z, p.b_r))
    of_x = _norm(p.W_xz @ x, p.W_xr @ x, gain=(p.a2_z, p.a2_r))
    z, r = (a + b for a, b in zip(of_h, of_x, strict=True))
    (w,) = _norm(p.W @ x, gain=(p.a3,), bias=(p.b3,))
    (u,) = _norm(p.U @ h, gain=(p.a4,), bias=(p.b4,))
    return (1 - sigmoid(z)) * h + sigmoid(z) * tanh(w + sigmoid(r) * u)


@paper(
    "on_lstm",
    x="W_i W_f W_c W_o W_mf W_mi",
    b="b_i b_f b_c b_o b_mf b_mi",
    r="U_i U_f U_c U_o U_mf U_mi",
    states="h c",
)
def _on_lstm(p, x, state, t):
    """Shen et al. 2019, equations 1 to 14."""
    h, c = state

    def cumax(z):
        return functional.softmax(z, 0).cumsum(0)

    f = sigmoid(p.W_f @ x + p.U_f @ h + p.b_f)
    i = sigmoid(p.W_i @ x + p.U_i @ h + p.b_i)
    o = sigmoid(p.W_o @ x + p.U_o @ h + p.b_o)
    new = tanh(p.W_c @ x + p.U_c @ h + p.b_c)
    master_f = cumax(p.W_mf @ x + p.U_mf @ h + p.b_mf)
    master_i = 1 - cumax(p.W_mi @ x + p.U_mi @ h + p.b_mi)
    overlap = master_f * master_i
    f = f * overlap + (master_f - overlap)
    i = i * overlap + (master_i - overlap)
    c = f * c + i * new
    return o * tanh(c), c


@paper("block_gru", x="W_r W_c W_u", b="b_r b_c b_u", r="R_r R_c R_u", params="g_r g_c g_u")
def _block_gru(p, x, state, t):
    """The GRU of Hafner et al. 2023, whose Linear has an RMS norm."""
    (h,) = state
    W, R, b = (torch.cat([getattr(p, f"{n}_{g}") for g in "rcu"]) for n in "WRb")
    rows = (W @ x + R @ h + b).mT
    normed = functional.rms_norm(rows, rows.shape[1:], eps=1e-4).mT
    reset, cand, update = (normed * torch.cat((p.g_r, p.g_c, p.g_u))).chunk(3)
    reset = sigmoid(reset)
    cand = tanh(reset * cand)
    update = sigmoid(update - 1)
    return update * cand + (1 - update) * h
