"""A session with a GPU: its budget, its report, and what becomes of stages that fail or hang."""

import sys

import pytest

from bench.gpu import __main__ as session
from bench.gpu import report, stages
from bench.gpu.stages import OUT, Stage


def python(code):
    """A command after ``python -m`` that runs code: timeit runs its argument once."""
    return ("timeit", "-n", "1", "-r", "1", code)


def planted(code, seconds=60, name="planted"):
    return Stage(name, "A stage of the test.", ("no_such_module",), python(code), seconds)


WRITES = f"open('{OUT}/figures.txt', 'w').write('42'); print('it says', 6 * 7)"


def run(monkeypatch, folder, *found):
    monkeypatch.setattr(stages, "STAGES", found)
    status = session.main(["--dry-run", "--out", str(folder)])
    return status, (folder / "report.md").read_text()


def test_stages_leave_files_and_a_report(monkeypatch, tmp_path, capsys):
    status, text = run(monkeypatch, tmp_path, planted(WRITES), planted("1 + 1", name="other"))
    assert status == 0
    assert (tmp_path / "planted" / "figures.txt").read_text() == "42"
    assert "it says 42" in (tmp_path / "planted" / "log.txt").read_text()
    for said in ("There was no GPU", "2 of 2 stages passed", "## Planted", "it says 42"):
        assert said in text
    assert "(planted/figures.txt)" in text
    assert str(tmp_path) not in text
    assert "stages: 2 of 2" in capsys.readouterr().err


def test_a_stage_that_fails_or_hangs_does_not_stop_the_others(monkeypatch, tmp_path):
    hangs = "import time; print('began', flush=True); time.sleep(60)"
    given = (
        planted("raise SystemExit(3)", name="fails"),
        planted(hangs, seconds=3, name="hangs"),
        planted(WRITES, name="runs"),
    )
    status, text = run(monkeypatch, tmp_path, *given)
    assert status == 1
    assert "1 of 3 stages passed" in text
    for row in ("| fails | A stage of the test. | **failed** |", "| **out of time** | 3 |"):
        assert row in text
    assert "began" in (tmp_path / "hangs" / "log.txt").read_text()
    assert (tmp_path / "runs" / "figures.txt").exists()


def test_without_a_gpu_it_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr(session.torch.cuda, "is_available", lambda: False)
    assert session.main([]) == 2
    assert "--dry-run" in capsys.readouterr().err


def test_all_stages_fit_into_ten_minutes_and_exist():
    assert sum(stage.seconds for stage in stages.STAGES) <= 600
    names = [stage.name for stage in stages.STAGES]
    assert names == ["self-check", "tests", "tuning", "workloads", "peers", "clock"]
    for stage in stages.STAGES:
        assert stage.command[0] == stage.dry[0]


@pytest.mark.slow
@pytest.mark.parametrize("stage", stages.STAGES, ids=lambda stage: stage.name)
def test_each_stage_runs_dry(stage, tmp_path):
    done = stages.run(stage, tmp_path, dry=True)
    assert done.status == "passed", done.log
    assert done.files
    assert stage.name in report.page({"python": sys.version}, [done], True)
