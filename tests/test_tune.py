"""Where plans come from: the search by the compiler, and the race on a GPU, with planted facts."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from kernel_faults import wrong_gradient

import fused_rnn
from bench import measure, search, sizes, tune
from bench.gate import Verdict
from bench.grid import torch_dtype
from bench.problem import MODES, Problem
from fused_rnn import cells, cost, plan, tables, tuned
from fused_rnn.tables import Row
from fused_rnn.trial import Outcome

CPU = torch.device("cpu")
TABLE = tables.chips()
GRID = search.Grid(
    cells=("lstm", "peephole_lstm", "gru"),
    dtypes=("bfloat16", "float16"),
    hidden=(64, 128, 512, 1024, 2048),
    batches=(1, 16, 64),
)


def clean(probe, names):
    return dict.fromkeys(names, ())


def faulty(*where):
    """An examiner that finds faults where one of these functions of a probe says so."""

    def examine(probe, names):
        return {name: ["99 spills"] if any(w(probe) for w in where) else [] for name in names}

    return examine


def chosen(chip, grid=GRID):
    """By layer, batch and strategy, what ``plan`` would take."""
    return {
        (name, dtype, H, B, strategy): plan.quickest(
            cells.get(name), strategy, B, H, 1, torch_dtype(dtype), chip
        )[0]
        for name, dtype, H in grid.layers()
        for B in grid.batches
        for strategy in plan.STRATEGIES
    }


def probe_of(layer, launch):
    return search.Probe(*layer[:3], dataclasses.replace(launch, tiles=1))


def test_of_clean_kernels_the_fastest_by_the_model_are_the_table():
    found = search.search(TABLE, ["90"], clean, GRID)
    chip, everything = found.table["90"], dataclasses.replace(TABLE["90"], rows=search.SPACE)
    ours, best = chosen(chip), chosen(everything)
    assert ours == best
    assert {launch.strategy for launch in ours.values() if launch} == set(plan.STRATEGIES)
    for layer, launch in ours.items():
        if launch is None:
            continue
        name, dtype, H, B, strategy = layer
        times = [
            cost.step_time(cells.get(name), other, B, H, 1, 2, chip.multiprocessors)
            for row in search.SPACE
            if (row.strategy, row.itemsize) == (strategy, 2)
            for other, _ in [plan.fitting(cells.get(name), row, H, 1, everything)]
            if other is not None
        ]
        assert len(times) > 1 or strategy == "resident"
        size = (B, H, 1, 2, chip.multiprocessors)
        assert cost.step_time(cells.get(name), launch, *size) == min(times)
    used = {search._blocks(launch, "bfloat16") for launch in ours.values() if launch}
    assert {search._blocks(row) for row in chip.rows if row.itemsize == 2} == used
    assert not found.unseen["90"]
    assert not found.faults["90"]


def fastest(strategy, H=1024, B=16):
    everything = dataclasses.replace(TABLE["90"], rows=search.SPACE)
    return plan.quickest(cells.LSTM, strategy, B, H, 1, torch.bfloat16, everything)[0]


def test_a_row_whose_kernels_all_have_faults_is_left_out():
    bad = fastest("grid")
    like = search._blocks(bad, "bfloat16")
    found = search.search(
        TABLE, ["90"], faulty(lambda p: search._blocks(p.launch, p.dtype) == like), GRID
    )
    assert like not in map(search._blocks, found.table["90"].rows)
    layer = ("lstm", "bfloat16", 1024, 16, "grid")
    second = chosen(found.table["90"])[layer]
    assert second is not None
    assert second != bad
    assert found.faults["90"]
    assert all(words == ("99 spills",) for words in found.faults["90"].values())


RULES = {
    "many values": lambda p: plan.values(cells.get(p.cell)) * p.launch.block_h * p.launch.own > 140,
    "large layers": lambda p: p.H > 600,
    "many units": lambda p: p.launch.own * p.launch.block_h > 64,
    "two warps": lambda p: p.launch.num_warps == 2,
    "one dtype": lambda p: p.dtype == "float16" and p.launch.strategy == "grid" and p.H > 128,
    "at random": lambda p: hash((p.cell, p.H, p.launch.block_b, p.launch.num_warps)) % 7 == 0,
}
RULES["at random"] = lambda p: sum(map(ord, repr(p))) % 5 == 0  # the same in every process


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ("80", "90", "120"))
def test_all_that_is_chosen_was_seen_without_fault(rule, name):
    asked, examine = [], faulty(RULES[rule])

    def counted(probe, names):
        asked.append(probe)
        return examine(probe, names)

    found = search.search(TABLE, [name], counted, GRID)
    assert len(asked) == len(set(asked))
    plans = chosen(found.table[name])
    taken = {probe_of(layer, launch) for layer, launch in plans.items() if launch}
    assert taken
    assert taken <= set(asked)
    assert not any(map(RULES[rule], taken))
    assert set(found.faults[name]) == set(filter(RULES[rule], asked))
    # A program that owns more units than any that was looked at is not in the table.
    for row in found.table[name].rows:
        if row.itemsize == 2 and row.strategy in ("resident", "stream"):
            assert row.units == max(
                p.launch.own * p.launch.block_h
                for p in taken
                if search._blocks(p.launch, p.dtype) == search._blocks(row)
            )


def test_limits_shut_out_the_faults_and_little_else():
    row = Row(2, "grid", 16, 16, 64, 2)

    def limited(**by_cell):
        """Verdicts by cell for H of 64, 128, 256; of cells with 5, 6 and 9 values of 16 units."""
        values = {"gru": 5, "lstm": 6, "peephole": 9}
        spots = {
            (H, 16, 16 * values[cell]): {"+": True, "-": False, "?": None}[verdict]
            for cell, verdicts in by_cell.items()
            for H, verdict in zip((64, 128, 256), verdicts, strict=True)
        }
        found = search.limited(row, spots)
        return found and (found.hidden, found.units, found.values)

    free = (None, None, None)
    assert limited(gru="+++", lstm="+++", peephole="+++") == free
    assert limited(gru="???", lstm="???", peephole="???") == free
    assert limited(gru="+++", lstm="+++", peephole="---") == (None, None, 96)
    assert limited(gru="+++", lstm="+++", peephole="+-?") == (None, None, 96)
    assert limited(gru="++-", lstm="++-", peephole="++-") == (128, None, None)
    assert limited(gru="++-", lstm="++-", peephole="+--") == (128, None, 96)
    assert limited(gru="???", lstm="???", peephole="?-?") == (None, None, 96)
    assert limited(gru="-++", lstm="---", peephole="---") is None
    assert limited(gru="---", lstm="---", peephole="---") is None


def test_limits_of_units():
    row = Row(2, "resident", 16, 32, 32, 2)
    spots = {(H, H, H * v): H < 128 for H in (32, 64, 96, 128, 160) for v in (5, 6)}
    found = search.limited(row, spots)
    assert [found.hidden, found.units, found.values].count(None) == 2
    assert found.units in (None, 96)
    assert found.hidden in (None, 96)


def test_what_was_not_examined_is_said():
    def little(probe, names):
        return clean(probe, names) if probe.H < 512 else {}

    found = search.search(TABLE, ["80", "90"], little, GRID)
    for name in ("80", "90"):
        plans = chosen(found.table[name])
        taken = {probe_of(layer, launch) for layer, launch in plans.items() if launch}
        assert set(found.unseen[name]) == {probe for probe in taken if probe.H >= 512}
        assert found.unseen[name]


def test_chips_are_examined_together_where_they_choose_the_same():
    calls = []

    def examine(probe, names):
        calls.append(names)
        return clean(probe, names)

    search.search(TABLE, ["80", "86", "89"], examine, GRID)
    assert ["80", "86", "89"] in calls


def test_the_same_facts_give_the_same_bytes(tmp_path):
    examine = faulty(RULES["at random"])
    for turn in range(2):
        found = search.search(TABLE, ["80", "90"], examine, GRID)
        tables.write(tmp_path / f"{turn}.json", found.table)
        assert tables.read(tmp_path / f"{turn}.json").keys() == TABLE.keys()
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()
    # Stopped on the way, and begun again with what was known then.
    memory, room = {}, 40
    for _ in range(100):
        left = room

        def some(probe, names):
            nonlocal left
            for name in names:
                if (probe, name) not in memory and left:
                    left -= 1
                    memory[probe, name] = examine(probe, [name])[name]
            return {name: memory[probe, name] for name in names if (probe, name) in memory}

        found = search.search(TABLE, ["80", "90"], some, GRID)
        if not any(found.unseen.values()):
            break
    assert not any(found.unseen.values())
    tables.write(tmp_path / "2.json", found.table)
    assert (tmp_path / "2.json").read_bytes() == (tmp_path / "0.json").read_bytes()


def test_a_check_of_the_table_changes_only_what_has_faults(tmp_path):
    names = [name for name in TABLE if name != tables.INTERPRETER]
    found = search.search(TABLE, names, clean, GRID, None)
    tables.write(tmp_path / "same.json", found.table)
    assert (tmp_path / "same.json").read_bytes() == tables.FILE.read_bytes()
    found = search.search(TABLE, names, faulty(RULES["many values"]), GRID, None)
    for name in names:
        taken = [probe_of(*pair) for pair in chosen(found.table[name]).items() if pair[1]]
        assert not any(map(RULES["many values"], taken))
        after = {search._blocks(row): row for row in found.table[name].rows}
        assert list(after) == [b for b in map(search._blocks, TABLE[name].rows) if b in after]
        for row in TABLE[name].rows:
            now = after.get(search._blocks(row))
            for limit in ("hidden", "units", "values"):
                before = getattr(row, limit) or math.inf
                assert now is None or (getattr(now, limit) or math.inf) <= before
    changed = [r for r in found.table["90"].rows if r not in TABLE["90"].rows]
    assert changed


def test_other_chips_and_sizes_of_an_element_stay():
    found = search.search(TABLE, ["90"], clean, GRID)
    for name, chip in TABLE.items():
        rows = found.table[name].rows
        same = chip.rows if name != "90" else [r for r in chip.rows if r.itemsize != 2]
        assert [row for row in rows if name != "90" or row.itemsize != 2] == list(same)
    assert found.table["90"].rows != TABLE["90"].rows


def test_the_space_has_all_rows_of_the_table():
    """So that a search can come to them again."""
    space = set(map(search._blocks, search.SPACE))
    assert len(space) == len(search.SPACE)
    for name, chip in TABLE.items():
        if name != tables.INTERPRETER:
            assert set(map(search._blocks, chip.rows)) <= space


def test_the_table_is_written_as_it_is(tmp_path):
    tables.write(tmp_path / "again.json", tables.read(tables.FILE))
    assert (tmp_path / "again.json").read_bytes() == tables.FILE.read_bytes()


# The race.

PROBLEM = Problem.make(cells.LSTM, sizes.Size(4, 2, 3, 20), torch.float32, CPU)
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


TIMES = {measure.ATEN: 3.0, A: 2.0, B: 1.0, STEP: 4.0}


def run(problem=PROBLEM, **options):
    standard = {"check": agrees, "gate": Lenient, "race": clock(TIMES), "rounds": 5}
    return measure.measure(problem, **standard | options)


@pytest.mark.usefixtures("interpreter", "launches")
def test_times_are_microseconds_per_step_of_each_that_is_right():
    raced = []
    timings = run(race=clock(TIMES, raced))
    assert list(timings) == ["inference", "training"]
    assert raced == [[measure.ATEN, A, B, STEP]] * 2
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
    assert raced == [[measure.ATEN, A, STEP]] * 2
    assert timings["training"].launches == ((A, 500.0), (STEP, 1000.0))
    note = "resident; a program: 16 rows, 1 x 32 units, 8 warps: training dx: error 2.0e+00"
    assert any(text.startswith(note) for text in timings["training"].notes)
    monkeypatch.setattr(Lenient, "wrong", (measure.ATEN,))
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
    assert built == [measure.ATEN, str(STEP)]
    assert timings["training"].launches == ((STEP, 1000.0),)
    assert "resident: it hangs" in timings["training"].notes


@pytest.mark.usefixtures("interpreter")
def test_the_gate_of_the_benchmarks_finds_a_wrong_kernel(launches):
    """With the parts that a GPU has, but the clock."""

    del launches["step"]
    real = {"check": measure.check, "gate": measure.Gate}
    assert [launch for launch, _ in run(**real)["training"].launches] == [A, B]
    with wrong_gradient():
        timings = run(**real | {"check": agrees})
    assert timings["training"].launches == ()
    assert timings["training"].aten_is_fastest
    assert sum("training dh0: error" in note for note in timings["training"].notes) == 2


@pytest.mark.usefixtures("interpreter", "launches")
def test_each_candidate_runs_its_own_launch():
    seen = []

    class Watching(Lenient):
        def check(self, name, module):
            if name != measure.ATEN:
                with module.around():
                    planned = plan.plan(cells.LSTM, 4, 2, 20, torch.float32, CPU)
                seen.append((name, planned.forward, planned.backward))
            return super().check(name, module)

    run(gate=Watching)
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
    assert not measure.known(*layer)
    measure.save(PROBLEM, {"training": timing(2.0, 3.0)})
    assert not measure.known(*layer)
    measure.save(PROBLEM, {"inference": timing(4.0, 3.0)})
    assert measure.known(*layer)
    for training, faster in ((True, True), (False, False)):
        known = tuned.find(cells.LSTM, 4, 2, 20, torch.float32, CPU, training=training)
        assert known.aten_is_fastest == faster
    assert not measure.known(cells.GRU, PROBLEM.size, torch.float32, CPU)


def test_summary():
    text = "resident; a program: 16 rows, 1 x 32 units, 8 warps 2.00; torch.nn"
    assert measure.summary(timing(3.0, 4.0, 2.0)) == f"{text} 3.00 us per step: fused"
    assert measure.summary(timing(1.0, 4.0, 2.0)) == f"{text} 1.00 us per step: torch.nn"
    assert measure.summary(timing(None, 4.0, 2.0)) == f"{text} - us per step: fused"
    assert measure.summary(timing(1.0)) == "no kernel; torch.nn 1.00 us per step: torch.nn"


@pytest.mark.usefixtures("machine_")
def test_a_run_goes_on_where_it_stopped(monkeypatch, capsys):
    done = []

    def fake(problem, rounds):
        done.append((problem.cell.name, str(problem.size), problem.dtype, rounds))
        return dict.fromkeys(MODES, timing(2.0, 3.0))

    monkeypatch.setattr(measure, "measure", fake)
    options = SimpleNamespace(again=False, rounds=3)
    size = sizes.Size(4, 2, 20, 20)

    def one(end=math.inf):
        return tune._time_one(cells.LSTM, "float32", size, CPU, end, options)

    assert not one(end=-math.inf)
    assert not done
    assert one()
    assert done == [("lstm", "4x2x20", torch.float32, 3)]
    assert one()
    assert len(done) == 1
    options.again = True
    assert one()
    assert len(done) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lstm float32 4x2x20: left"
    assert lines[3] == "lstm float32 4x2x20: known"
    assert lines[1].startswith("lstm float32 4x2x20 inference: resident")


def test_without_a_gpu_there_is_nothing_to_time(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 1
    assert "--offline" in capsys.readouterr().out
    for wrong in (["--sizes", "2x3"], ["--cells", "elman"], ["--capability", "75"]):
        with pytest.raises(SystemExit):
            tune.main(wrong)
        assert wrong[1] in capsys.readouterr().err
