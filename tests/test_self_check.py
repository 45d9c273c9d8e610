"""The check of the kernels' first use: what it finds, what it remembers, and what happens then."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from unittest import mock

import pytest
import torch
from problems import make_problem
from tolerances import assert_as_good_as_eager

import fused_rnn
from fused_rnn import Cell, cells, deadline, plan, self_check, trial

pytestmark = pytest.mark.usefixtures("interpreter")

CPU = torch.device("cpu")
FACTS = {"gpu": "GPU", "driver": "1.2", "torch": "2", "triton": "3", "fused_rnn": "0"}


@pytest.fixture(autouse=True)
def facts(monkeypatch, tmp_path):
    """A device that is checked, an empty cache, and nothing in memory."""
    facts = dict(FACTS)
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FUSED_RNN_SELF_CHECK", raising=False)
    monkeypatch.setattr(self_check, "device_facts", lambda device: facts)
    forget()
    yield facts
    forget()


def forget():
    """As another process begins."""
    for known in (
        self_check._memory,
        self_check._by_digest,
        self_check._warned,
        trial._stuck,
    ):
        known.clear()


@contextlib.contextmanager
def counted():
    """The attempts that are made inside."""
    with mock.patch.object(trial, "attempt", side_effect=trial.attempt) as attempts:
        yield attempts


def use(cell=cells.LSTM, backend="auto", strategy="resident", **options):
    """A right result, and the warnings on the way."""
    problem = make_problem(cell, 3, 2, 5, **options)
    with warnings.catch_warnings(record=True) as caught, plan.use_strategy(strategy):
        warnings.simplefilter("always")
        got = problem.run(backend)
    exact = problem.to(torch.float64).run("reference")
    assert_as_good_as_eager(got, problem.run("reference"), exact)
    return [str(w.message) for w in caught if "fused_rnn" in str(w.message)]


def files(tmp_path):
    return sorted((tmp_path / "cache").glob("*"))


# Faults of the kernels. Each meets forward and backward alike, unless it is of gradients.


def _patched(name, change):
    """Inside, ``change(function, *arguments)`` instead of the forward or the backward."""
    module = getattr(fused_rnn.kernels, name)
    right = getattr(module, name)
    return mock.patch.object(module, name, functools.partial(change, right))


def wrong_outputs():
    def change(right, *args):
        sequences, pre, finals = right(*args)
        return [s + 0.01 for s in sequences], pre, finals

    return _patched("forward", change)


def wrong_gradient():
    """Only the initial states' gradient, by one in a hundred."""

    def change(right, *args):
        dpre, dstates, *others = right(*args)
        return dpre, [dstates[0] * 1.01, *dstates[1:]], *others

    return _patched("backward", change)


def not_a_number():
    def change(right, *args):
        dpre, *others = right(*args)
        dpre[0, 0, 0, 0, 0] = torch.nan
        return dpre, *others

    return _patched("backward", change)


def exception():
    from fused_rnn.kernels import launch

    return mock.patch.object(launch, "start", side_effect=RuntimeError("no such instruction"))


@contextlib.contextmanager
def hang():
    from fused_rnn.kernels import launch

    free, hanging = threading.Event(), []

    def start(*_):
        hanging.append(threading.current_thread())
        free.wait(30)
        raise RuntimeError("woken up")

    with (
        mock.patch.object(launch, "start", side_effect=start),
        mock.patch.object(deadline, "HOST_DEADLINE", 0.2),
    ):
        yield
    free.set()
    for thread in hanging:
        thread.join()


