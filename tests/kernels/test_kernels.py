"""The Triton kernels in Triton's interpreter against the reference: outputs and every gradient."""

import contextlib
import dataclasses
import importlib
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl

from fused_rnn import Cell, Stage, cells, plan
from fused_rnn.plan import chips, plans
from tests.support import evidence
from tests.support.cells import ALL, CLOCKWORK_RNN, ZONEOUT_LSTM, name_of
from tests.support.problems import make_problem
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

pytestmark = pytest.mark.usefixtures("interpreter")

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
STRATEGIES = plan.STRATEGIES
# (T, B, H): one of everything, below and above a power of two, more than one batch tile and chunk.
SIZES = ((1, 1, 1), (2, 3, 17), (3, 1, 40), (2, 17, 33), (2, 3, 129))
FUSED = [
    pytest.param(cell, strategy, id=f"{cell.name}-{strategy}")
    for cell in ALL
    for strategy in plan.strategies(cell)
]
LITERATURE = [
    pytest.param(
        cells.get(name),
        strategy,
        id=f"{name}-{strategy}",
        marks=[] if quick else [pytest.mark.slow],
    )
    for name, strategy, quick in evidence.interpreted()
]


@contextlib.contextmanager
def running(strategy, seed=0):
    """The kernels take the strategy; programs that wait for each other run at once."""
    from simulator.concurrent import concurrent

    waits = strategy in ("grid", "stream")
    with plan.use_strategy(strategy), concurrent(seed) if waits else contextlib.nullcontext():
        yield


def chip_of(multiprocessors):
    """The interpreter's, with other numbers."""
    chip = chips.chips()[chips.INTERPRETER]
    return dataclasses.replace(chip, multiprocessors=multiprocessors, shared_memory=2**20)


