"""Cells that draw in the kernels: the bits of the oracle, forward and backward."""

import pytest
import torch

from fused_rnn import Bernoulli, Cell, cells
from fused_rnn.cells import draws, regularized
from tests.kernels.test_kernels import STRATEGIES, check
from tests.support.problems import make_problem

pytestmark = pytest.mark.usefixtures("interpreter")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", ["lstm", "gru_reset_before", "peephole_lstm_full"])
def test_every_strategy_draws_the_same_bits(name, strategy):
    """With units and rows that pad, and several batch tiles and slices for the first cell."""
    cell = cells.get(name)
    clip = 0.5 if regularized.marks(cell, "memory") else 0.0
    zoneout = (0.3,) * len(cell.states)
    disturbed = regularized.regularize(cell, zoneout, 0.25, 0.4, clip, True)
    for D, reverse in ((1, True), (2, False)):
        sizes = (2, 17, 33) if name == "lstm" and D == 2 else (3, 3, 17)
        problem = make_problem(disturbed, *sizes, D=D, reverse=reverse)
        check(problem, strategy)


@pytest.mark.parametrize("strategy", ["resident", "step"])
def test_heads_draw_by_the_units_of_their_layer(strategy):
    disturbed = regularized.regularize(cells.LSTM, (0.3, 0.2), 0.25, 0.0, 0.0, True)
    check(make_problem(disturbed, 3, 3, 34, D=2, heads=[2]), strategy)


@pytest.mark.parametrize("heads", [1, 2])
def test_values_in_one_launch(heads, monkeypatch):
    """What a GPU computes for the products after the loop and the sources of the first step."""
    streams = [Bernoulli(f"s{n}", 0.1 * n + 0.2) for n in range(5)]
    streams.append(Bernoulli("c", 0.5, per="sequence"))
    cell = Cell("six", lambda pre, state, streams: pre[0], gates=("n",), streams=streams)
    order, times = torch.tensor([3, 7, 1 << 33]), torch.tensor([1, 0, 5])
    key = draws.later(draws.draw_key(3, order=order), 1 << 31)
    given = (cell, key, times, 4, 17, torch.float32, heads)
    wanted = draws.values(*given)
    monkeypatch.setattr(draws, "_in_one_launch", lambda key: True)
    monkeypatch.setattr(draws, "philox", None)
    for got, want in zip(draws.values(*given), wanted, strict=True):
        assert torch.equal(got, want)


def test_masks_of_matrices_in_one_launch(monkeypatch):
    given = (draws.draw_key(0), 2, 1, (7, 17), 0.4)
    wanted = draws.of_matrix(*given)
    monkeypatch.setattr(draws, "_in_one_launch", lambda key: True)
    monkeypatch.setattr(draws, "philox", None)
    assert draws.of_matrix(*given).equal(wanted)
