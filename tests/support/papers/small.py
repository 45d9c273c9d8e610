"""Cells with few gates, from their papers."""

from torch import relu, sigmoid, tanh

from .paper import paper


@paper("mgu", x="W_fx W_hx", b="b_f b_h", r="W_fh, W_hh")
def _mgu(p, x, state, t):
    """Zhou et al. 2016, whose W_f [h, x] is here W_fh h + W_fx x."""
    (h,) = state
    f = sigmoid(p.W_fh @ h + p.W_fx @ x + p.b_f)
    h_tilde = tanh(p.W_hh @ (f * h) + p.W_hx @ x + p.b_h)
    return (1 - f) * h + f * h_tilde


@paper("janet", x="W_f W_c", b="b_f b_c", r="U_f U_c")
def _janet(p, x, state, t):
    """van der Westhuizen & Lasenby 2018, with their beta = 1."""
    (h,) = state
    s = p.U_f @ h + p.W_f @ x + p.b_f
    c_tilde = tanh(p.U_c @ h + p.W_c @ x + p.b_c)
    c = sigmoid(s) * h + (1 - sigmoid(s - 1)) * c_tilde  # h is c in their last equation
    return c


@paper("li_gru", x="W_z W_h", b="b_z b_h", r="U_z U_h")
def _li_gru(p, x, state, t):
    """Ravanelli et al. 2018, with the biases in place of their batch norm."""
    (h,) = state
    z = sigmoid(p.W_z @ x + p.b_z + p.U_z @ h)
    h_tilde = relu(p.W_h @ x + p.b_h + p.U_h @ h)
    return z * h + (1 - z) * h_tilde


@paper("light_ru", x="W_f W", b="b_f 0", r="U_f")
def _light_ru(p, x, state, t):
    """Ye et al. 2024."""
    (h,) = state
    h_tilde = tanh(p.W @ x)
    f = sigmoid(p.W_f @ x + p.U_f @ h + p.b_f)
    return (1 - f) * h + f * h_tilde


@paper("star", x="W_k W_z", b="b_k b_z", r="W_h")
def _star(p, x, state, t):
    """Turkoglu et al. 2019."""
    (h,) = state
    z = tanh(p.W_z @ x + p.b_z)
    k = sigmoid(p.W_k @ x + p.W_h @ h + p.b_k)
    return tanh((1 - k) * h + k * z)


@paper("ugrnn", x="W_cx W_gx", b="b_c b_g", r="W_ch W_gh")
def _ugrnn(p, x, state, t):
    """Collins et al. 2016, with s = tanh."""
    (h,) = state
    c = tanh(p.W_ch @ h + p.W_cx @ x + p.b_c)
    g = sigmoid(p.W_gh @ h + p.W_gx @ x + p.b_g)
    return g * h + (1 - g) * c


@paper(
    "intersection_rnn",
    x="W_yx W_hx W_gyx W_ghx",
    b="b_y b_h b_gy b_gh 0",
    r="W_yh W_hh W_gyh W_ghh",
    states="y h",
    raw=True,
)
def _intersection_rnn(p, x, state, t):
    """Collins et al. 2016: the +RNN, with s1 = relu and s2 = tanh."""
    _, h = state
    y_in = relu(p.W_yh @ h + p.W_yx @ x + p.b_y)
    h_in = tanh(p.W_hh @ h + p.W_hx @ x + p.b_h)
    g_y = sigmoid(p.W_gyh @ h + p.W_gyx @ x + p.b_gy)
    g_h = sigmoid(p.W_ghh @ h + p.W_ghx @ x + p.b_gh)
    return g_y * x + (1 - g_y) * y_in, g_h * h + (1 - g_h) * h_in


@paper("minimal_rnn", x="W_x", b="b_z b_u", r="U_h|U_z")
def _minimal_rnn(p, x, state, t):
    """Chen 2017, whose Phi is one layer here."""
    (h,) = state
    z = tanh(p.W_x @ x + p.b_z)
    u = sigmoid(p.U_h @ h + p.U_z @ z + p.b_u)
    return u * h + (1 - u) * z


@paper("scrn", x="B A", b="0 0", r="R|P", states="h s")
def _scrn(p, x, state, t):
    """Mikolov et al. 2014, with alpha = 0.95."""
    h, s = state
    s = (1 - 0.95) * (p.B @ x) + 0.95 * s
    return sigmoid(p.P @ s + p.A @ x + p.R @ h), s


@paper("fast_rnn", x="W", b="b", r="U", params="alpha beta")
def _fast_rnn(p, x, state, t):
    """Kusupati et al. 2018, with the sigmoids of alpha and beta."""
    (h,) = state
    h_tilde = tanh(p.W @ x + p.U @ h + p.b)
    return sigmoid(p.alpha) * h_tilde + sigmoid(p.beta) * h


@paper("fast_grnn", x="W", b="0", r="U", params="b_z b_h zeta nu")
def _fast_grnn(p, x, state, t):
    """Kusupati et al. 2018, with the sigmoids of zeta and nu."""
    (h,) = state
    z = sigmoid(p.W @ x + p.U @ h + p.b_z)
    h_tilde = tanh(p.W @ x + p.U @ h + p.b_h)
    return (sigmoid(p.zeta) * (1 - z) + sigmoid(p.nu)) * h_tilde + z * h
