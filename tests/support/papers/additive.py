"""Cells whose candidate depends on the input only, from their papers."""

from torch import sigmoid, tanh

from .paper import paper


@paper("ran", x="W_ix W_fx W_cx", b="b_i b_f 0", r="W_ih W_fh", states="h c")
def _ran(p, x, state, t):
    """Lee et al. 2017."""
    h, c = state
    c_tilde = p.W_cx @ x
    i = sigmoid(p.W_ih @ h + p.W_ix @ x + p.b_i)
    f = sigmoid(p.W_fh @ h + p.W_fx @ x + p.b_f)
    c = i * c_tilde + f * c
    return tanh(c), c


@paper("atr", x="W_x", b="0 0", r="W_h")
def _atr(p, x, state, t):
    """Zhang et al. 2018."""
    (h,) = state
    input, history = p.W_x @ x, p.W_h @ h
    i, f = sigmoid(input + history), sigmoid(input - history)
    return i * input + f * h


@paper("cfn", x="V_theta V_eta W", b="b_theta b_eta 0", r="U_theta U_eta")
def _cfn(p, x, state, t):
    """Laurent & von Brecht 2016."""
    (h,) = state
    theta = sigmoid(p.U_theta @ h + p.V_theta @ x + p.b_theta)
    eta = sigmoid(p.U_eta @ h + p.V_eta @ x + p.b_eta)
    return theta * tanh(h) + eta * tanh(p.W @ x)
