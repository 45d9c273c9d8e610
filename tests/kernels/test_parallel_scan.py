"""Cells that are linear in their states, in pieces of the sequence at once, in the interpreter."""

import dataclasses
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from fused_rnn.kernels.gpu import pieces
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import fused_rnn
from fused_rnn import cells, plan
from fused_rnn.cells import linear
from fused_rnn.plan import chips
from tests.kernels.test_kernels import check, running
from tests.support.cells import FADING_UNITS, GATED_AVERAGE, name_of
from tests.support.linear_cells import CHAIN, GROWING, LINEAR, ROTATION, linear_cells
from tests.support.problems import make_problem, run_module
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

pytestmark = pytest.mark.usefixtures("interpreter")

NAME = "parallel_scan"
# In the interpreter, to look for a smaller cell takes minutes.
DRAWN = {
    "max_examples": 6,
    "derandomize": True,
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    "phases": [Phase.explicit, Phase.generate],
}
# (T, B, H): one piece, pieces of one step, a last piece that is shorter, several tiles and slices.
SIZES = ((1, 2, 3), (3, 1, 1), (10, 2, 5), (7, 5, 33), (6, 3, 40))


def test_how_a_sequence_is_cut():
    launch = plan.Launch(NAME, 1, 32, 16, 1, pieces=128)
    assert [launch.cut(T) for T in (1, 2, 3, 7, 16, 512)] == [
        (1, 1), (2, 1), (3, 1), (7, 1), (8, 2), (47, 11)
    ]  # fmt: skip
    assert launch.cut(4096) == (128, 32)
    assert launch.cut(4097) == (125, 33)
    assert launch.cut(2**20) == (128, 2**13)
    for T in range(1, 300):
        count, length = launch.cut(T)
        assert (count - 1) * length < T <= count * length
        assert count <= launch.pieces
    assert plan.Launch("scan", 1, 32, 16, 1).cut(4096) == (1, 4096)


@pytest.mark.parametrize("cell", LINEAR, ids=name_of)
def test_every_linear_cell(cell):
    check(make_problem(cell, 10, 3, 17, D=2, dtype=torch.float64), NAME)
    check(make_problem(cell, 6, 2, 17), NAME)


@settings(**DRAWN)
@given(linear_cells(), st.booleans())
def test_random_linear_cells(cell, reverse):
    """Against the walk from step to step, whose outputs and gradients autograd knows."""
    assert linear.why_not(cell) is None
    check(make_problem(cell, 7, 2, 5, reverse=reverse, dtype=torch.float64), NAME)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=name_of)
@pytest.mark.parametrize("cell", (ROTATION, CHAIN), ids=name_of)
def test_several_states_in_every_dtype(cell, dtype):
    check(make_problem(cell, 9, 2, 5, dtype=dtype), NAME)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("cell", (cells.MIN_GRU, ROTATION), ids=name_of)
def test_odd_sizes(cell, size):
    check(make_problem(cell, *size), NAME)


@pytest.mark.parametrize("reverse", (False, True))
@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("cell", (cells.QRNN, CHAIN), ids=name_of)
def test_directions(cell, D, reverse):
    check(make_problem(cell, 9, 2, 5, D=D, reverse=reverse), NAME)


@pytest.mark.parametrize("cell", (cells.MIN_LSTM, CHAIN), ids=name_of)
def test_strided_tensors_and_no_states(cell):
    check(make_problem(cell, 9, 3, 5, contiguous=False, initial=False), NAME)


@pytest.mark.parametrize("cotangent", ("final.h", "final.im", "sequence.h", "sequence.re"))
def test_gradients_of_one_output(cotangent):
    """The output h is no state that a step reads; its last value depends on those that are."""
    check(make_problem(ROTATION, 9, 2, 5, cotangents=(cotangent,)), NAME)


