"""Cells without a recurrent product: each unit sees the state of its own only.

In the equations, ``_`` marks a value of the step before and * is the product per unit. W x stands
for a product of x as the modules have it, with a bias. A convolution over the last inputs, as in
``QRNN``, ``TGRU`` and ``TLSTM``, is such a product too: of the input of a layer that has them side
by side, ``torch.cat([x, before], -1)``.
"""

from torch import nn, relu, sigmoid, tanh

from .cell import built_in
from .parts import Param


def _ind_rnn(pre, state, params):
    """h = max(0, W x + u * h_): Li et al. 2018 (arXiv 1803.04831). u begins in U(0, 1)."""
    (n,) = pre
    (h,) = state
    (u,) = params
    return relu(n + u * h)


IND_RNN = built_in(
    "ind_rnn", _ind_rnn, gates=("n",), params=(Param("u", nn.init.uniform_),), stages=()
)


def _sru(pre, state, params):
    """c = f * c_ + (1 - f) * W x, h = r * c + (1 - r) * x, for I = H.

    f = sigmoid(W_f x + v_f * c_), r = sigmoid(W_r x + v_r * c_). The simple recurrent unit: Lei et
    al. 2018 (arXiv 1709.02755), without the factor alpha of x that their initialisation has. The
    modules add a bias to x.
    """
    f, r, n, x = pre
    c_before = state[1]
    v_f, v_r = params
    f, r = sigmoid(f + v_f * c_before), sigmoid(r + v_r * c_before)
    c = f * c_before + (1 - f) * n
    return r * c + (1 - r) * x, c


SRU = built_in(
    "sru",
    _sru,
    gates=("f", "r", "n", "x"),
    states=("h", "c"),
    params=("v_f", "v_r"),
    raw_gates=("x",),
    stages=(),
)


def _qrnn(pre, state):
    """c = f * c_ + (1 - f) * tanh(W_z x), h = o * c; f, o = sigmoid(W x).

    Quasi-recurrent networks: Bradbury et al. 2016 (arXiv 1611.01576), with their fo-pooling. W x is
    a convolution over the last inputs if the layer's input has them side by side.
    """
    z, f, o = pre
    c = state[1]
    f = sigmoid(f)
    c = f * c + (1 - f) * tanh(z)
    return sigmoid(o) * c, c


QRNN = built_in("qrnn", _qrnn, gates=("z", "f", "o"), states=("h", "c"), stages=())


def _min_gru(pre, state):
    """h = (1 - z) * h_ + z * W_n x, z = sigmoid(W_z x): Feng et al. 2024 (arXiv 2410.01201)."""
    z, n = pre
    (h,) = state
    z = sigmoid(z)
    return (1 - z) * h + z * n


MIN_GRU = built_in("min_gru", _min_gru, gates=("z", "n"), stages=())


def _min_lstm(pre, state):
    """h = (f * h_ + i * W_n x) / (f + i); f, i = sigmoid(W x): Feng et al. 2024, as min_gru."""
    f, i, n = pre
    (h,) = state
    f, i = sigmoid(f), sigmoid(i)
    return (f * h + i * n) / (f + i)


MIN_LSTM = built_in("min_lstm", _min_lstm, gates=("f", "i", "n"), stages=())


def _tgru(pre, state):
    """h = f * h_ + z * tanh(o); f is sigmoid(.), and z, f, o are of W x + V x_.

    The strongly typed GRU: Balduzzi & Ghifary 2016 (arXiv 1602.02218). The layer's input is
    [x, x_], side by side, and ``weight_ih`` is [W, V].
    """
    z, f, o = pre
    (h,) = state
    return sigmoid(f) * h + z * tanh(o)


TGRU = built_in("tgru", _tgru, gates=("z", "f", "o"), stages=())


def _tlstm(pre, state):
    """c = f * c_ + (1 - f) * z, h = c * tanh(o); f is sigmoid(.), and z, f, o are of W x + V x_.

    The strongly typed LSTM: Balduzzi & Ghifary 2016, with the input of ``TGRU``.
    """
    z, f, o = pre
    c = state[1]
    f = sigmoid(f)
    c = f * c + (1 - f) * z
    return c * tanh(o), c


TLSTM = built_in("tlstm", _tlstm, gates=("z", "f", "o"), states=("h", "c"), stages=())
