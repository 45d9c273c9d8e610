"""The benchmark: nothing wrong gets a figure, and what it writes can be read."""

import csv
import json

import pytest
import torch
from torch import nn

from bench import __main__ as bench
from bench.race import calls, plot, providers, report, sizes, timing
from bench.race.eager import EagerLoop
from bench.race.gate import Gate, allowed
from bench.race.problem import MODES, Problem
from bench.race.providers import Provider
from bench.race.rows import Row, slow
from bench.reports import curve, memory
from bench.tune import cpu as bench_measured
from fused_rnn import Cell, Recurrent, cells
from fused_rnn.plan import cpu
from tests.support.cells import ALL, name_of

TINY = sizes.TABLE["tiny"][0]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny products are slower on two, most of all on a busy machine
    yield
    torch.set_num_threads(before)


def run(out, *options):
    """Exit status and rows by (cell, mode, provider)."""
    standard = ("--device", "cpu", "--sizes", "tiny", "--rounds", "2", "--threads", "1")
    status = bench.main([*standard, "--out", str(out), *options])
    _, _, rows = report.read(out / "cpu.json")
    return status, {(row.cell, row.mode, row.provider): row for row in rows}


def plant(monkeypatch, name, build, **options):
    monkeypatch.setitem(providers.REGISTRY, name, Provider(name, build, **options))


class Planted(nn.Module):
    """A right layer with something done to what it computes."""

    def __init__(self, problem, fault):
        super().__init__()
        self.layer = Recurrent(problem.cell, problem.size.I, problem.size.H, backend="sequence")
        self.fault = fault

    def load_state_dict(self, weights):
        self.layer.load_state_dict(weights)

    def get_parameter(self, name):
        return self.layer.get_parameter(name)

    def forward(self, x, hx):
        return self.fault(self, *self.layer(x, hx))


def _scaled_gradient(tensor, factor):
    return tensor.detach() + factor * (tensor - tensor.detach())


FAULTS = {
    "output": lambda self, y, hn: (y * (1 + 1e-4), hn),
    "one step": lambda self, y, hn: (y.index_fill(0, torch.tensor(3), 0.0), hn),
    "not a number": lambda self, y, hn: (y / 0 * 0, hn),
    "last state": lambda self, y, hn: (y, (hn[0], hn[1] * (1 + 1e-4))),
    "gradients": lambda self, y, hn: (_scaled_gradient(y, 1 + 1e-4), hn),
    "inference only": lambda self, y, hn: (y if torch.is_grad_enabled() else y * (1 + 1e-4), hn),
    "dtype": lambda self, y, hn: (y.double(), hn),
}


def test_smoke(tmp_path, capsys):
    status, rows = run(
        tmp_path, "--cells", "lstm,gru_reset_before", "--providers", "torch,sequence,auto"
    )
    assert status == 0
    order = ["eager", "torch", "sequence", "auto"]
    for cell in ("lstm", "gru_reset_before"):
        for mode in MODES:
            assert [p for c, m, p in rows if (c, m) == (cell, mode)] == order
    for (cell, _, provider), row in rows.items():
        if (cell, provider) == ("gru_reset_before", "torch"):
            assert (row.status, row.reason) == ("skipped", "torch.nn has no such cell")
            assert row.median_ms is row.speedup is None
            continue
        assert row.status == "timed"
        assert row.error <= row.allowed
        assert 0 < row.min_ms <= row.q1_ms <= row.median_ms <= row.q3_ms
        assert row.speedup_q1 <= row.speedup <= row.speedup_q3
        assert row.speedup == 1 or provider != "eager"
        assert (row.over_torch is None) == (cell == "gru_reset_before")
        assert len(row.samples_ms) == 2
    shown = capsys.readouterr().out
    assert "lstm (fp32)" in shown
    assert "torch.nn has no such cell" in shown


