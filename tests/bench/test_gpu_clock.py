"""The clock beside the measurement: what is read of a race, the table, and its time."""

import time

import pytest

from bench.gpu import clock
from bench.gpu.clock import Clocked, Layer
from bench.race import report
from bench.race.rows import Row

LSTM = Layer("lstm", 16, 128, "bfloat16")
TIMES = {"inference": 0.5, "training": 1.25}


def row(provider="triton", status="timed", mode="inference", ms=1.024):
    return Row("lstm", 512, 16, 128, 128, "bfloat16", "cuda", mode, provider, status, median_ms=ms)


def asleep(job):
    time.sleep(30)


def test_of_a_race_the_kernels_are_read(tmp_path):
    rows = [row(), row("torch"), row(mode="training", status="wrong", ms=None)]
    report.write(tmp_path / "h100", {"threads": 1}, {}, rows)
    assert clock.measured(tmp_path) == {(LSTM, "inference"): pytest.approx(2.0)}
    assert clock.measured(tmp_path / "none") == {}


def test_a_row_has_the_measurement_the_clock_and_their_ratio():
    clocked = {
        (LSTM, 80): Clocked(LSTM, 80, why_not="it does not fit"),
        (LSTM, 90): Clocked(LSTM, 90, "grid", TIMES),
    }
    text = clock.page([(LSTM, "inference")], {(LSTM, "inference"): 2.0}, clocked, here=90)
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {LSTM}"))
    entries = [entry.strip() for entry in line.split("|")]
    assert entries[1:-1] == [str(LSTM), "inference", "2.00", "", "0.50 (grid)", "4.00"]
    assert "a model, not a measurement" in text
    assert f"- {LSTM} on 8.0: it does not fit" in text
    assert "left" not in text


def test_without_a_gpu_it_says_that_nothing_was_measured():
    rows = [(LSTM, mode) for mode in clock.KINDS]
    text = clock.page(rows, {}, {(LSTM, 90): Clocked(LSTM, 90, "grid", TIMES)}, here=None)
    assert "Nothing was measured" in text
    assert "1.25 (grid) |  |" in text
    assert "- 1 left: the time was over." in text


def test_what_takes_longer_than_its_time_is_left(monkeypatch):
    monkeypatch.setattr(clock, "look", asleep)
    begin = time.monotonic()
    assert list(clock.all_of([(LSTM, 90)], 0.1, 1)) == []
    assert time.monotonic() - begin < 20


def test_without_layers_there_is_nothing_to_do(tmp_path, capsys):
    assert clock.main(["--race", str(tmp_path)]) == 1
    assert "no layer" in capsys.readouterr().err
