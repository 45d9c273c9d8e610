"""Cells as a user would write them, which together use every feature of ``Cell``."""

import torch
from torch import sigmoid, tanh

from fused_rnn import Bernoulli, Cell, Param, Stage, cells


def _zoneout_lstm(pre, state, streams):
    i, f, g, o = pre
    h_old, c_old = state
    keep_h, keep_c = streams
    c = sigmoid(f) * c_old + sigmoid(i) * tanh(g)
    h = sigmoid(o) * tanh(c)
    return keep_h * h_old + (1 - keep_h) * h, keep_c * c_old + (1 - keep_c) * c


def _clockwork_rnn(pre, state, params, t):
    (n,) = pre
    (h,) = state
    (period,) = params
    return torch.where(t % period == 0, tanh(n), h)


def _gate_recurrent_lstm(pre, state):
    i, f, o, g = pre
    c = state[1]
    i, f, o = sigmoid(i), sigmoid(f), sigmoid(o)
    c = f * c + i * tanh(g)
    return o * tanh(c), c, i, f, o


def _new_c(pre, state):
    i, f, g = pre
    c = state[1]
    return sigmoid(f) * c + sigmoid(i) * tanh(g)


def _h_and_new_c(pre, state):
    return state[0], _new_c(pre, state)


def _full_peephole_lstm(pre, state):
    i, f, g, o = pre
    c = _new_c((i, f, g), state)
    return sigmoid(o) * tanh(c), c


def _reset_hidden(pre, state):
    (r,) = pre
    (h,) = state
    return sigmoid(r) * h


def _mut1(pre, state):
    _, n, z, x = pre
    (h,) = state
    z = sigmoid(z)
    return tanh(n + tanh(x)) * z + h * (1 - z)


def _faded_hidden(pre, state, params, streams, t):
    (h,) = state
    (fade,) = params
    (noise,) = streams
    return torch.exp(-fade * fade) * h + noise / (1 + t)


def _noisy_reset_hidden(pre, state, params, streams):
    (r,) = pre
    (h,) = state
    (fade,) = params
    (noise,) = streams
    return sigmoid(r) * fade * h + noise * h


def _noisy_gru(pre, state):
    r, n = pre
    (h,) = state
    return tanh(n) + 0.5 * h


def _faded_rnn(pre, state):
    (n,) = pre
    return tanh(n)


def _gated_average(pre, state):
    z, n = pre
    (h,) = state
    z = sigmoid(z)
    return (1 - z) * h + z * n


def _fading_units(pre, state, params, streams, t):
    n, x = pre
    h, m = state
    (fade,) = params
    (noise,) = streams
    m = sigmoid(fade) * m + noise * tanh(n)
    return tanh(m + 0.5 * h + x / (1 + t)), m


def _multiplied(pre, state):
    m_x, m_h = pre
    return m_x * m_h


def _multiplicative_lstm(pre, state):
    _, _, i, f, g, o = pre
    c = sigmoid(f) * state[1] + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def _attended_hidden(pre, state):
    (a,) = pre
    (h,) = state
    return tanh(a) * h


def _reset_and_shifted_hidden(pre, state):
    a, r, b = pre
    (h,) = state
    return sigmoid(r) * h + tanh(b) * a


def _attentive_gru(pre, state):
    _, _, b, n, e = pre
    (h,) = state
    e = sigmoid(e)
    return (1 - e) * tanh(n + b) + e * h


def _leaking(pre, state, params):
    u, n = pre
    (h,) = state
    rate, scale, period = params
    return (1 - rate / period) * h + scale * tanh(n + u)


def _middle(pre, state):
    a, b = pre
    return 0.5 * (a + b)


def _squares_and_rank(pre, state):
    a, b, mean = pre
    return (a - mean) * (a - mean), tanh(b - mean)


def _norm_and_half(pre, state, params):
    a, b, mean, square, tilt = pre
    return params[0] * (a - mean) * torch.rsqrt(square + 0.1) + tilt, 0.5 * state[1]


def _shares(pre, state, params):
    return sigmoid(params[0] * pre[1]) + 0.1 * pre[5]


def _normed(pre, state, params):
    a, b, mean, square, tilt, n, half, z, share, of_c, same, _ = pre
    h, c = state
    c = sigmoid(b) * (half + 0.5 * c) + tanh(n) + 0.1 * (share - of_c)
    return sigmoid(z) * tanh(c) + 0.1 * same, c