FAULTS = {
    wrong_outputs: "output 0 is off by",
    wrong_gradient: "gradient of states 0 is off by",
    not_a_number: "is off by nan",
    exception: "RuntimeError: no such instruction",
    hang: "did not return within 0.2 s",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_warned_of_once_and_auto_is_right_nevertheless(fault, tmp_path):
    begin = time.monotonic()
    with fault(), counted() as attempts:
        (message,) = use()
        assert use() == []
    assert attempts.call_count == 1
    assert time.monotonic() - begin < 20
    assert FAULTS[fault] in message
    for part in ("'lstm'", '"resident"', "torch.float32", "cpu", "python -m fused_rnn.doctor"):
        assert part in message
    assert files(tmp_path) == []
    if fault is hang:
        trial._stuck.clear()
    forget()
    with counted() as attempts:  # another process asks again, and finds the fault mended
        assert use() == []
    assert attempts.call_count == 1
    assert len(files(tmp_path)) == 1


def test_fallback_runs_no_kernel():
    from fused_rnn.kernels import launch

    with exception():
        use()
        assert launch.start.call_count == 1
        use()
        assert launch.start.call_count == 1


def test_triton_by_name_runs_wrong_kernels_and_warns_once():
    with wrong_outputs(), counted() as attempts:
        messages = []
        for _ in range(2):
            problem = make_problem(cells.LSTM, 3, 2, 5)
            with warnings.catch_warnings(record=True) as caught, plan.use_strategy("resident"):
                warnings.simplefilter("always")
                got = problem.run("triton")
            messages += [w for w in caught if "fused_rnn" in str(w.message)]
    right = problem.run("reference")
    assert (got["sequence.h"] - right["sequence.h"]).abs().min() > 0.009
    assert len(messages) == 1
    assert attempts.call_count == 1


def test_nothing_else_is_run_where_a_check_never_ended():
    with hang():
        use()
    (message,) = use(cells.GRU)
    assert "an earlier check on this device did not end" in message


def test_another_strategy_or_dtype_or_cell_is_another_check(tmp_path):
    with counted() as attempts:
        for options in (
            {},
            {"strategy": "step"},
            {"dtype": torch.bfloat16},
            {"cell": cells.GRU},
        ):
            assert use(**options) == []
            assert use(**options) == []
    tried = [call.args[:3] for call in attempts.call_args_list]
    assert tried == [
        (cells.LSTM, "resident", torch.float32),
        (cells.LSTM, "step", torch.float32),
        (cells.LSTM, "resident", torch.bfloat16),
        (cells.GRU, "resident", torch.float32),
    ]
    assert len(files(tmp_path)) == 4


def test_agreement_is_read_from_disk(tmp_path):
    with counted() as attempts:
        use()
        forget()
        use()
    assert attempts.call_count == 1
    (file,) = files(tmp_path)
    key = json.loads(file.read_text())["key"]
    assert key.items() >= FACTS.items()
    assert (key["cell"], key["strategy"], key["dtype"]) == ("lstm", "resident", "torch.float32")


def test_a_second_process_does_not_check():
    code = """
        import torch, fused_rnn
        from fused_rnn import self_check, trial
        self_check.device_facts = lambda device: {"gpu": "GPU"}
        calls, attempt = [], trial.attempt
        trial.attempt = lambda *args: calls.append(args) or attempt(*args)
        fused_rnn.GRU(3, 5)(torch.randn(2, 2, 3))[0].sum().backward()
        print(len(calls))
    """

    def run():
        command = [sys.executable, "-c", textwrap.dedent(code)]
        env = os.environ | {"TRITON_INTERPRET": "1"}
        return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

    assert (run(), run()) == ("1\n", "0\n")


@pytest.mark.parametrize("name", FACTS, ids="another {}".format)
def test_another_gpu_driver_or_version_is_checked_anew(name, facts):
    with counted() as attempts:
        use()
        forget()
        facts[name] = "another"
        use()
    assert attempts.call_count == 2


def test_another_source_is_checked_anew():
    """Of a cell by the same name, as after an edit; of the kernels; and another wiring."""
    with counted() as attempts:
        use()
        forget()
        with mock.patch.object(Cell, "triton_source", return_value="another"):
            use()
        forget()
        with mock.patch.object(self_check, "_kernels_digest", return_value="another"):
            use()
    assert attempts.call_count == 3


def test_a_second_device_like_the_first_is_not_checked_or_warned_of_again():
    with (
        exception(),
        counted() as attempts,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        for device in (CPU, torch.device("cpu", 0)):
            outcome = self_check._outcome(cells.LSTM, "resident", torch.float32, device)
            assert not outcome.agrees
    assert attempts.call_count == 1
    assert len(caught) == 1


def test_the_key_knows_the_wiring():
    def step(pre, state):
        return pre[0] + pre[1].tanh(), state[0] + state[1]

    def key(**wiring):
        cell = Cell("wired", step, gates=("a", "b"), states=("h", "c"), **wiring)
        return self_check._key(FACTS, cell, "step", torch.float32, False)["source"]

    with mock.patch.object(Cell, "triton_source", return_value="the same"):
        assert key() == key()
        assert key() != key(x_gates=("b", "a"))
        assert key() != key(stages=(cells.Stage(("a",)),))
        assert key() != key(stages=(cells.Stage(("a", "b"), "c"),))


def test_switched_off(monkeypatch):
    monkeypatch.setenv("FUSED_RNN_SELF_CHECK", "0")
    with counted() as attempts:
        assert use() == []
    assert attempts.call_count == 0


def test_cpu_tensors_are_not_checked(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with counted() as attempts:
        use()
    assert attempts.call_count == 0


@pytest.mark.parametrize("text", ("", "{", "[]", '{"agrees": true}', '{"key": 1, "agrees": true}'))
def test_a_corrupt_file_is_checked_anew_and_mended(text, tmp_path):
    use()
    (file,) = files(tmp_path)
    good = file.read_text()
    file.write_text(text)
    forget()
    with counted() as attempts:
        assert use() == []
    assert attempts.call_count == 1
    assert file.read_text() == good
    assert files(tmp_path) == [file]


def test_a_directory_that_cannot_be_written_leaves_it_to_memory(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path / "file" / "cache"))
    with counted() as attempts:
        assert use() == []
        assert use() == []
    assert attempts.call_count == 1


def test_where_the_cache_is(monkeypatch):
    where = self_check.cache_directory
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/xdg")
    monkeypatch.setenv("FUSED_RNN_CACHE", "/var/own")
    assert str(where()) == "/var/own"
    monkeypatch.delenv("FUSED_RNN_CACHE")
    assert str(where()) == "/var/xdg/fused_rnn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(where()) == "/home/someone/.cache/fused_rnn"


def test_capture_never_checks_and_says_what_to_do():
    with (
        counted() as attempts,
        mock.patch.object(self_check, "_capturing", return_value=True),
    ):
        (message,) = use()
        assert use() == []
    assert attempts.call_count == 0
    assert "fused_rnn.check_kernels('lstm', dtype=torch.float32, device='cpu')" in message
    with counted() as attempts:  # the capture has settled nothing
        assert use() == []
    assert attempts.call_count == 1


@pytest.mark.parametrize("capturing", (False, True))
def test_capturing_asks_for_the_tensor_s_device(capturing):
    device = torch.device("cuda", 1)
    with (
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=capturing),
        mock.patch.object(torch.cuda, "device") as current,
    ):
        assert self_check._capturing(device) is capturing
    current.assert_called_once_with(device)


@pytest.mark.parametrize("agreed", (False, True))
def test_capture_runs_the_kernels_where_they_agreed_before(agreed):
    from fused_rnn.kernels import launch

    if agreed:
        fused_rnn.check_kernels("lstm", device="cpu")
        forget()  # the disk is enough
    with (
        mock.patch.object(self_check, "_capturing", return_value=True),
        mock.patch.object(launch, "start", side_effect=launch.start) as start,
    ):
        assert len(use()) == (not agreed)
    assert start.call_count == (2 if agreed else 0)


def test_threads_share_one_check():
    """They ask only: Triton's interpreter does not run in several threads at once."""
    barrier, answers, like = threading.Barrier(4), [], torch.empty(3, 2, 1, 4, 5)

    def body():
        barrier.wait()
        answers.append(self_check.admits("auto", cells.LSTM, "forward", like))

    with counted() as attempts:
        threads = [threading.Thread(target=body) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [True] * 4
    assert attempts.call_count == 1


def test_others_wait_while_a_check_forces_its_strategy():
    started, plans = threading.Event(), []

    def attempt(*_):
        with plan.use_strategy("step"):
            started.set()
            time.sleep(0.3)
        return trial.Outcome(True)

    like = torch.empty(3, 2, 1, 4, 5)
    assert self_check.admits("auto", cells.LSTM, "forward", like)  # known already
    with mock.patch.object(trial, "attempt", side_effect=attempt):
        checking = threading.Thread(
            target=self_check.admits, args=("auto", cells.GRU, "forward", like)
        )
        checking.start()
        started.wait()
        right = plan.plan
        look = mock.Mock(side_effect=lambda *args: plans.append(plan._forced) or right(*args))
        with mock.patch.object(plan, "plan", look):
            assert self_check.admits("auto", cells.LSTM, "forward", like)
        checking.join()
    assert plans == [None]


def test_the_strategy_of_the_plan_is_tried():
    """On two slices of the hidden units, though a small problem would take another strategy."""
    from fused_rnn.kernels import launch

    launches = []

    def start(kernel, grid, arguments, constants):
        launches.append((grid, constants))
        kernel[grid](*arguments, **constants)

    chosen = plan.plan(cells.LSTM, 3, 3, trial.SIZES[0], torch.float32, CPU)
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


def test_tf32_is_another_combination(monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    assert trial.uses_tf32(torch.float32, gpu)
    assert not trial.uses_tf32(torch.float32, CPU)
    assert not trial.uses_tf32(torch.bfloat16, gpu)
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    assert not trial.uses_tf32(torch.float32, gpu)
    keys = [self_check._key(FACTS, cells.GRU, "step", torch.float32, tf32) for tf32 in (0, 1)]
    assert keys[0] != keys[1]


def test_compiled_functions_check_when_they_run():
    module = fused_rnn.GRU(3, 5)
    x = torch.randn(4, 2, 3)
    compiled = torch.compile(lambda x: module(x)[0], backend="eager", fullgraph=True)
    with wrong_outputs(), counted() as attempts, pytest.warns(RuntimeWarning, match="'gru'"):
        got = compiled(x)
    assert attempts.call_count == 1
    with fused_rnn.use_backend("reference"):
        torch.testing.assert_close(got, module(x)[0])


def test_check_kernels(tmp_path):
    outcomes = fused_rnn.check_kernels("peephole_lstm", dtype=torch.bfloat16, device="cpu")
    assert list(outcomes) == ["resident", "step"]
    for outcome in outcomes.values():
        assert outcome.agrees
        assert 0 < outcome.error < trial.MOST
    assert len(files(tmp_path)) == 2
    (outcome,) = fused_rnn.check_kernels("gru", device="cpu", strategies=("step",)).values()
    assert outcome.agrees
    with pytest.raises(RuntimeError, match="'gru' here: its kernels have no dtype torch.int8"):
        fused_rnn.check_kernels("gru", dtype=torch.int8, device="cpu")
    with pytest.raises(ValueError, match="cell: expected one of"):
        fused_rnn.check_kernels("none", device="cpu")
    with (
        mock.patch.object(torch.cuda, "is_available", return_value=False),
        pytest.raises(RuntimeError, match="there is no CUDA device"),
    ):
        fused_rnn.check_kernels("gru")


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32, torch.float64))
@pytest.mark.parametrize("name", cells.names())
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
        with _patched("forward", change):
            assert not trial.attempt(lstm, "resident", dtype, CPU).agrees


def test_a_cell_that_cannot_be_printed_falls_back():
    cell = Cell("bessel", lambda pre, state: torch.special.i0e(pre[0]) + state[0], gates=["n"])
    (message,) = use(cell)
    assert "NotImplementedError" in message


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
