"""The mutated units of Jozefowicz et al. 2015, with h for h_t and the result for h_{t+1}."""

from torch import sigmoid, tanh

from .paper import paper


@paper("mut1", x="W_xr W_xz", b="b_r b_z 0 b_h", r="W_hr, W_hh", raw=True)
def _mut1(p, x, state, t):
    (h,) = state
    z = sigmoid(p.W_xz @ x + p.b_z)
    r = sigmoid(p.W_xr @ x + p.W_hr @ h + p.b_r)
    return tanh(p.W_hh @ (r * h) + tanh(x) + p.b_h) * z + h * (1 - z)


@paper("mut2", x="W_xz W_xh", b="b_r b_z b_h", r="W_hr W_hz, W_hh", raw=True)
def _mut2(p, x, state, t):
    (h,) = state
    z = sigmoid(p.W_xz @ x + p.W_hz @ h + p.b_z)
    r = sigmoid(x + p.W_hr @ h + p.b_r)
    return tanh(p.W_hh @ (r * h) + p.W_xh @ x + p.b_h) * z + h * (1 - z)


@paper("mut3", x="W_xr W_xz W_xh", b="b_r b_z b_h", r="W_hr, W_hz, W_hh")
def _mut3(p, x, state, t):
    (h,) = state
    z = sigmoid(p.W_xz @ x + p.W_hz @ tanh(h) + p.b_z)
    r = sigmoid(p.W_xr @ x + p.W_hr @ h + p.b_r)
    return tanh(p.W_hh @ (r * h) + p.W_xh @ x + p.b_h) * z + h * (1 - z)
