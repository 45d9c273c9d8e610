"""Independent cells: plain loops with a matrix per gate, after the equations of the papers.

Nothing here uses ``fused_rnn``. Each function takes the tensors of a ``Values`` by name (W, R
and b of a gate, initial states, ...) and returns the outputs (T, B, H) and the final states.
"""

from __future__ import annotations

import torch
from torch import nn, sigmoid, tanh


class Values(dict):
    """Tensors by name, created at first use; ``v.W("i", x)`` is W_i x."""

    def __init__(self, seed=0, T=4, B=3, I=5, H=6):  # noqa: E741
        super().__init__()
        self.sizes = {"T": T, "B": B, "I": I, "H": H}
        self.generator = torch.Generator().manual_seed(seed)

    def make(self, name, dims):
        if name not in self:
            shape = [self.sizes[dim] for dim in dims]
            value = 0.5 * torch.randn(shape, generator=self.generator, dtype=torch.float64)
            self[name] = value.requires_grad_()
        return self[name]

    def W(self, gate, x):
        return x @ self.make(f"W_{gate}", "HI").T

    def R(self, gate, h):
        return h @ self.make(f"R_{gate}", "HH").T

    def b(self, gate):
        return self.make(f"b_{gate}", "H")

    @property
    def x(self):
        return self.make("x", "TBI")

    def gate(self, gate, x, h):
        return self.W(gate, x) + self.R(gate, h) + self.b(gate)


def _torch_nn(module, gates, states):
    """A module of torch.nn in float64, whose bias_hh is zero except for n of the GRU."""

    def run(v):
        rnn = module(v.sizes["I"], v.sizes["H"], dtype=torch.float64)
        start = [v.make(name, "BH")[None] for name in states]
        zeros = torch.zeros(v.sizes["H"], dtype=torch.float64)
        weights = {
            "weight_ih_l0": torch.cat([v.make(f"W_{g}", "HI") for g in gates]),
            "weight_hh_l0": torch.cat([v.make(f"R_{g}", "HH") for g in gates]),
            "bias_ih_l0": torch.cat([v.b(g) for g in gates]),
            "bias_hh_l0": torch.cat(
                [v.b("hn") if gates == "rzn" and g == "n" else zeros for g in gates]
            ),
        }
        hx = tuple(start) if len(start) > 1 else start[0]
        output, finals = torch.func.functional_call(rnn, weights, (v.x, hx))
        return output, [f[0] for f in (finals if len(start) > 1 else (finals,))]

    return run


def _relu_rnn(*args, **kwargs):
    return nn.RNN(*args, nonlinearity="relu", **kwargs)


torch_rnn_tanh = _torch_nn(nn.RNN, "n", ("h",))
torch_rnn_relu = _torch_nn(_relu_rnn, "n", ("h",))
torch_lstm = _torch_nn(nn.LSTM, "ifgo", ("h", "c"))
torch_gru = _torch_nn(nn.GRU, "rzn", ("h",))


def _loop(step, states):
    """The outputs and final states of ``step(v, x, state, t)``."""

    def run(v):
        state, outputs = [v.make(name, "BH") for name in states], []
        for t, x in enumerate(v.x):
            state = step(v, x, state, t)
            outputs.append(state[0])
        return torch.stack(outputs), list(state)

    return run


def peephole_lstm(peepholes):
    """Gers & Schmidhuber 2000, with the output gate reading the new c."""

    def peep(v, gate, c):
        return v.make(f"p_{gate}", "H") * c if gate in peepholes else 0

    def step(v, x, state, t):
        h, c = state
        i = sigmoid(v.gate("i", x, h) + peep(v, "i", c))
        f = sigmoid(v.gate("f", x, h) + peep(v, "f", c))
        c = f * c + i * tanh(v.gate("g", x, h))
        o = sigmoid(v.gate("o", x, h) + peep(v, "o", c))
        return o * tanh(c), c

    return _loop(step, ("h", "c"))


def _cifg_lstm(v, x, state, t):
    """Understanding LSTM Networks: the forget gate decides, i = 1 - f."""
    h, c = state
    f = sigmoid(v.gate("f", x, h))
    c = f * c + (1 - f) * tanh(v.gate("g", x, h))
    return sigmoid(v.gate("o", x, h)) * tanh(c), c


def _cifg_lstm_greff(v, x, state, t):
    """Greff et al. 2015: the input gate decides, f = 1 - i."""
    h, c = state
    i = sigmoid(v.gate("i", x, h))
    c = (1 - i) * c + i * tanh(v.gate("g", x, h))
    return sigmoid(v.gate("o", x, h)) * tanh(c), c


def _gru_reset_before(v, x, state, t):
    """Cho et al. 2014: z keeps the old state."""
    (h,) = state
    r, z = sigmoid(v.gate("r", x, h)), sigmoid(v.gate("z", x, h))
    return (z * h + (1 - z) * tanh(v.gate("n", x, r * h)),)


def _gru_essay(v, x, state, t):
    """Understanding LSTM Networks: z takes the new state."""
    (h,) = state
    r, z = sigmoid(v.gate("r", x, h)), sigmoid(v.gate("z", x, h))
    return ((1 - z) * h + z * tanh(v.gate("n", x, r * h)),)


