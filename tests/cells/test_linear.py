"""Which cells are linear in their states: shown by their graphs, and by numbers."""

import pytest
import torch
from torch import sigmoid, tanh

from fused_rnn import Cell, Stage, cells
from fused_rnn.cells import graphs, linear
from tests.support.cells import FADING_UNITS, name_of
from tests.support.linear_cells import LINEAR

# By name, the built-in cells without recurrent products.
BUILTIN = {
    "ind_rnn": "aten.relu.default",
    "sru": "aten.sigmoid.default",
    "qrnn": None,
    "min_gru": None,
    "min_lstm": None,
    "tgru": None,
    "tlstm": None,
}


def test_the_built_in_cells():
    alone = [name for name in cells.names() if not cells.get(name).stages]
    assert sorted(alone) == sorted(BUILTIN)
    for name, operation in BUILTIN.items():
        reason = linear.why_not(cells.get(name))
        if operation is None:
            assert reason is None
        else:
            assert reason == f"its step is not linear in the states: {operation}"
    assert linear.why_not(cells.LSTM) == "it has recurrent products"


def cell_of(step, **options):
    return Cell("some", step, gates=("a", "b"), stages=(), **options)


NOT_LINEAR = {
    "product": lambda pre, state: state[0] * state[0] + pre[0],
    "product of two": lambda pre, state: (state[0] * state[1] + pre[0], state[1]),
    "quotient": lambda pre, state: pre[0] / (2 + state[0]),
    "choice": lambda pre, state: torch.where(state[0] > 0, pre[0], state[0]),
    "choice by itself": lambda pre, state: torch.where(state[0] > 0, pre[0], pre[1]),
    "size": lambda pre, state: pre[0] * state[0].abs(),
    # Their derivatives are zero, or those of something else.
    "rounded": lambda pre, state: torch.round(state[0]) + pre[0],
    "compared": lambda pre, state: pre[0] * (state[0] > pre[1]),
    "detached": lambda pre, state: sigmoid(pre[0]) * state[0].detach() + pre[1],
    "straight through": lambda pre, state: state[0] + (torch.sign(state[0]) - state[0]).detach(),
    "through another": lambda pre, state: (state[1] + pre[0], tanh(state[1])),
    "clamped": lambda pre, state: torch.clamp(state[0] + pre[0], -1, 1),
    "weight of lerp": lambda pre, state: torch.lerp(pre[0], pre[1], state[0]),
}


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_what_is_not_linear(name):
    states = ("h", "c") if name in ("product of two", "through another") else ("h",)
    reason = linear.why_not(cell_of(NOT_LINEAR[name], states=states))
    assert reason is not None
    assert reason.startswith("its step is not linear in the states: aten.")


def test_states_that_no_step_reads_may_be_anything():
    def step(pre, state):
        c = sigmoid(pre[0]) * state[1] + pre[1]
        return tanh(c) * c, c

    cell = cell_of(step, states=("h", "c"))
    assert graphs.carried(cell) == (1,)
    assert linear.why_not(cell) is None


def test_a_cell_without_memory_and_one_with_many_states():
    def forgets(pre, state):
        return pre[0] * pre[1]

    def shifts(pre, state):
        return (pre[0] + pre[1], *state[:-1])

    assert linear.why_not(cell_of(forgets)) == "its step reads no state"
    assert linear.why_not(cell_of(shifts, states=("h", "c"))) is None
    many = cell_of(shifts, states=[f"s{i}" for i in range(linear.MOST + 2)])
    assert linear.why_not(many) == "4 states are read by its step; at most 3 can be"


def test_a_product_is_named_first():
    cell = Cell("some", lambda pre, state: pre[0], gates=("a",), stages=(Stage(("a",), "h"),))
    assert linear.why_not(cell) == "it has recurrent products"
    assert linear.why_not(FADING_UNITS) is not None


@pytest.mark.parametrize("cell", LINEAR, ids=name_of)
def test_the_jacobian_gives_the_step(cell):
    """new(s) = new(0) + J s, with a J that does not depend on s; and zeros only where it says."""
    assert linear.why_not(cell) is None
    generator = torch.Generator().manual_seed(0)

    def some(names, *shape):
        return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for _ in names)

    pre, streams = some(cell.gates, 16, 5), some((*cell.streams, *cell.drawn), 16, 5)
    params, t = some(cell.params, 5), torch.tensor(2.0, dtype=torch.float64)
    first, second = some(cell.states, 16, 5), some(cell.states, 16, 5)
    zero = tuple(map(torch.zeros_like, first))
    carried = graphs.carried(cell)
    flat = graphs.call(cell, "jacobian", 0, pre, first, params, streams, t)
    again = graphs.call(cell, "jacobian", 0, pre, second, params, streams, t)
    for one, other in zip(flat, again, strict=True):
        assert torch.equal(one.expand(16, 5), other.expand(16, 5))
    offset = cell.run_step(pre, zero, params, streams, t)
    moved = cell.run_step(pre, first, params, streams, t)
    zeros = graphs.zeros(cell, "jacobian")
    for row, i in enumerate(carried):
        entries = flat[row * len(carried) : (row + 1) * len(carried)]
        total = sum(entry * first[k] for entry, k in zip(entries, carried, strict=True))
        torch.testing.assert_close(offset[i] + total, moved[i])
    for entry, is_zero in zip(flat, zeros, strict=True):
        assert bool(entry.eq(0).all()) == is_zero