def test_files(tmp_path):
    _, rows = run(tmp_path, "--cells", "rnn_tanh", "--providers", "sequence")
    with open(tmp_path / "cpu.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows.values(), strict=True):
        sizes_in_it = tuple(int(line[name]) for name in "TBIH")
        assert sizes_in_it == tuple(TINY)
        assert (line["cell"], line["mode"], line["provider"]) == (row.cell, row.mode, row.provider)
        assert (line["dtype"], line["device"], line["status"]) == ("float32", "cpu", "timed")
        assert float(line["median_ms"]) == row.median_ms
        assert float(line["speedup"]) == row.speedup
    content = json.loads((tmp_path / "cpu.json").read_text())
    facts = ("device_name", "cores", "threads", "python", "torch", "triton", "numpy")
    for fact in (*facts, "fused_rnn", "commit", "date"):
        assert content["environment"][fact]
        assert lines[0][fact] == str(content["environment"][fact])
    assert content["settings"]["rounds"] == 2
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "README.md").read_text()
    assert "![Speed-up over the eager loop](cpu.png)" in page
    assert "| rnn_tanh | 7×3×12×20 |" in page


def test_the_page_leaves_out_files_of_other_reports(tmp_path):
    (tmp_path / "clock.json").write_text('[{"cell": "lstm"}]')
    (tmp_path / "workloads.json").write_text('{"workloads": {}}')
    run(tmp_path, "--cells", "rnn_tanh", "--providers", "sequence")
    page = (tmp_path / "README.md").read_text()
    assert page.count("\n## ") == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_gate_catches(fault):
    problem = Problem.make(cells.LSTM, TINY, torch.float32, CPU)
    gate = Gate(problem, list(MODES))
    assert gate.check("sequence", problem.load(Planted(problem, lambda self, *out: out))).ok
    assert not gate.check("planted", problem.load(Planted(problem, FAULTS[fault]))).ok


def test_gate_allows_four_units_and_half_of_the_digits():
    eps = torch.finfo(torch.float32).eps
    bounds = allowed({"a": 0.0, "b": 1e-6, "c": 2e-6, "d": 1.0}, torch.float32)
    assert bounds["a"] == bounds["b"] == pytest.approx(4 * (1.5e-6 + eps))
    assert bounds["c"] == pytest.approx(4 * (2e-6 + eps))
    assert bounds["d"] == eps**0.5


def test_wrong_provider_gets_no_figure(tmp_path, monkeypatch, capsys):
    plant(monkeypatch, "planted", lambda problem: Planted(problem, FAULTS["gradients"]))
    status, rows = run(tmp_path, "--cells", "lstm", "--providers", "sequence,planted")
    assert status == 1
    for mode in MODES:
        row = rows["lstm", mode, "planted"]
        assert row.status == "wrong"
        assert row.error > row.allowed
        assert row.median_ms is row.min_ms is row.speedup is None
        assert not row.samples_ms
        assert rows["lstm", mode, "sequence"].status == "timed"
    shown = capsys.readouterr().out
    assert f"planted: WRONG: {row.tensor}: error" in shown
    for line in shown.splitlines():
        if line.startswith("7x3x12x20"):
            assert line.endswith("WRONG")
            assert line.count("×") == 2  # a ratio for eager and one for sequence
    assert f"planted, lstm, 7x3x12x20: wrong: {row.tensor}" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ["x", "h0", "c0", "weight_ih_l0", "bias_hh_l0", "p_o_l0"])
def test_gate_looks_at_every_gradient(name):
    problem = Problem.make(cells.PEEPHOLE_LSTM, TINY, torch.float32, CPU)

    class OneWrong(Planted):
        def forward(self, x, hx):
            named = {"x": x, "h0": hx[0], "c0": hx[1]}
            if name in named:
                named[name] = _scaled_gradient(named[name], 1 + 1e-4)
                return self.layer(named["x"], (named["h0"], named["c0"]))
            wrong = {name: _scaled_gradient(self.get_parameter(name), 1 + 1e-4)}
            return torch.func.functional_call(self.layer, wrong, (x, hx))

    gate = Gate(problem, list(MODES))
    right = providers.REGISTRY["sequence"].module(problem)
    assert gate.check("sequence", right).ok
    verdict = gate.check("planted", problem.load(OneWrong(problem, None)))
    assert not verdict.ok
    assert verdict.tensor == f"training d{name}"


