"""The race of launches and cuDNN for what is fastest on a GPU, with planted times and faults."""

import math
from types import SimpleNamespace

import pytest
import torch

import fused_rnn
from bench.race import sizes
from bench.race.gate import Verdict
from bench.race.problem import MODES, Problem
from bench.tune import __main__, gpu
from fused_rnn import cells, plan
from fused_rnn.plan import tuned
from fused_rnn.self_check.trial import Outcome
from tests.support.faults import wrong_gradient

CPU = torch.device("cpu")

PROBLEM = Problem.make(cells.LSTM, sizes.Size(4, 2, 3, 20), torch.float32, CPU)
BOTH_WAYS = Problem.make(cells.LSTM, sizes.Size(4, 2, 3, 20), torch.float32, CPU, directions=2)
GRU_BEFORE = Problem.make(cells.GRU_RESET_BEFORE, sizes.Size(4, 2, 3, 20), torch.float32, CPU)
A, B = (plan.Launch("resident", 16, 32, 32, warps) for warps in (4, 8))
STEP, WAITS = plan.Launch("step", 32, 32, 32, 8), plan.Launch("grid", 16, 16, 64, 4)


@pytest.fixture
def launches(monkeypatch):
    """What the table has, by strategy."""
    monkeypatch.setenv("FUSED_RNN_SELF_CHECK", "0")
    found = {"resident": ([A, B], ""), "grid": ([], "too large"), "step": ([STEP], "")}
    monkeypatch.setattr(plan, "launches", lambda *_: found)
    return found


def agrees(*_):
    return Outcome(True)


class Lenient:
    """A gate that runs every mode once and lets all pass but those by these names."""

    wrong = ()

    def __init__(self, problem, modes):
        self.problem, self.modes = problem, modes

    def check(self, name, module):
        for mode in self.modes:
            MODES[mode](module, self.problem)()
        return Verdict("training dx", 2.0 if name in self.wrong else 0.0, 1.0)


def clock(times, raced=None):
    """A race in which each takes its milliseconds, one of them more in its first round."""

    def race(calls, rounds, device):
        if raced is not None:
            raced.append(list(calls))
        return {name: [times[name] * 9, *[times[name]] * (rounds - 1)] for name in calls}

    return race


TIMES = {gpu.ATEN: 3.0, A: 2.0, B: 1.0, STEP: 4.0}


def run(problem=PROBLEM, **options):
    standard = {"check": agrees, "gate": Lenient, "race": clock(TIMES), "rounds": 5}
    return gpu.measure(problem, **standard | options)


@pytest.mark.usefixtures("interpreter", "launches")
def test_times_are_microseconds_per_step_of_each_that_is_right():
    raced = []
    timings = run(race=clock(TIMES, raced))
    assert list(timings) == ["inference", "training"]
    assert raced == [[gpu.ATEN, A, B, STEP]] * 2
    for timing in timings.values():
        assert timing.aten == 750.0
        assert timing.launches == ((A, 500.0), (B, 250.0), (STEP, 1000.0))
        assert (timing.steps, timing.batch) == (4, 2)
        assert timing.notes == ("grid: too large",)
        assert not timing.aten_is_fastest


@pytest.mark.usefixtures("interpreter", "launches")
def test_who_is_wrong_is_dropped_with_a_note(monkeypatch):
    raced = []
    monkeypatch.setattr(Lenient, "wrong", (str(B),))
    timings = run(race=clock(TIMES, raced))
    assert raced == [[gpu.ATEN, A, STEP]] * 2
    assert timings["training"].launches == ((A, 500.0), (STEP, 1000.0))
    note = "resident; a program: 16 rows, 1 x 32 units, 8 warps: training dx: error 2.0e+00"
    assert any(text.startswith(note) for text in timings["training"].notes)
    monkeypatch.setattr(Lenient, "wrong", (gpu.ATEN,))
    assert run()["training"].aten is None