cifg_lstm = _loop(_cifg_lstm, ("h", "c"))
cifg_lstm_greff = _loop(_cifg_lstm_greff, ("h", "c"))
gru_reset_before = _loop(_gru_reset_before, ("h",))
gru_essay = _loop(_gru_essay, ("h",))


# The cells of ``tests/support/cells.py``.


def _sparse_lstm(v, x, state, t):
    """An LSTM whose input and output gates do not see the input."""
    h, c = state
    i, o = (sigmoid(v.R(gate, h) + v.b(gate)) for gate in "io")
    c = sigmoid(v.gate("f", x, h)) * c + i * tanh(v.gate("g", x, h))
    return o * tanh(c), c


def _zoneout_lstm(v, x, state, t):
    """Krueger et al. 2016: a unit keeps its old state where the mask says so."""
    keep_h, keep_c = v.make("keep_h", "TBH")[t], v.make("keep_c", "TBH")[t]
    h, c = state
    i, f, o = (sigmoid(v.gate(gate, x, h)) for gate in "ifo")
    new_c = f * c + i * tanh(v.gate("g", x, h))
    new_h = o * tanh(new_c)
    return h + (1 - keep_h) * (new_h - h), c + (1 - keep_c) * (new_c - c)


def _clockwork_rnn(v, x, state, t):
    """Koutnik et al. 2014, without the triangular mask: a unit acts where its period divides t."""
    (h,) = state
    new = tanh(v.gate("n", x, h))
    acts = [t % int(period) == 0 for period in v["period"]]
    return (torch.stack([(new if act else h)[:, k] for k, act in enumerate(acts)], 1),)


def _gate_recurrent_lstm(v, x, state, t):
    """Greff et al. 2015 (FGR): i, f and o also see the i, f and o of the step before."""
    h, c, *gates = state

    def gate(name):
        seen = sum(v.R(f"{name}{of}", g) for of, g in zip("ifo", gates, strict=True))
        return sigmoid(v.gate(name, x, h) + seen)

    i, f, o = gate("i"), gate("f"), gate("o")
    c = f * c + i * tanh(v.gate("g", x, h))
    return o * tanh(c), c, i, f, o


def _full_peephole_lstm(v, x, state, t):
    """Understanding LSTM Networks, its peepholes read as matrices; here g has one too."""
    h, c = state
    i, f, g = (v.gate(gate, x, h) + v.R(f"{gate}c", c) for gate in "ifg")
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(v.gate("o", x, h) + v.R("oc", c)) * tanh(c), c


def _mut1(v, x, state, t):
    """Jozefowicz et al. 2015."""
    (h,) = state
    z = sigmoid(v.W("z", x) + v.b("z"))
    r = sigmoid(v.gate("r", x, h))
    return (tanh(v.R("n", r * h) + tanh(x) + v.b("n")) * z + h * (1 - z),)


def _faded_rnn(v, x, state, t):
    (h,) = state
    seen = (-(v.make("fade", "H") ** 2)).exp() * h + v.make("noise", "TBH")[t] / (1 + t)
    return (tanh(v.gate("n", x, seen)),)


def _gated_average(v, x, state, t):
    """Feng et al. 2024 (minGRU)."""
    (h,) = state
    z = sigmoid(v.W("z", x) + v.b("z"))
    return ((1 - z) * h + z * (v.W("n", x) + v.b("n")),)


def _fading_units(v, x, state, t):
    h, m = state
    new = v.make("noise", "TBH")[t] * tanh(v.W("n", x) + v.b("n"))
    m = sigmoid(v.make("fade", "H")) * m + new
    return tanh(m + 0.5 * h + x / (1 + t)), m


def _multiplicative_lstm(v, x, state, t):
    """Krause et al. 2016, with a bias of both factors."""
    h, c = state
    m = (v.W("m", x) + v.b("m")) * (v.R("m", h) + v.b("m"))
    i, f, o = (sigmoid(v.gate(gate, x, m)) for gate in "ifo")
    c = f * c + i * tanh(v.gate("g", x, m))
    return o * tanh(c), c


def _attentive_gru(v, x, state, t):
    (h,) = state
    a, b, e = (v.W(gate, x) + v.b(gate) for gate in "abe")
    r = v.gate("r", x, tanh(a) * h)
    n = v.R("n", sigmoid(r) * h + tanh(b) * a) + v.b("n")
    return ((1 - sigmoid(e)) * tanh(n + b) + sigmoid(e) * h,)


gated_average = _loop(_gated_average, ("h",))
fading_units = _loop(_fading_units, ("h", "m"))
multiplicative_lstm = _loop(_multiplicative_lstm, ("h", "c"))
attentive_gru = _loop(_attentive_gru, ("h",))
sparse_lstm = _loop(_sparse_lstm, ("h", "c"))
zoneout_lstm = _loop(_zoneout_lstm, ("h", "c"))
clockwork_rnn = _loop(_clockwork_rnn, ("h",))
gate_recurrent_lstm = _loop(_gate_recurrent_lstm, ("h", "c", "i", "f", "o"))
full_peephole_lstm = _loop(_full_peephole_lstm, ("h", "c"))
mut1 = _loop(_mut1, ("h",))
faded_rnn = _loop(_faded_rnn, ("h",))
