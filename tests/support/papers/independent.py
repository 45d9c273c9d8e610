"""Cells without a recurrent product, from their papers."""

from torch import relu, sigmoid, tanh

from .paper import paper


@paper("ind_rnn", x="W", b="b", params="u")
def _ind_rnn(p, x, state, t):
    """Li et al. 2018."""
    (h,) = state
    return relu(p.W @ x + p.u * h + p.b)


@paper("sru", x="W_f W_r W", b="b_f b_r 0 0", states="h c", params="v_f v_r", raw=True)
def _sru(p, x, state, t):
    """Lei et al. 2018, equations (1) to (4)."""
    _, c = state
    f = sigmoid(p.W_f @ x + p.v_f * c + p.b_f)
    new_c = f * c + (1 - f) * (p.W @ x)
    r = sigmoid(p.W_r @ x + p.v_r * c + p.b_r)
    return r * new_c + (1 - r) * x, new_c


@paper("qrnn", x="W1_z@before+W2_z W1_f@before+W2_f W1_o@before+W2_o", b="0 0 0", states="h c")
def _qrnn(p, x, state, t):
    """Bradbury et al. 2016, with filters of width 2 and fo-pooling."""
    _, c = state
    before = p.before[t]
    z = tanh(p.W1_z @ before + p.W2_z @ x)
    f = sigmoid(p.W1_f @ before + p.W2_f @ x)
    o = sigmoid(p.W1_o @ before + p.W2_o @ x)
    c = f * c + (1 - f) * z
    return o * c, c


@paper("min_gru", x="W_z W_h", b="b_z b_h")
def _min_gru(p, x, state, t):
    """Feng et al. 2024."""
    (h,) = state
    z = sigmoid(p.W_z @ x + p.b_z)
    h_tilde = p.W_h @ x + p.b_h
    return (1 - z) * h + z * h_tilde


@paper("min_lstm", x="W_f W_i W_h", b="b_f b_i b_h")
def _min_lstm(p, x, state, t):
    """Feng et al. 2024."""
    (h,) = state
    f = sigmoid(p.W_f @ x + p.b_f)
    i = sigmoid(p.W_i @ x + p.b_i)
    h_tilde = p.W_h @ x + p.b_h
    f_prime, i_prime = f / (f + i), i / (f + i)
    return f_prime * h + i_prime * h_tilde


_TYPED = {"x": "V_z@before+W_z V_f@before+W_f V_o@before+W_o", "b": "b_z b_f b_o"}


@paper("tgru", **_TYPED)
def _tgru(p, x, state, t):
    """Balduzzi & Ghifary 2016, with tau = tanh."""
    (h,) = state
    before = p.before[t]
    z = p.V_z @ before + p.W_z @ x + p.b_z
    f = sigmoid(p.V_f @ before + p.W_f @ x + p.b_f)
    o = tanh(p.V_o @ before + p.W_o @ x + p.b_o)
    return f * h + z * o


@paper("tlstm", **_TYPED, states="h c")
def _tlstm(p, x, state, t):
    """Balduzzi & Ghifary 2016, with tau = tanh."""
    _, c = state
    before = p.before[t]
    z = p.V_z @ before + p.W_z @ x + p.b_z
    f = sigmoid(p.V_f @ before + p.W_f @ x + p.b_f)
    o = tanh(p.V_o @ before + p.W_o @ x + p.b_o)
    c = f * c + (1 - f) * z
    return c * o, c
