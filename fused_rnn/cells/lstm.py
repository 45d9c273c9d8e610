"""Long short-term memory: the LSTM, with peepholes, and with coupled gates.

``greff`` has the variants of Greff et al. 2015.

In the equations, ``_`` marks a value of the step before and * is the product per unit.
``regularized`` says what ``candidate`` and ``memory`` are for.
"""

from torch import sigmoid, tanh

from .cell import Cell, built_in
from .parts import Stage, same


def _lstm(pre, state, candidate=same, memory=same):
    """c = f * c_ + i * g; h = o * tanh(c), with i, f, o = sigmoid(..), g = tanh(..).

    torch.nn.LSTM; Hochreiter & Schmidhuber 1997 (doi 10.1162/neco.1997.9.8.1735) with the forget
    gate of Gers et al. 2000 (doi 10.1162/089976600300015015).
    """
    i, f, g, o = pre
    h, c = state
    c = memory(sigmoid(f) * c + sigmoid(i) * candidate(tanh(g)))
    return sigmoid(o) * tanh(c), c


LSTM = built_in("lstm", _lstm, gates=("i", "f", "g", "o"), states=("h", "c"))


def _make_peephole_lstm(name, peepholes, **options):
    def _peephole_lstm(pre, state, params, candidate=same, memory=same):
        i, f, g, o = pre
        h, c = state
        p = dict(zip(peepholes, params, strict=True))
        i = i + p["i"] * c if "i" in p else i
        f = f + p["f"] * c if "f" in p else f
        c = memory(sigmoid(f) * c + sigmoid(i) * candidate(tanh(g)))
        o = o + p["o"] * c if "o" in p else o
        return sigmoid(o) * tanh(c), c

    return built_in(
        name,
        _peephole_lstm,
        gates=("i", "f", "g", "o"),
        states=("h", "c"),
        params=tuple(f"p_{gate}" for gate in peepholes),
        **options,
    )


_PEEPHOLE_LSTMS = {
    peepholes: _make_peephole_lstm(f"peephole_lstm_{peepholes}", peepholes, listed=False)
    for peepholes in ("i", "f", "o", "if", "io", "fo")
}
PEEPHOLE_LSTM = _make_peephole_lstm("peephole_lstm", "ifo", alias="peephole_lstm_ifo")
_PEEPHOLE_LSTMS["ifo"] = PEEPHOLE_LSTM


def peephole_lstm(peepholes: str = "ifo") -> Cell:
    """The LSTM whose gates see the cell state.

    Gers & Schmidhuber 2000 (doi 10.1109/IJCNN.2000.861302): i and f add p_i * c_ and p_f * c_,
    o adds p_o * c with the new c.

    Args:
        peepholes: which of the gates i, f, o have a peephole, in this order.

    Raises:
        ValueError: other letters or another order.
    """
    if peepholes not in tuple(_PEEPHOLE_LSTMS):
        raise ValueError(f"peepholes: expected some of 'ifo' in this order, got {peepholes!r}")
    return _PEEPHOLE_LSTMS[peepholes]


def _new_memory(pre, state, candidate, memory):
    i, f, g = pre[:3]
    c = state[1]
    return memory(sigmoid(f) * c + sigmoid(i) * candidate(tanh(g)))


def _hidden_and_new_memory(pre, state, candidate=same, memory=same):
    """(h_, c), the source of the last stage of ``PEEPHOLE_LSTM_FULL``."""
    return state[0], _new_memory(pre, state, candidate, memory)


def _peephole_lstm_full(pre, state, candidate=same, memory=same):
    """The LSTM whose gates see the memory through matrices.

    i = sigmoid(W_i x + R_i h_ + P_i c_ + b_i), f alike; o = sigmoid(W_o x + R_o h_ + P_o c + b_o)
    with the new c. P is (H, H); ``weight_hh`` has [R, P] side by side. The essay "Understanding
    LSTM Networks", taken by the letter: W_f [c_, h_, x], W_o [c, h_, x].
    """
    c = _new_memory(pre, state, candidate, memory)
    return sigmoid(pre[3]) * tanh(c), c


PEEPHOLE_LSTM_FULL = built_in(
    "peephole_lstm_full",
    _peephole_lstm_full,
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    stages=(
        Stage(("i", "f"), ("h", "c")),
        Stage(("g",)),
        Stage(("o",), _hidden_and_new_memory),
    ),
)


def _cifg_lstm(pre, state, candidate=same, memory=same):
    """The LSTM with i = 1 - f: Greff et al. 2015 (arXiv 1503.04069).

    Greff and ONNX's ``input_forget`` couple the other way, f = 1 - i: the same cell with the
    weights and biases of that gate negated.
    """
    f, g, o = pre
    h, c = state
    f = sigmoid(f)
    c = memory(f * c + (1 - f) * candidate(tanh(g)))
    return sigmoid(o) * tanh(c), c


CIFG_LSTM = built_in("cifg_lstm", _cifg_lstm, gates=("f", "g", "o"), states=("h", "c"))