def _noisy_means(pre, state, params, streams, t):
    h, c = state
    return streams[0] * h + c / (1 + t), params[0] * c


def _share(pre, state):
    return sigmoid(pre[0] + pre[3])


def _summed(pre, state):
    x, sum_h, sum_c, mean_h, mean_c, total = pre
    h = tanh(x + sum_h - 0.1 * sum_c + mean_c) + sigmoid(x + mean_h) / total
    return h, 0.5 * tanh(x * mean_h + sum_c)


def _drawing_lstm(pre, state, params, streams, t):
    """Zoneout of c, with what a unit's source and its gates do not see; r waits for a and i."""
    a, i, f, g, r = pre
    h, c = state
    fade, keep, _, kept = streams
    new = sigmoid(f) * c + sigmoid(i) * tanh(g) * kept + 0.1 * a
    c = keep * c + (1 - keep) * new
    return tanh(c) * sigmoid(r) + params[0] * fade * h / (1 + t), c


def _seen_hidden(pre, state, params, streams):
    _, c = state
    return state[0] * streams[2] * 2 + 0.1 * streams[0], params[0] * c * (1 - streams[3])


def _seen_update(pre, state, params, streams):
    return (tanh(pre[1] + pre[3]) * streams[1] + streams[3] * state[0],)


def _hollow(matrix):
    return matrix - torch.diag(matrix.diagonal())


def _count(tensor):
    return tensor.copy_(torch.arange(1, len(tensor) + 1))


# Gates without an input part (i and o); ``weight_ih`` has the others in another order.
SPARSE_LSTM = Cell(
    "sparse_lstm",
    cells.LSTM.step,
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    x_gates=("g", "f"),
)
# Two streams, one per state.
ZONEOUT_LSTM = Cell(
    "zoneout_lstm",
    _zoneout_lstm,
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    streams=("keep_h", "keep_c"),
)
# A parameter without a gradient, and the number of the step.
CLOCKWORK_RNN = Cell("clockwork_rnn", _clockwork_rnn, gates=("n",), params=("period",))
# Sources that are several states.
GATE_RECURRENT_LSTM = Cell(
    "gate_recurrent_lstm",
    _gate_recurrent_lstm,
    gates=("i", "f", "o", "g"),
    states=("h", "c", "i", "f", "o"),
    stages=(Stage(("i", "f", "o"), ("h", "i", "f", "o")), Stage(("g",), "h")),
)
# A second stage with a source of several computed vectors.
FULL_PEEPHOLE_LSTM = Cell(
    "full_peephole_lstm",
    _full_peephole_lstm,
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    stages=(Stage(("i", "f", "g"), ("h", "c")), Stage(("o",), _h_and_new_c)),
)
# Two stages, and gates with only a recurrent part (n), only an input part (z), a raw input (x).
MUT1 = Cell(
    "mut1",
    _mut1,
    gates=("r", "n", "z", "x"),
    x_gates=("r", "z", "x"),
    raw_gates=("x",),
    stages=(Stage(("r",), "h"), Stage(("n",), _reset_hidden)),
)
# A first stage with a computed source that takes every argument.
FADED_RNN = Cell(
    "faded_rnn",
    _faded_rnn,
    gates=("n",),
    params=("fade",),
    streams=("noise",),
    stages=(Stage(("n",), _faded_hidden),),
)
# Params and streams that only the source of a later stage takes.
NOISY_GRU = Cell(
    "noisy_gru",
    _noisy_gru,
    gates=("r", "n"),
    params=("fade",),
    streams=("noise",),
    stages=(Stage(("r",), "h"), Stage(("n",), _noisy_reset_hidden)),
)
# No recurrent product.
GATED_AVERAGE = Cell("gated_average", _gated_average, gates=("z", "n"), stages=())
# Nor here, with everything else that a cell may have.
FADING_UNITS = Cell(
    "fading_units",
    _fading_units,
    gates=("n", "x"),
    states=("h", "m"),
    params=("fade",),
    streams=("noise",),
    x_gates=("x", "n"),
    raw_gates=("x",),
    stages=(),
)
# A gate without a recurrent part before those of the first stage.
MULTIPLICATIVE_LSTM = Cell(
    "multiplicative_lstm",
    _multiplicative_lstm,
    gates=("m_x", "m_h", "i", "f", "g", "o"),
    states=("h", "c"),
    x_gates=("m_x", "i", "f", "g", "o"),
    stages=(Stage(("m_h",), "h"), Stage(("i", "f", "g", "o"), _multiplied)),
)
# Such gates before, between and after the stages, which their computed sources read.
ATTENTIVE_GRU = Cell(
    "attentive_gru",
    _attentive_gru,
    gates=("a", "r", "b", "n", "e"),
    x_gates=("e", "b", "a", "r"),
    stages=(Stage(("r",), _attended_hidden), Stage(("n",), _reset_and_shifted_hidden)),
)
# Stages with fixed matrices: of earlier gates, of a state, and before and after one with weights.
NORMED = Cell(
    "normed",
    _normed,
    gates=(
        *("a", "b", "mean", "square", "tilt", "n", "half"),
        *("z", "share", "of_c", "same", "unread"),
    ),
    states=("h", "c"),
    params=("gain",),
    x_gates=("z", "a"),
    stages=(
        Stage(("a", "b"), "h"),
        Stage(("mean",), _middle, "mean"),
        Stage(("square", "tilt"), _squares_and_rank, "mean"),
        Stage(("n", "half"), _norm_and_half, "identity"),
        Stage(("share",), _shares, "cumsum"),
        Stage(("of_c",), "c", "mean"),
        Stage(("same",), "h", "identity"),
        Stage(("unread",), "c"),
    ),
)
# Nothing else, and sources that need no gate before one that does.
SUMMED = Cell(
    "summed",
    _summed,
    gates=("x", "sum_h", "sum_c", "mean_h", "mean_c", "total"),
    states=("h", "c"),
    params=("scale",),
    streams=("noise",),
    x_gates=("x",),
    stages=(
        Stage(("sum_h", "sum_c"), ("h", "c"), "cumsum"),
        Stage(("mean_h", "mean_c"), _noisy_means, "mean"),
        Stage(("total",), _share, "sum"),
    ),
)