def test_exception_is_a_failure(tmp_path, monkeypatch, capsys):
    def explode(problem):
        raise RuntimeError("the kernel does not fit\nand more")

    plant(monkeypatch, "planted", explode)
    status, rows = run(tmp_path, "--cells", "rnn_tanh", "--providers", "planted,sequence")
    assert status == 1
    assert rows["rnn_tanh", "training", "planted"].status == "failed"
    assert rows["rnn_tanh", "training", "sequence"].status == "timed"
    assert "planted: FAILED: RuntimeError: the kernel does not fit" in capsys.readouterr().out


def test_broken_yardstick_times_nobody(tmp_path, monkeypatch):
    plant(monkeypatch, "eager", lambda problem: Planted(problem, lambda self, y, hn: (y * 2, hn)))
    plant(monkeypatch, "planted", lambda problem: Planted(problem, FAULTS["one step"]))
    status, rows = run(tmp_path, "--cells", "lstm", "--providers", "sequence,planted")
    assert status == 1
    assert {row.status for row in rows.values() if row.provider == "eager"} == {"wrong"}
    assert {row.status for row in rows.values() if row.provider == "planted"} == {"wrong"}
    assert {row.status for row in rows.values() if row.provider == "sequence"} == {"checked"}
    assert all(row.median_ms is None for row in rows.values())
    assert not (tmp_path / "cpu.png").exists()