def check(problem, strategy, seed=0):
    """As near to float64 as the eager loop is."""
    with running(strategy, seed):
        got = problem.run("triton")
    exact = problem.to(torch.float64).run("reference")
    name = f"{problem.cell.name} {strategy}"
    if problem.inputs["x"].dtype == torch.float64:
        assert_equal_in_float64(got, exact, name)
    else:
        assert_as_good_as_eager(got, problem.run("reference"), exact, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(("cell", "strategy"), FUSED)
def test_every_cell_dtype_and_strategy(cell, dtype, strategy):
    check(make_problem(cell, 3, 3, 17, dtype=dtype), strategy)


@pytest.mark.parametrize(("cell", "strategy"), LITERATURE)
def test_every_cell_of_the_literature(cell, strategy):
    check(make_problem(cell, 3, 3, 17), strategy)


@pytest.mark.parametrize("strategy", ("resident", "step"))
def test_a_first_source_has_no_gradient_after_the_last_step(strategy):
    """There its streams are read as zeros, by which this one would divide."""

    def over_stream(pre, state, params, streams):
        return state[0] / streams[0]

    stages = (Stage(("n",), over_stream),)
    cell = Cell(
        "over_stream", lambda pre, state: pre[0].tanh(), ("n",), streams=("s",), stages=stages
    )
    problem = make_problem(cell, 3, 3, 17)
    problem.inputs["streams.s"] = problem.inputs["streams.s"].abs() + 1
    check(problem, strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "cell", (cells.PEEPHOLE_LSTM, cells.GRU, cells.GRU_RESET_BEFORE), ids=name_of
)
def test_odd_sizes(cell, size, strategy):
    T, B, H = size
    check(make_problem(cell, T, B, H), strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("reverse", (False, True))
@pytest.mark.parametrize("D", (1, 2))
@pytest.mark.parametrize("cell", (cells.LSTM, CLOCKWORK_RNN, cells.GRU_RESET_BEFORE), ids=name_of)
def test_directions(cell, D, reverse, strategy):
    check(make_problem(cell, 4, 2, 5, D=D, reverse=reverse), strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("cell", (cells.PEEPHOLE_LSTM, cells.GRU, ZONEOUT_LSTM), ids=name_of)
def test_strided_tensors_no_states_no_bias(cell, strategy):
    problem = make_problem(cell, 3, 3, 17, contiguous=False, initial=False, bias=False)
    check(problem, strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=name_of)
@pytest.mark.parametrize(
    "cell", (cells.RNN_TANH, cells.LSTM, cells.GRU, cells.GRU_RESET_BEFORE), ids=name_of
)
def test_large_gates(cell, dtype, strategy):
    check(make_problem(cell, 3, 3, 17, dtype=dtype, magnitude=50), strategy)


@pytest.mark.parametrize(("cell", "strategy"), FUSED)
def test_huge_gates_stay_finite(cell, strategy):
    with running(strategy):
        got = make_problem(cell, 2, 2, 3, magnitude=1e4).run("triton")
    for name, value in got.items():
        assert value.isfinite().all(), name


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("cotangent", ("final.h", "final.c", "sequence.c"))
def test_gradients_of_one_output(cotangent, strategy):
    check(make_problem(cells.PEEPHOLE_LSTM, 3, 2, 5, cotangents=(cotangent,)), strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("cell", (cells.LSTM, cells.GRU, cells.GRU_RESET_BEFORE), ids=name_of)
def test_inference_gives_what_training_gives(cell, strategy):
    problem = make_problem(cell, 3, 3, 17, cotangents=("sequence.h", "final.h"))
    with running(strategy):
        inference, training = problem.run_forward("triton"), problem.run("triton")
    for name, value in inference.items():
        assert torch.equal(value, training[name]), name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_states_are_not_rounded_between_steps_or_launches(strategy):
    """In bfloat16 a thousandth is lost in a sum with one; 32 of them are not."""
    grows = Cell("grows", lambda pre, state: state[0] + 0.001 * torch.sigmoid(pre[0]), gates=("a",))
    problem = make_problem(grows, 32, 2, 5, dtype=torch.bfloat16)
    problem.inputs["states.h"] = torch.ones_like(problem.inputs["states.h"])
    with running(strategy):
        got = problem.run_forward("triton")["final.h"]
    exact = problem.to(torch.float64).run_forward("reference")["final.h"]
    assert (exact - 1).min() > 0.01
    assert (got - exact).abs().max() <= torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_bits_every_time(strategy):
    problem = make_problem(cells.PEEPHOLE_LSTM, 3, 17, 40, D=2)
    with running(strategy):
        first, second = problem.run("triton"), problem.run("triton")
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_empty_batch(strategy):
    with running(strategy):
        got = make_problem(cells.PEEPHOLE_LSTM, 3, 0, 5).run("triton")
    assert got["sequence.h"].shape == (3, 0, 1, 5)
    assert got["dweights.0"].eq(0).all()
    assert got["dparams.p_i"].eq(0).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nan_and_inf_go_where_the_reference_sends_them(strategy):
    for cell in (cells.RNN_RELU, cells.LSTM, cells.GRU):
        problem = make_problem(cell, 3, 3, 5)
        problem.inputs["x"][1, 0, 0, 0, 2] = torch.nan
        problem.inputs["x"][1, 1, 0, 0, 2] = torch.inf
        problem.inputs["x"][1, 2, 0, 0, 2] = -torch.inf
        with running(strategy):
            got = problem.run_forward("triton")
        want = problem.run_forward("reference")
        for name, value in got.items():
            # What becomes of inf - inf within a row of a product depends on no order of its sums.
            torch.testing.assert_close(value, want[name], equal_nan=True)


@pytest.mark.parametrize("strategy", ("grid", "stream"))
@pytest.mark.parametrize("cell", (cells.LSTM, cells.GRU_RESET_BEFORE), ids=name_of)
def test_slices_and_batch_tiles_in_several_launches(cell, strategy):
    """Slices of a sequence wait for each other, batch tiles do not; some tiles start later."""
    from fused_rnn.kernels.gpu import launch

    problem = make_problem(cell, 2, 67, 40, D=2, dtype=torch.bfloat16)
    with (
        mock.patch.object(plans, "_chip", return_value=chip_of(8)),
        mock.patch.object(launch, "start", side_effect=launch.start) as start,
    ):
        check(problem, strategy)
    grids = [call.args[1] for call in start.call_args_list]
    assert len(grids) > 2
    for tiles, slices, directions in grids:
        assert slices > 1
        assert directions == 2
        assert tiles * slices * directions <= 8


@pytest.mark.parametrize("strategy", ("grid", "stream"))
def test_a_program_with_several_chunks_or_all(strategy):
    """With two multiprocessors a slice is half of the units, with one it is all of them."""
    for multiprocessors in (1, 2):
        with mock.patch.object(plans, "_chip", return_value=chip_of(multiprocessors)):
            check(make_problem(cells.PEEPHOLE_LSTM, 2, 3, 32 * multiprocessors), strategy)


@pytest.mark.parametrize("strategy", ("grid", "stream"))
def test_any_order_of_the_programs(strategy):
    for seed in range(20):
        check(make_problem(cells.GRU_RESET_BEFORE, 3, 2, 33), strategy, seed)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ("grid", "stream"))
def test_hundreds_of_orders_of_the_programs(strategy):
    for seed in range(200):
        check(make_problem(cells.LSTM, 3, 2, 33), strategy, seed)


def _no_wait(counter_ptr, target):
    pass


def _wait_for_one_too_few(counter_ptr, target):
    while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") < target - 1:
        pass


@pytest.mark.parametrize("broken", (_no_wait, _wait_for_one_too_few), ids=lambda f: f.__name__)
@pytest.mark.parametrize("module", ("forward", "backward"))
def test_a_broken_barrier_is_noticed(module, broken):
    """By one order of the programs or another; each order agrees with the right barrier."""
    launcher = importlib.import_module(f"fused_rnn.kernels.gpu.{module}")
    problem = make_problem(cells.LSTM, 3, 2, 33)

    def check_orders():
        for seed in range(20):
            check(problem, "grid", seed)

    noticed = pytest.raises(AssertionError, match="error|not finite")
    with mock.patch.object(launcher, "wait", triton.jit(broken)), noticed:
        check_orders()


@pytest.mark.parametrize("strategy", ("grid", "stream"))
def test_programs_that_wait_are_not_run_one_by_one(strategy):
    with (
        plan.use_strategy(strategy),
        pytest.raises(RuntimeError, match=f'"{strategy}": . programs wait for each other'),
    ):
        make_problem(cells.LSTM, 2, 3, 33).run("triton")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_missing_gate_is_noticed(strategy):
    """The comparison itself: a kernel whose forget gate has the wrong sign does not pass."""
    problem = make_problem(cells.LSTM, 3, 3, 17)
    i, f, g, o = problem.inputs["x"].unbind(3)
    wrong = dict(problem.inputs, x=torch.stack([i, -f, g, o], 3))
    with running(strategy):
        got = dataclasses.replace(problem, inputs=wrong).run("triton")
    exact = problem.to(torch.float64).run("reference")
    with pytest.raises(AssertionError, match="error"):
        assert_as_good_as_eager(got, problem.run("reference"), exact)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_late_steps_of_a_long_sequence(strategy):
    """Steps beyond 65,535 and offsets beyond 2³¹, by starting the forward two steps before the end.

    The tensors are as large as they must be (8.6 GB of addresses), but only what the two steps
    touch is ever backed by memory.
    """
    from fused_rnn.kernels.gpu import forward, launch

    T, B, H = 70_000, 64, 120  # T·B·G·H = 2.15e9 > 2³¹
    torch.utils.deterministic.fill_uninitialized_memory = False
    x = torch.empty(T, B, 1, 4, H, dtype=torch.bfloat16)
    assert x.numel() > 2**31
    problem = make_problem(cells.LSTM, 2, B, H, dtype=torch.bfloat16)
    x[-2:] = problem.inputs["x"]
    states = [problem.inputs["states.h"], problem.inputs["states.c"]]

    def start_late(kernel, grid, arguments, constants):
        *others, begin, end = arguments
        if end > T - 2:
            kernel[grid](*others, max(begin, T - 2), end, **constants)

    with running(strategy), mock.patch.object(launch, "start", start_late):
        sequences, _, finals = forward.forward(
            cells.LSTM, x, [problem.inputs["weights.0"]], None, states, [], [], False, True
        )
    with running(strategy):
        want = problem.run_forward("triton")
    assert torch.equal(sequences[0][-2:], want["sequence.h"])
    assert torch.equal(finals[1], want["final.c"])