@pytest.mark.usefixtures("interpreter")
def test_who_raises_is_dropped_with_a_note(launches):
    launches["grid"] = ([WAITS], "")
    wide = Problem.make(cells.LSTM, sizes.Size(4, 2, 3, 40), torch.float32, CPU)
    timings = run(wide)
    assert WAITS not in dict(timings["training"].launches)
    assert len(timings["training"].launches) == 3
    (note,) = timings["training"].notes
    assert note.startswith("grid; a program: 16 rows, 1 x 16 units, 4 warps: RuntimeError: ")
    assert "wait for each other" in note


@pytest.mark.usefixtures("interpreter", "launches")
def test_torch_nn_takes_part_where_it_has_the_cell():
    timings = run(GRU_BEFORE)
    assert timings["training"].aten is None
    assert len(timings["training"].launches) == 3
    assert any("torch.nn has kernels for" in note for note in timings["training"].notes)


@pytest.mark.usefixtures("interpreter", "launches")
def test_a_strategy_that_fails_its_check_is_not_even_built():
    asked, built = [], []

    def check(cell, strategy, dtype, device):
        asked.append((cell, strategy, dtype, device))
        return Outcome(strategy != "resident", "it hangs")

    class Gate(Lenient):
        def check(self, name, module):
            built.append(name)
            return super().check(name, module)

    timings = run(check=check, gate=Gate)
    assert asked == [(cells.LSTM, s, torch.float32, CPU) for s in ("resident", "step")]
    assert built == [gpu.ATEN, str(STEP)]
    assert timings["training"].launches == ((STEP, 1000.0),)
    assert "resident: it hangs" in timings["training"].notes


@pytest.mark.usefixtures("interpreter")
def test_the_gate_of_the_benchmarks_finds_a_wrong_kernel(launches):
    """With the parts that a GPU has, but the clock."""

    del launches["step"]
    real = {"check": gpu.check, "gate": gpu.Gate}
    assert [launch for launch, _ in run(**real)["training"].launches] == [A, B]
    with wrong_gradient():
        timings = run(**real | {"check": agrees})
    assert timings["training"].launches == ()
    assert timings["training"].aten_is_fastest
    assert sum("training dh0: error" in note for note in timings["training"].notes) == 2


@pytest.mark.usefixtures("interpreter")
def test_two_directions(monkeypatch):
    """By the launches that the table has for two, and with all parts but the clock."""
    asked = []

    def launches(*layer):
        asked.append(layer)
        return {"resident": ([A], ""), "step": ([STEP], "")}

    monkeypatch.setattr(plan, "launches", launches)
    real = {"check": gpu.check, "gate": gpu.Gate}
    timings = run(BOTH_WAYS, **real)
    assert asked == [(cells.LSTM, 4, 20, torch.float32, CPU, 2)]
    assert timings["training"].launches == ((A, 500.0), (STEP, 1000.0))
    assert timings["training"].aten == 750.0
    with wrong_gradient():
        timings = run(BOTH_WAYS, **real | {"check": agrees})
    assert timings["training"].launches == ()


@pytest.mark.usefixtures("interpreter", "launches")
@pytest.mark.parametrize("problem", (PROBLEM, BOTH_WAYS), ids=("one way", "both ways"))
def test_each_candidate_runs_its_own_launch(problem):
    seen = []

    class Watching(Lenient):
        def check(self, name, module):
            if name != gpu.ATEN:
                with module.around():
                    planned = plan.plan(cells.LSTM, 4, 2, 20, torch.float32, CPU)
                assert module.bidirectional == (problem is BOTH_WAYS)
                seen.append((name, planned.forward, planned.backward))
            return super().check(name, module)

    run(problem, gate=Watching)
    assert seen == [(str(launch), launch, launch) for launch in (A, B, STEP)]


def test_a_race_that_breaks_records_nothing(launches, monkeypatch):
    def broken(calls, rounds, device):
        raise RuntimeError("an illegal memory access was encountered")

    class Blind(Lenient):
        def check(self, name, module):
            return Verdict("", 0.0, 1.0)

    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(race=broken, gate=Blind)


