"""The check of the kernels' first use: what it finds, what it remembers, and what happens then."""

import contextlib
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

import fused_rnn
from fused_rnn import Cell, cells, machine, numerics, plan
from fused_rnn.self_check import admission, trial
from tests.support.faults import FAULTS, exception, hang, wrong_outputs
from tests.support.problems import make_problem
from tests.support.tolerances import assert_as_good_as_eager

pytestmark = pytest.mark.usefixtures("interpreter")

CPU = torch.device("cpu")
FACTS = {"gpu": "GPU", "driver": "1.2", "torch": "2", "triton": "3", "fused_rnn": "0"}


@pytest.fixture(autouse=True)
def facts(monkeypatch, tmp_path):
    """A device that is checked, an empty cache, and nothing in memory."""
    facts = dict(FACTS)
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FUSED_RNN_SELF_CHECK", raising=False)
    monkeypatch.setattr(machine, "device_facts", lambda device: facts)
    forget()
    yield facts
    forget()


def forget():
    """As another process begins."""
    for known in (
        admission._memory,
        admission._by_digest,
        admission._warned,
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
    with counted() as attempts:  # another process asks again, after the fault was corrected
        assert use() == []
    assert attempts.call_count == 1
    assert len(files(tmp_path)) == 1


def test_fallback_runs_no_kernel():
    from fused_rnn.kernels.gpu import launch

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
        from fused_rnn import machine
        from fused_rnn.self_check import trial
        machine.device_facts = lambda device: {"gpu": "GPU"}
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
        with mock.patch.object(machine, "kernels_digest", return_value="another"):
            use()
    assert attempts.call_count == 3


def test_fast_activations_are_checked_by_themselves():
    with counted() as attempts:
        use(dtype=torch.bfloat16)
        forget()
        with fused_rnn.fast_activations():
            use(dtype=torch.bfloat16)
    assert attempts.call_count == 2


def test_a_second_device_like_the_first_is_not_checked_or_warned_of_again():
    with (
        exception(),
        counted() as attempts,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        for device in (CPU, torch.device("cpu", 0)):
            outcome = admission._outcome(cells.LSTM, "resident", torch.float32, device)
            assert not outcome.agrees
    assert attempts.call_count == 1
    assert len(caught) == 1


def test_the_key_knows_the_wiring():
    def step(pre, state):
        return pre[0] + pre[1].tanh(), state[0] + state[1]

    def key(**wiring):
        cell = Cell("wired", step, gates=("a", "b"), states=("h", "c"), **wiring)
        return admission._key(FACTS, cell, "step", torch.float32, False, "exact")["source"]

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
    where = machine.cache_directory
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
        mock.patch.object(admission, "_capturing", return_value=True),
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
        assert admission._capturing(device) is capturing
    current.assert_called_once_with(device)


@pytest.mark.parametrize("agreed", (False, True))
def test_capture_runs_the_kernels_where_they_agreed_before(agreed):
    from fused_rnn.kernels.gpu import launch

    if agreed:
        fused_rnn.check_kernels("lstm", device="cpu")
        forget()  # the disk is enough
    with (
        mock.patch.object(admission, "_capturing", return_value=True),
        mock.patch.object(launch, "start", side_effect=launch.start) as start,
    ):
        assert len(use()) == (not agreed)
    assert start.call_count == (2 if agreed else 0)


def test_threads_share_one_check():
    """They ask only: Triton's interpreter does not run in several threads at once."""
    barrier, answers, like = threading.Barrier(4), [], torch.empty(3, 2, 1, 4, 5)

    def body():
        barrier.wait()
        answers.append(admission.admits("auto", cells.LSTM, "forward", like))

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
    assert admission.admits("auto", cells.LSTM, "forward", like)  # known already
    with mock.patch.object(trial, "attempt", side_effect=attempt):
        checking = threading.Thread(
            target=admission.admits, args=("auto", cells.GRU, "forward", like)
        )
        checking.start()
        started.wait()
        right = plan.plan
        look = mock.Mock(side_effect=lambda *args: plans.append(plan.plans._forced) or right(*args))
        with mock.patch.object(plan, "plan", look):
            assert admission.admits("auto", cells.LSTM, "forward", like)
        checking.join()
    assert plans == [None]


def test_tf32_is_another_combination(monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    assert numerics.uses_tf32(torch.float32, gpu)
    assert not numerics.uses_tf32(torch.float32, CPU)
    assert not numerics.uses_tf32(torch.bfloat16, gpu)
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    assert not numerics.uses_tf32(torch.float32, gpu)
    combination = (FACTS, cells.GRU, "step", torch.float32)
    keys = [admission._key(*combination, tf32, "exact") for tf32 in (False, True)]
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


def test_a_cell_that_cannot_be_printed_falls_back():
    cell = Cell("bessel", lambda pre, state: torch.special.i0e(pre[0]) + state[0], gates=["n"])
    (message,) = use(cell)
    assert "NotImplementedError" in message