@pytest.mark.parametrize("asked", [False, True])
def test_interpreter_is_never_timed(asked, tmp_path, monkeypatch):
    plant(monkeypatch, "planted", providers.sequence, kernels=True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    more = ("--interpreter-smoke",) if asked else ()
    status, rows = run(tmp_path, "--cells", "lstm", "--providers", "sequence,planted", *more)
    assert status == 0
    row = rows["lstm", "training", "planted"]
    assert row.status == ("checked" if asked else "skipped")
    assert (row.error is not None) == asked
    assert row.median_ms is None
    assert rows["lstm", "training", "sequence"].status == "timed"


@pytest.mark.parametrize("directions", (1, 2))
@pytest.mark.parametrize("cell", [c for c in ALL if not c.streams], ids=name_of)
def test_eager_loop_is_right(cell: Cell, directions):
    size = sizes.Size(5, 2, 4, 4) if cell.raw_gates else sizes.Size(5, 2, 3, 4)
    problem = Problem.make(cell, size, torch.float64, CPU, directions=directions)
    layers = (problem.layer(kind=EagerLoop), problem.layer("reference"))
    for name, value in problem.weights.items():
        if name.startswith("period"):
            value.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    names = problem.result_names("training")
    got, want = (MODES["training"](problem.load(layer), problem)() for layer in layers)
    for name, one, other in zip(names, got, want, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


def test_16_bits(tmp_path):
    options = ("--cells", "lstm", "--providers", "sequence", "--dtype", "bf16", "--threads", "1")
    assert (
        bench.main(
            [
                "--device",
                "cpu",
                "--sizes",
                "tiny",
                "--rounds",
                "1",
                "--out",
                str(tmp_path),
                *options,
            ]
        )
        == 0
    )
    _, settings, rows = report.read(tmp_path / "cpu-bf16.json")
    assert settings["dtype"] == "bf16"
    assert {row.status for row in rows} == {"timed"}
    assert all(row.dtype == "bfloat16" for row in rows)


def test_rounds_interleave(monkeypatch):
    monkeypatch.setattr(timing, "MOST_CALLS", 1)
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    samples = timing.race(calls, 4, CPU)
    warm_up = 3 * 3
    assert "".join(order[warm_up:]) == "abc" + "bca" + "cab" + "abc"
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}


def timed(provider, **samples):
    problem = Problem.make(cells.LSTM, TINY, torch.float32, CPU)
    return Row.start(problem, "training", provider, "checked").timed(samples)


def test_ratios_are_taken_within_rounds():
    row = timed("auto", eager=[10.0, 100.0, 40.0], torch=[5.0, 50.0, 10.0], auto=[20.0, 50.0, 20.0])
    assert (row.min_ms, row.median_ms) == (20, 20)
    assert (row.speedup_q1, row.speedup, row.speedup_q3) == (1.25, 2, 2)
    assert row.over_torch == 0.5


def test_slow_means_slow_in_most_rounds():
    sometimes = timed("auto", eager=[1.0] * 4, auto=[1.1, 1.2, 0.8, 0.9])
    mostly = timed("auto", eager=[1.0] * 4, auto=[1.1, 1.2, 1.05, 1.1])
    other = timed("sequence", eager=[1.0] * 4, sequence=[1.1, 1.2, 1.05, 1.1])
    assert slow([sometimes, mostly, other]) == [mostly]


def test_plot_of_many_sizes(tmp_path):
    rows = []
    for size in sizes.TABLE["cuda"]:
        problem = Problem.make(cells.LSTM, TINY, torch.float32, CPU)
        for name in ("eager", "torch", "triton-resident", "a-new-one"):
            start = Row.start(problem, "inference", name, "checked")
            row = start.timed({"eager": [3.0, 3.1], "torch": [1.0, 1.1], name: [2.0, 2.2]})
            rows.append(row.__class__(**{**vars(row), **size._asdict()}))
    settings = {"device": "cuda", "dtype": "bf16"}
    plot.draw(tmp_path / "a.png", {"device_name": "A", "threads": 1, "torch": "2"}, settings, rows)
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_sizes():
    assert sizes.parse("tiny,50x1x128") == (TINY, sizes.Size(50, 1, 128, 128))
    assert sizes.parse("2x3x4x5,2x3x4x5") == (sizes.Size(2, 3, 4, 5),)
    assert [str(s) for s in sizes.parse("2x3x4x5,2x3x4")] == ["2x3x4x5", "2x3x4"]
    for wrong in ("", "2x3", "2x3x0", "1x2x3x4x5", "smal"):
        with pytest.raises(ValueError, match="size"):
            sizes.parse(wrong)


@pytest.mark.parametrize(
    "options", [("--providers", "cudnn"), ("--modes", "backward"), ("--cells", "elman")]
)
def test_unknown_names_are_refused(options, capsys):
    with pytest.raises(SystemExit) as exit_:
        bench.main(list(options))
    assert exit_.value.code == 2
    assert options[1] in capsys.readouterr().err


def test_what_the_backward_keeps(monkeypatch, capsys):
    """The numbers of docs/memory.md, and a clear word where there is no GPU."""
    found = {row[:2]: row[-2:] for row in memory.rows("cpu", ((400, 4, 8),))}
    for key, want in (
        (("LSTM", "float32"), (24, 8)),
        (("LSTM", "bfloat16"), (14, 6)),
        (("GRU", "float16"), (10, 2)),
    ):
        # h0 and c0 besides, which do not grow with T.
        assert found[key] == pytest.approx(want, abs=0.1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert memory.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_yardsticks_are_layers_of_torch_in_the_place_of_a_cell(tmp_path):
    _, rows = run(tmp_path, "--cells", "lstm,cifg_lstm", "--providers", "torch,nn.LSTM,nn.GRU,auto")
    for mode in MODES:
        own, other = rows["lstm", mode, "auto"], rows["cifg_lstm", mode, "auto"]
        assert rows["lstm", mode, "nn.LSTM"].reason == "the same as torch"
        assert own.over_lstm == own.over_torch
        assert other.over_torch is None
        for row in (own, other):
            assert row.over_lstm > 0
            assert row.over_gru > 0
        yardstick = rows["cifg_lstm", mode, "nn.LSTM"]
        assert (yardstick.status, yardstick.cell, yardstick.over_lstm) == ("timed", "cifg_lstm", 1)
        assert yardstick.error <= yardstick.allowed
    page = (tmp_path / "README.md").read_text()
    table = page[page.index('### "auto" over') :]
    assert table.count("| cifg_lstm | 7×3×12×20 |") == 1
    assert f"{rows['lstm', 'training', 'auto'].over_gru:.2f}×" in table


def test_a_wrong_yardstick_has_no_figure(tmp_path, monkeypatch):
    def build(problem):
        assert problem.cell is cells.LSTM
        return Planted(problem, lambda self, output, finals: (output * 1.01, finals))

    plant(monkeypatch, "nn.LSTM", build, yardstick="lstm")
    status, rows = run(tmp_path, "--cells", "cifg_lstm", "--providers", "nn.LSTM,sequence")
    assert status == 1
    assert rows["cifg_lstm", "training", "nn.LSTM"].status == "wrong"
    assert rows["cifg_lstm", "training", "sequence"].over_lstm is None


def test_measuring_for_auto(tmp_path, monkeypatch):
    """``bench.tune.cpu`` writes rows that ``fused_rnn.plan.cpu`` reads."""
    monkeypatch.setattr(cpu, "FILE", tmp_path / "cpu.json")
    monkeypatch.setattr(bench_measured, "STEPS", (2,))
    monkeypatch.setattr(bench_measured, "BATCHES", (1,))
    monkeypatch.setattr(bench_measured, "HIDDEN", (3, 4))
    monkeypatch.setattr(bench_measured, "MORE", [])
    cpu.table.cache_clear()
    bench_measured.main(["--rounds", "1"])
    environment, rows = cpu.table()
    assert environment["cpu"]
    assert len(rows) == 4 * 2 * 2 * 2
    assert cpu.nearest("gru", "float64", "training", 50, 3, 100).H == 4
    assert cpu.nearest("gru", "bfloat16", "training", 50, 3, 100) is None
    monkeypatch.undo()
    cpu.table.cache_clear()
    cpu._nearest.cache_clear()


@pytest.mark.parametrize("kind", ["step", "packed"])
def test_calls(kind, tmp_path):
    """One step and packed rows: who agrees with the reference has rows, a page and a table."""
    assert calls.main([kind, "--quick", "--cells", "lstm,cifg_lstm", "--out", str(tmp_path)]) == 0
    text = (tmp_path / f"{kind}.md").read_text()
    assert text.count("| auto |") == 4
    assert text.count("| torch |") == 2
    assert (tmp_path / f"{kind}.csv").read_text().count("\n") == 11
    rows = json.loads((tmp_path / f"{kind}.json").read_text())["rows"]
    assert all(row[-1] > 0 for row in rows)


def test_calls_have_no_figure_for_who_disagrees(tmp_path, monkeypatch, capsys):
    from fused_rnn.engines import choose_step

    def usual_step(module, x, hx):
        return (lambda x, hx: (hx[0] + x, hx[1]), (x, hx)) if module.backend == "auto" else None

    monkeypatch.setattr(choose_step, "usual_step", usual_step)
    assert calls.main(["step", "--quick", "--cells", "lstm", "--out", str(tmp_path)]) == 1
    assert "WRONG: auto lstm" in capsys.readouterr().out


def test_a_curve_of_a_race_over_sizes(tmp_path, capsys):
    more = ("--sizes", "4x2x8,4x2x16", "--providers", "sequence")
    run(tmp_path, "--cells", "rnn_tanh", *more)
    curve.main([str(tmp_path / "cpu.json")])
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    run(tmp_path, "--cells", "rnn_tanh,lstm", *more)
    with pytest.raises(SystemExit):
        curve.main([str(tmp_path / "cpu.json")])
    assert "expected a race of one cell, got rnn_tanh, lstm" in capsys.readouterr().err