@pytest.fixture
def machine_(monkeypatch, tmp_path):
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path))
    monkeypatch.delenv("FUSED_RNN_TUNED", raising=False)
    monkeypatch.setattr(fused_rnn.machine, "device_facts", lambda device: {"gpu": "GPU"})
    tuned._memory.clear()
    yield
    tuned._memory.clear()


def timing(aten, *times):
    rows = [launch for launch, _ in zip((A, B, STEP), times, strict=False)]
    return tuned.Timing(4, 2, aten, tuple(zip(rows, times, strict=True)))


@pytest.mark.usefixtures("machine_")
def test_what_is_saved_is_known():
    layer = (cells.LSTM, PROBLEM.size, torch.float32, CPU)
    assert not gpu.known(*layer)
    gpu.save(PROBLEM, {"training": timing(2.0, 3.0)})
    assert not gpu.known(*layer)
    gpu.save(PROBLEM, {"inference": timing(4.0, 3.0)})
    assert gpu.known(*layer)
    for training, faster in ((True, True), (False, False)):
        known = tuned.find(cells.LSTM, 4, 2, 20, torch.float32, CPU, training=training)
        assert known.aten_is_fastest == faster
    assert not gpu.known(cells.GRU, PROBLEM.size, torch.float32, CPU)
    assert not gpu.known(*layer, directions=2)
    gpu.save(BOTH_WAYS, dict.fromkeys(MODES, timing(2.0, 3.0)))
    assert gpu.known(*layer, directions=2)
    x = torch.zeros(4, 2, 3)
    for directions, faster in ((1, False), (2, True)):
        assert tuned.aten_is_faster(cells.LSTM, x, 20, directions, training=False) == faster


def test_summary():
    text = "resident; a program: 16 rows, 1 x 32 units, 8 warps 2.00; torch.nn"
    assert gpu.summary(timing(3.0, 4.0, 2.0)) == f"{text} 3.00 us per step: fused"
    assert gpu.summary(timing(1.0, 4.0, 2.0)) == f"{text} 1.00 us per step: torch.nn"
    assert gpu.summary(timing(None, 4.0, 2.0)) == f"{text} - us per step: fused"
    assert gpu.summary(timing(1.0)) == "no kernel; torch.nn 1.00 us per step: torch.nn"


@pytest.mark.usefixtures("machine_")
def test_a_run_goes_on_where_it_stopped(monkeypatch, capsys):
    done = []

    def fake(problem, rounds):
        done.append((problem.cell.name, str(problem.size), problem.directions, rounds))
        return dict.fromkeys(MODES, timing(2.0, 3.0))

    monkeypatch.setattr(gpu, "measure", fake)
    options = SimpleNamespace(again=False, rounds=3)
    size = sizes.Size(4, 2, 20, 20)

    def one(end=math.inf, directions=1):
        return __main__._time_one(cells.LSTM, "float32", size, directions, CPU, end, options)

    assert not one(end=-math.inf)
    assert not done
    assert one()
    assert done == [("lstm", "4x2x20", 1, 3)]
    assert one()
    assert len(done) == 1
    options.again = True
    assert one()
    assert len(done) == 2
    options.again = False
    for _ in range(2):
        assert one(directions=2)
    assert done[2:] == [("lstm", "4x2x20", 2, 3)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lstm float32 4x2x20: left"
    assert lines[3] == "lstm float32 4x2x20: known"
    assert lines[1].startswith("lstm float32 4x2x20 inference: resident")
    assert lines[-1] == "lstm float32 4x2x20 bidirectional: known"


def test_without_a_gpu_there_is_nothing_to_time(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert __main__.main([]) == 1
    assert "--offline" in capsys.readouterr().out
    for wrong in (["--sizes", "2x3"], ["--cells", "elman"], ["--capability", "75"]):
        with pytest.raises(SystemExit):
            __main__.main(wrong)
        assert wrong[1] in capsys.readouterr().err
