"""What ``python -m fused_rnn.doctor`` says and returns, with and without faults."""

import json
import subprocess
import sys
from unittest import mock

import pytest
import torch
from fused_rnn.kernels.cpu import compiler

from fused_rnn import cells, context, doctor, plan
from fused_rnn.self_check import trial
from tests.project.test_rooms import HIDE_TRITON

SMALL = ("--cells", "gru", "--dtypes", "float32")


def run(tmp_path, *arguments):
    """The exit status and what is written."""
    status = doctor.main([*SMALL, *arguments, "--json", str(tmp_path / "report.json")])
    return status, json.loads((tmp_path / "report.json").read_text())


def test_says_how_much_is_left(interpreter, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "EVERY", 0.0)
    row = dict.fromkeys(doctor.WIDTHS) | {"verdict": "skipped", "reason": "this is a test"}
    monkeypatch.setattr(doctor, "examine", lambda *kind: row)
    doctor.main(["--cells", "lstm", "--dtypes", "float32"])
    captured = capsys.readouterr()
    assert " to go" not in captured.out
    said = captured.err.splitlines()
    assert said[0].startswith("1 of ")
    assert all(line.endswith(" s to go") for line in said)


def test_in_the_interpreter(interpreter, tmp_path, capsys):
    status, report = run(tmp_path)
    shown = capsys.readouterr().out
    assert status == 0
    assert "says nothing about a GPU" in shown
    assert "2 agree, 0 disagree, 2 skipped" in shown
    assert report["environment"]["torch"] == torch.__version__
    verdicts = {row["strategy"]: row["verdict"] for row in report["rows"]}
    assert verdicts == {
        "resident": "agrees",
        "grid": "skipped",
        "stream": "skipped",
        "step": "agrees",
    }
    for row in report["rows"]:
        if row["verdict"] == "agrees":
            assert 0 < row["error"] < trial.MOST
            assert row["plan"] == doctor._describe(_small_plan(row["strategy"]))
        else:
            assert "wait for each other" in row["reason"]
            assert row["reason"] in shown
    lines = [line for line in shown.splitlines() if line.startswith("gru ")]
    assert len(lines) == len(plan.STRATEGIES)


def _small_plan(strategy):
    return trial.fitting(cells.GRU, strategy, torch.float32, torch.device("cpu"))[1].forward


def test_a_fault_is_told_and_the_status_is_1(interpreter, tmp_path, capsys):
    from fused_rnn.kernels.gpu import launch

    def start(kernel, grid, arguments, constants):
        if constants["BLOCK_B"] == 32:  # "step"
            raise ValueError("the third kind of error")
        return kernel[grid](*arguments, **constants)

    with mock.patch.object(launch, "start", start):
        status, report = run(tmp_path)
        assert launch.start is start
    assert status == 1
    said = "gru, float32, step: ValueError: the third kind of error"
    assert said in capsys.readouterr().out
    verdicts = {row["strategy"]: (row["verdict"], row["reason"]) for row in report["rows"]}
    assert verdicts["resident"] == ("agrees", "")
    assert verdicts["step"][0] == "disagrees"


def test_wrong_numbers_are_told_with_their_error(interpreter, tmp_path, capsys):
    from fused_rnn.kernels.gpu import engine

    def wrong(*arguments):
        dpre, *others = right(*arguments)
        return dpre * 1.01, *others

    right = engine.backward
    with mock.patch.object(engine, "backward", wrong):
        status, report = run(tmp_path)
    assert status == 1
    row = report["rows"][0]
    assert row["verdict"] == "disagrees"
    assert row["error"] > trial.MOST
    assert f"gru, float32, resident: {row['reason']}" in capsys.readouterr().out


def test_without_a_gpu(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(context, "triton_installed", lambda: True)
    monkeypatch.setattr(doctor.machine, "versions", lambda: {"triton": "3"})
    status, report = run(tmp_path)
    assert status == 0
    assert report["rows"] == []
    shown = capsys.readouterr().out
    assert "There is no CUDA device" in shown
    found = compiler.find()
    assert f"compiler  {found.command if found else 'none that works'}" in shown


def test_without_triton():
    code = HIDE_TRITON + "    from fused_rnn import doctor\n    print(doctor.main([]))\n"
    code = "\n".join(line.removeprefix("    ") for line in code.splitlines())
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "triton  absent" in shown.stdout
    assert "Triton is not installed" in shown.stdout
    assert shown.stdout.endswith("\n0\n")


def test_as_a_program():
    command = [sys.executable, "-m", "fused_rnn.doctor", "--cells", "nothing"]
    shown = subprocess.run(command, check=False, capture_output=True, text=True)
    assert shown.returncode == 2
    assert "invalid choice: 'nothing'" in shown.stderr


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    """Every strategy that fits agrees, has its shared memory, and is timed beside cuDNN."""
    status, report = run(tmp_path)
    assert status == 0
    rows = [row for row in report["rows"] if row["verdict"] == "agrees"]
    assert rows
    for row in rows:
        assert row["shared"] >= 0
        assert row["us_per_step"] > 0 or row["not_timed"]
    assert report["environment"]["driver"] != "unknown"


class Event:
    """Of a GPU whose every interval takes 6.4 ms."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    synchronize = record

    def elapsed_time(self, end):
        return 6.4


@pytest.mark.parametrize("name", doctor.CORE)
def test_times(interpreter, monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(doctor, "HIDDEN", 5)
    monkeypatch.setattr(doctor, "STEPS", 2)
    right = doctor._time
    monkeypatch.setattr(doctor, "_time", lambda *args: right(*args, repeats=1))
    times = doctor._times(cells.get(name), torch.float32, "resident", torch.device("cpu"))
    assert times.pop("us_per_step") == pytest.approx(3200)
    covered = name in ("rnn_tanh", "rnn_relu", "lstm", "gru")
    assert times == ({"cudnn_us_per_step": pytest.approx(3200)} if covered else {})