# Streams that are given and drawn, of steps and of sequences, in the step and in both kinds of
# sources.
DRAWING_LSTM = Cell(
    "drawing_lstm",
    _drawing_lstm,
    gates=("a", "i", "f", "g", "r"),
    states=("h", "c"),
    params=("fade",),
    streams=(
        "noise",
        Bernoulli("keep", 0.3),
        Bernoulli("seen", 0.5, per="sequence"),
        Bernoulli("kept", 0.75),
    ),
    stages=(Stage(("i", "f", "g"), _seen_hidden), Stage(("r",), _seen_update)),
)

# For the modules: first values, a number for all units, a constant, a matrix without its diagonal.
_LEAKS = (
    Param("rate", init=0.5),
    Param("scale", init=0.75, scalar=True),
    Param("period", init=_count, learned=False),
)
LEAKING = Cell(
    "leaking",
    _leaking,
    gates=("u", "n"),
    params=_LEAKS,
    stages=(Stage(("n",), "h", _hollow),),
)
LEAKING_ALONE = Cell("leaking_alone", _leaking, gates=("u", "n"), params=_LEAKS, stages=())

# Those of torch.nn and next to them, in their order. tests/cells/test_literature.py has the others.
CORE = (
    "rnn_tanh",
    "rnn_relu",
    "lstm",
    "peephole_lstm",
    "cifg_lstm",
    "gru",
    "gru_reset_before",
)
BUILTIN = tuple(map(cells.get, CORE))
PEEPHOLES = ("i", "f", "o", "if", "io", "fo", "ifo")
USER = (
    SPARSE_LSTM,
    ZONEOUT_LSTM,
    CLOCKWORK_RNN,
    GATE_RECURRENT_LSTM,
    FULL_PEEPHOLE_LSTM,
    MUT1,
    FADED_RNN,
    NOISY_GRU,
    GATED_AVERAGE,
    FADING_UNITS,
    MULTIPLICATIVE_LSTM,
    ATTENTIVE_GRU,
    NORMED,
    SUMMED,
    DRAWING_LSTM,
)
ALL = (*BUILTIN, *USER)


def name_of(value):
    """The id of a cell or dtype in the names of tests."""
    return getattr(value, "name", None) or str(value).removeprefix("torch.")
