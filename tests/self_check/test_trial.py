"""The trial of a self-check, and its watchdog: what it runs, what it finds, when it gives up."""

from unittest import mock

import pytest
import torch

from fused_rnn import cells, plan
from fused_rnn.self_check import admission, deadline, trial
from fused_rnn.self_check.problem import Problem
from tests.support.cells import CORE, NOISY_GRU
from tests.support.faults import changed
from tests.support.problems import make_problem

pytestmark = pytest.mark.usefixtures("interpreter")

CPU = torch.device("cpu")


def test_the_strategy_of_the_plan_is_tried():
    """On two slices of the hidden units, though a small problem would take another strategy."""
    from fused_rnn.kernels.gpu import launch

    launches = []

    def start(kernel, grid, arguments, constants):
        launches.append((grid, constants))
        kernel[grid](*arguments, **constants)

    chosen = plan.plan(cells.LSTM, *trial.SIZES[0], torch.float32, CPU)
    assert chosen.forward.strategy == "resident"
    with mock.patch.object(launch, "start", start):
        assert trial.attempt(cells.LSTM, "step", torch.float32, CPU).agrees
    assert len(launches) == 6  # three steps of one stage, forward and backward
    for grid, constants in launches:
        assert grid[1] >= 2
        assert not constants["KEEP"]


def test_a_kink_that_was_met_by_chance_is_no_fault():
    """One of two problems may disagree, but not both."""
    yes, no = trial.Outcome(True), trial.Outcome(False, "is off", 9.0)
    for outcomes, agrees in (([yes], True), ([no, yes], True), ([no, no], False)):
        with mock.patch.object(trial, "_attempt", side_effect=outcomes) as tries:
            outcome = trial.attempt(cells.LSTM, "step", torch.float32, CPU)
        assert outcome.agrees == agrees
        assert [call.kwargs["seed"] for call in tries.call_args_list] == [0, 1][: len(outcomes)]


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32, torch.float64))
@pytest.mark.parametrize("name", CORE)
def test_right_kernels_are_well_within_the_bound(name, dtype):
    outcome = trial.attempt(cells.get(name), "resident", dtype, CPU)
    assert outcome.agrees
    assert outcome.error < 2


def test_a_gate_that_is_left_out_is_found_in_every_dtype():
    lstm = cells.get("lstm")

    def change(right, cell, x, *others):
        i, f, g, o = x.unbind(3)
        return right(cell, torch.stack([i, 0 * f, g, o], 3), *others)

    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        with changed("forward", change):
            assert not trial.attempt(lstm, "resident", dtype, CPU).agrees


# Per group of results of the launchers, tensors that it makes wrong.
GROUPS = {
    ("forward", 0): "sequence.h",
    ("forward", 1): "dweights.1",
    ("forward", 2): "final.h",
    ("backward", 0): "dx",
    ("backward", 1): "dstates.h",
    ("backward", 2): "dparams.fade",
    ("backward", 3): "dstreams.noise",
}


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_every_result_of_the_kernels_is_compared(group):
    launcher, place = group

    def change(right, *args):
        results = list(right(*args))
        results[place] = _scaled(results[place])
        return results

    problem, name = Problem.make(NOISY_GRU, 3, 3, 17), GROUPS[group]
    right = trial.by_kernels(problem)
    with changed(launcher, change):
        assert not torch.equal(trial.by_kernels(problem)[name], right[name])
        assert not trial.attempt(NOISY_GRU, "resident", torch.float32, CPU).agrees


def test_kernels_without_autograd_return_what_the_op_differentiates_to():
    problem = make_problem(NOISY_GRU, 3, 2, 5, D=2, reverse=True)
    want = problem.run("triton")
    got = trial.by_kernels(problem)
    assert list(got) == list(want)
    for name, tensor in got.items():
        assert torch.equal(tensor, want[name]), name


def _scaled(results):
    return [1.01 * r for r in results] if isinstance(results, list) else 1.01 * results


def test_no_op_and_no_check_runs_inside_a_trial():
    with mock.patch.object(admission, "admits", side_effect=AssertionError):
        assert trial.attempt(cells.LSTM, "resident", torch.float32, CPU).agrees


@pytest.mark.parametrize("polls", (3, None))
def test_kernels_that_do_not_end_are_left_alone(polls):
    """On a GPU that is mocked: its event is polled until the deadline, never waited for."""
    event = mock.Mock(**{"query.side_effect": [False] * 3 + [True]})
    if polls is None:
        event = mock.Mock(**{"query.return_value": False})
    with (
        mock.patch.multiple(torch.cuda, device=mock.MagicMock(), Stream=mock.Mock()),
        mock.patch.object(torch.cuda, "stream", mock.MagicMock()) as stream,
        mock.patch.object(torch.cuda, "Event", return_value=event),
        mock.patch.object(deadline, "DEVICE_DEADLINE", 0.2),
    ):
        device = torch.device("cuda", 0)
        if polls is None:
            with pytest.raises(TimeoutError, match="kernels did not end within 0.2 s"):
                deadline.supervise(lambda: 7, device)
        else:
            assert deadline.supervise(lambda: 7, device) == 7
    assert stream.call_count == 1
    assert event.record.call_count == 1
    assert not event.synchronize.called
    assert not event.wait.called