@pytest.mark.parametrize("cell", (cells.TLSTM, CHAIN), ids=name_of)
def test_inference_gives_what_training_gives_and_the_same_bits_each_time(cell):
    first = cell.states[0]
    problem = make_problem(cell, 9, 3, 17, cotangents=(f"sequence.{first}", f"final.{first}"))
    with running(NAME):
        inference = problem.run_forward("triton")
        training, again = problem.run("triton"), problem.run("triton")
    for name, value in training.items():
        assert torch.equal(value, again[name]), name
        if name in inference:
            assert torch.equal(value, inference[name]), name


def test_an_empty_batch():
    with running(NAME):
        got = make_problem(ROTATION, 9, 0, 5).run("triton")
    assert got["sequence.h"].shape == (9, 0, 1, 5)
    assert got["dparams.real"].eq(0).all()


def test_zeros_stay_zero_where_others_overflow():
    """1.5 to the power of 1000 is no float32; what began with zero stays as it is."""
    problem = make_problem(GROWING, 1000, 1, 2, initial=False, cotangents=("final.h",))
    problem.inputs["x"].zero_()
    with running(NAME):
        assert problem.run_forward("triton")["final.h"].eq(0).all()


@pytest.mark.parametrize("name", ("qrnn", "min_gru"))
@pytest.mark.parametrize("bidirectional", (False, True))
def test_layers_with_lengths_and_resets(name, bidirectional):
    T, B = 11, 3
    layer = fused_rnn.Recurrent(name, 4, 5, bidirectional=bidirectional, dtype=torch.float64)
    x, states = torch.randn(T, B, 4), len(cells.get(name).states)
    hx = [torch.randn(1 + bidirectional, B, 5) for _ in range(states)]
    given = {"lengths": torch.tensor([11, 4, 7])}
    if not bidirectional:
        given["reset"] = torch.rand(T, B) < 0.3
    hx = hx[0] if states == 1 else tuple(hx)
    with running(NAME):
        layer.backend = "triton"
        got = run_module(layer, x, hx, **given)
    layer.backend = "reference"
    assert_equal_in_float64(got, run_module(layer, x, hx, **given))


@pytest.mark.parametrize("cell", (cells.IND_RNN, cells.SRU, FADING_UNITS, cells.LSTM), ids=name_of)
def test_what_is_not_linear_is_refused(cell):
    with running(NAME), pytest.raises(RuntimeError, match=f"parallel_scan: {linear.why_not(cell)}"):
        make_problem(cell, 9, 2, 5).run("triton")


def test_pieces_that_begin_with_a_wrong_state_are_noticed():
    """Each map without the ones before it, and the forward's maps in the backward."""
    problem = make_problem(GATED_AVERAGE, 9, 2, 5)
    exact = problem.to(torch.float64).run("reference")

    def alone(count):
        return triton.jit(_as_they_are)

    for broken in (
        mock.patch.object(pieces, "composition", side_effect=alone),
        mock.patch.object(pieces, "last_gradients", side_effect=_from_zero),
    ):
        with broken, running(NAME):
            got = problem.run("triton")
        with pytest.raises(AssertionError, match="error"):
            assert_as_good_as_eager(got, problem.run("reference"), exact)


def _as_they_are(maps):
    tl.static_assert(len(maps) > 0)  # the interpreter wants to see tl in a function
    return maps


def _from_zero(cell, launch, *given):
    *_, pre, _, dfinals, _, _ = given
    count = launch.cut(len(pre))[0]
    return [torch.stack([d, *[torch.zeros_like(d)] * (count - 1)]) for d in dfinals]


def test_the_interpreter_cuts_short_sequences():
    """So that the tests above have several pieces."""
    (row,) = chips.chips()[chips.INTERPRETER].of(NAME, 4)
    assert [row.launch().cut(T) for T in (3, 6, 9, 10)] == [(3, 1), (3, 2), (3, 3), (4, 3)]
    assert dataclasses.replace(row.launch(), pieces=None).cut(10) == (1, 10)
