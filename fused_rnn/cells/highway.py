"""Cells with highways: around the step, through its depth, or from the layer below.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
"""

from torch import sigmoid, tanh

from .cell import Cell, built_in
from .parts import Stage, same


def _highway_lstm(pre, state, candidate=same, memory=same):
    """h = r * o * tanh(c) + (1 - r) * W_x x, c = f * c_ + i * g; i, f, o, r = sigmoid(..).

    The LSTM with a highway around it: He et al. 2017 (doi 10.18653/v1/P17-1044). The modules add a
    bias to W_x x. The highway of Zhang et al. 2015 (arXiv 1510.08983) comes from the memory of the
    layer below, as in ``depth_gated_lstm``.
    """
    i, f, g, o, r, x = pre
    h, c = state
    c = memory(sigmoid(f) * c + sigmoid(i) * candidate(tanh(g)))
    r = sigmoid(r)
    return r * (sigmoid(o) * tanh(c)) + (1 - r) * x, c


HIGHWAY_LSTM = built_in(
    "highway_lstm",
    _highway_lstm,
    gates=("i", "f", "g", "o", "r", "x"),
    states=("h", "c"),
    stages=(Stage(("i", "f", "g", "o", "r")),),
)


def _depth_gated_lstm(pre, state, params, streams, candidate=same, memory=same):
    """c = d * c_below + f * c_ + i * g, h = o * tanh(c); i, f, g, o are the LSTM's.

    d = sigmoid(W_d x + w_cd * c_ + w_ld * c_below + b_d) is the depth gate, and c_below, a stream,
    the memory of the layer below after the same step. Yao et al. 2015 (arXiv 1508.03790). Their
    first layer has a learned projection of x as c_below, without the term of w_ld. The cell has
    their gates without peepholes. The module ``DepthGatedLSTM`` is a stack of it.
    """
    i, f, g, o, d = pre
    h, c = state
    w_cd, *w_ld = params
    (below,) = streams
    d = d + w_cd * c
    for w in w_ld:  # none in the first layer
        d = d + w * below
    c = memory(sigmoid(d) * below + sigmoid(f) * c + sigmoid(i) * candidate(tanh(g)))
    return sigmoid(o) * tanh(c), c


_DEPTH_GATED_LSTM = {
    "step": _depth_gated_lstm,
    "gates": ("i", "f", "g", "o", "d"),
    "states": ("h", "c"),
    "streams": ("c_below",),
    "stages": (Stage(("i", "f", "g", "o")),),
}
DEPTH_GATED_LSTM = built_in("depth_gated_lstm", params=("w_cd", "w_ld"), **_DEPTH_GATED_LSTM)


def depth_gated_lstm(first: bool = False) -> Cell:
    """``DEPTH_GATED_LSTM``; with ``first`` that of the first layer, without the param w_ld."""
    if not first:
        return DEPTH_GATED_LSTM
    return Cell("depth_gated_lstm", params=("w_cd",), **_DEPTH_GATED_LSTM)


def _rhn(pre, state):
    """s_l = t_l * tanh(n_l) + (1 - t_l) * s_(l-1), for l = 1 to the depth; s_0 = s_, s = s_L.

    n_l and t_l are of R_l s_(l-1) + b_l, and of W x for l = 1; t_l = sigmoid(..). The recurrent
    highway network: Zilly et al. 2016 (arXiv 1607.03474), with the carry gate c = 1 - t of their
    experiments, and one of their depths, 5. From the gates of the first stages this computes the
    source of the next one.
    """
    (s,) = state
    for n, t in zip(pre[::2], pre[1::2], strict=True):
        t = sigmoid(t)
        s = t * tanh(n) + (1 - t) * s
    return s


def _rhn_parts(depth):
    layers = [(f"n{k}", f"t{k}") for k in range(1, depth + 1)]
    return {
        "gates": [gate for layer in layers for gate in layer],
        "states": ("s",),
        "x_gates": layers[0],
        "stages": [Stage(layers[0], "s"), *(Stage(layer, _rhn) for layer in layers[1:])],
    }


RHN = built_in("rhn", _rhn, **_rhn_parts(5))


def rhn(depth: int = 5) -> Cell:
    """``RHN`` of another depth: the recurrent products of one step.

    Raises:
        ValueError: less than 1.
    """
    if depth < 1:
        raise ValueError(f"depth: expected at least 1, got {depth}")
    return RHN if depth == 5 else Cell("rhn", _rhn, **_rhn_parts(depth))
