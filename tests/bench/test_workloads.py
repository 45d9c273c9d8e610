"""The workloads: every side computes the same, nothing wrong gets a figure, runs add up."""

import dataclasses

import pytest
import torch
from torch import nn

from bench.race import gate
from bench.workloads import __main__ as command
from bench.workloads import floors, memory, page, picture, rows, run, worker, workload
from bench.workloads.rows import Row
from bench.workloads.workload import FUSED, NAMES, Case, Layer, Provider, Workload, as_built, load

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [(name, case.name) for name in NAMES for case in load(name).cases]
SLOW = ("torch.compile of the step",)  # minutes of compilation


@pytest.mark.parametrize(("name", "case"), CASES)
def test_every_side_computes_the_same(name, case, tmp_path):
    given = load(name).case(case)
    exact = str(tmp_path / "exact.pt")
    oracle = worker.Runner(name, given.baseline, "cpu", 1, True, True)
    oracle.open(case)
    oracle.results(exact)
    bounds = None
    for provider in given.providers:
        if provider in SLOW or given.providers[provider].why_absent("cpu"):
            continue
        runner = worker.Runner(name, provider, "cpu", 1, True)
        runner.open(case)
        errors = runner.errors(exact)
        if bounds is None:
            assert provider == given.baseline
            bounds = gate.allowed(errors, torch.float32)
            assert len(errors) > 3 or given.modes == ("latency",)
        for tensor, error in errors.items():
            assert error <= bounds[tensor], (provider, tensor)


def test_sizes_and_providers_are_told():
    for name in NAMES:
        found = load(name)
        assert found.title
        assert found.source
        for case in found.cases:
            assert FUSED in case.providers
            real, here = case.sizes("cuda"), case.sizes("cpu")
            assert real == dict(case.real)
            assert all(here[size] <= real[size] for size in real)
            assert case.layers(here)
            if case.modes != ("latency",):
                assert "T" in real


class Local:
    """A ``run.Remote`` without a process."""

    def __init__(self, *arguments):
        self._runner = worker.Runner(*arguments)

    def call(self, method, *given):
        try:
            return getattr(self._runner, method)(*given)
        except Exception as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from None

    def close(self):
        pass


class Wrong(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.rnn = model

    def forward(self, x):
        return self.rnn(x)[0] * (1 + 1e-3)


class Model(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.rnn = nn.GRU(3, sizes["H"])

    def forward(self, x):
        return self.rnn(x)[0]


def planted(modes=("inference", "training"), **more):
    sides = {
        "theirs": Provider(as_built),
        FUSED: Provider(as_built),
        "wrong": Provider(lambda model, _: Wrong(model.rnn)),
        "raises": Provider(lambda model, _: 1 / 0),
        "absent": Provider(as_built, ("no_such_package",)),
    }
    case = Case(
        "a case",
        {"T": 4, "B": 100, "H": 5},
        Model,
        lambda sizes, g: (workload.normal(g, sizes["T"], sizes["B"], 3),),
        {**sides, **more},
        lambda sizes: [Layer("gru", sizes["T"], sizes["B"], 3, sizes["H"])],
        cpu={"B": 2},
        modes=modes,
    )
    return Workload("planted", "This test.", (case,))


@pytest.fixture
def local(monkeypatch):
    def use(found):
        monkeypatch.setattr(run, "Remote", Local)
        for module in (run, worker, page, picture, command):
            monkeypatch.setattr(module, "load", lambda name: found)
        return run.run("basecaller", "cpu", [1], tiny=True)

    return use


def test_nothing_wrong_gets_a_figure(local):
    found = {(r.mode, r.provider): r for r in local(planted())}
    for mode in ("inference", "training"):
        statuses = [found[mode, p].status for p in ("theirs", FUSED, "wrong", "raises", "absent")]
        assert statuses == ["timed", "timed", "wrong", "failed", "absent"]
        own = found[mode, FUSED]
        assert own.q1_ms <= own.median_ms <= own.q3_ms
        assert own.step_us == pytest.approx(own.median_ms * 1e3 / 4)
        assert own.ratio > 0
        assert own.error <= own.allowed
        assert own.p50_us is None
        assert found[mode, "theirs"].ratio == 1
        wrong = found[mode, "wrong"]
        assert wrong.error > wrong.allowed
        assert wrong.median_ms is None
        assert "allowed" in wrong.reason
        assert "ZeroDivisionError" in found[mode, "raises"].reason
        assert found[mode, "absent"].reason == "no_such_package not installed"
    assert found["training", FUSED].scale == "the project's: B 100"


def test_parameters_of_other_names_are_told(local):
    found = {r.provider: r for r in local(planted(wrong=Provider(lambda m, _: nn.Sequential(m))))}
    assert found["wrong"].status == "failed"
    assert "results: expected" in found["wrong"].reason
    assert found[FUSED].status == "timed"


def test_each_case_has_its_own_first_side(local):
    (one,) = planted().cases
    swapped = {"other": Provider(as_built), **one.providers}
    other = dataclasses.replace(one, name="other case", providers=swapped)
    found = local(Workload("two", "This test.", (one, other)))
    assert {(r.case, r.baseline) for r in found} == {("a case", "theirs"), ("other case", "other")}
    assert {r.status for r in found if r.provider == FUSED} == {"timed"}


def test_latency_has_percentiles_of_single_calls(local):
    found = {r.provider: r for r in local(planted(modes=("latency",)))}
    own = found[FUSED]
    assert 0 < own.p50_us <= own.p99_us
    assert own.p50_us == pytest.approx(own.median_ms * 1e3, rel=0.5)


def test_runs_add_up_in_a_file_and_a_page(local, tmp_path, capsys):
    local(planted())
    out = ("--quick", "--device", "cpu", "--threads", "1", "--out", str(tmp_path))
    assert command.main(["ppo", *out]) == 1  # what is wrong has a figure nowhere, and is told
    assert command.main(["streaming", *out]) == 1
    shown = capsys.readouterr()
    assert "FAILED: a case" in shown.out
    assert "workloads: 2 of 2" in shown.err
    results = page.read(tmp_path / "workloads.json")
    assert list(results) == ["ppo", "streaming"]
    text = (tmp_path / "workloads.md").read_text()
    assert text.count("\n## ") == 2
    assert "the project's: B 100" in text
    assert "- absent: absent: no_such_package not installed" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 100
    assert "workloads.png" not in text
    again = tmp_path / "again"
    page.write(again, results)
    assert page.read(again.with_suffix(".json")) == results
    picture.draw(tmp_path / "workloads.png", results)
    assert (tmp_path / "workloads.png").read_bytes().startswith(b"\x89PNG")
    page.write(tmp_path / "workloads", results)
    assert "](workloads.png)" in (tmp_path / "workloads.md").read_text()


def test_versions_of_the_peers_are_told():
    found = load("streaming").peers()
    assert set(found) <= {"onnx", "onnxruntime"}
    for name in found:
        assert found[name][0].isdigit()


def test_losses_are_told():
    base = Row("hac", "", "", True, 2, "training", FUSED, "torch.nn", "timed")
    lost = dataclasses.replace(base, ratio=0.8, ratio_q1=0.7, ratio_q3=0.9)
    won = dataclasses.replace(base, ratio=4.0, ratio_q1=3, ratio_q3=5, in_torch=False)
    more = dataclasses.replace(won, ratio=1.0)
    text = "\n".join(page._means([lost, won, more]))
    assert "2 rows of what torch.nn lacks: the geometric mean is 2.00×" in text
    assert "hac, training, 2 threads: 0.80×" in text
    assert rows.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_memory_of_a_call():
    found = memory.peak(lambda: torch.ones(16_000_000).sum(), torch.device("cpu"))
    if found is None:
        pytest.skip("this system tells no peak")
    assert 60 <= found <= 90


def test_floors_of_an_lstm_by_hand():
    layer = Layer("lstm", T=10, B=4, I=8, H=16)
    weights = 4 * 16 * (8 + 16)
    assert floors.flops(layer, False) == 2 * 10 * 4 * weights
    assert floors.flops(layer, True) == 3 * floors.flops(layer, False)
    moved = 10 * 4 * 8 + weights + 10 * 4 * 16
    assert floors.least_bytes(layer, 2, False) == 2 * moved
    kept = 10 * 4 * 16 * (4 + 2)
    again = 2 * kept + 10 * 4 * 16 + 10 * 4 * 8 + weights
    assert floors.least_bytes(layer, 2, True) == 2 * (moved + again)
    heads = layer._replace(heads=4)
    assert floors.flops(heads, False) == 2 * 10 * 4 * 4 * 16 * (8 + 16 // 4)
    assert floors.floor_ms([layer, layer], 2, False) == 2 * floors.floor_ms([layer], 2, False) > 0


@pytest.mark.parametrize("name", NAMES)
def test_every_workload_has_a_floor_on_a_gpu(name):
    for case in load(name).cases:
        layers = case.layers(case.sizes("cuda"))
        assert floors.floor_ms(layers, 2, "training" in case.modes) > 0
        predicted = floors.predicted_ms(layers, torch.bfloat16, (9, 0), 132)
        if predicted is not None:
            assert predicted > 0


@pytest.mark.slow
def test_providers_run_in_processes_of_their_own():
    found = {r.provider: r for r in run.run("separation", "cpu", [1], tiny=True)}
    assert {r.status for r in found.values()} == {"timed"}


def test_a_process_that_dies_is_told():
    remote = run.Remote("separation", "torch.nn", "cpu", 1, True)
    try:
        with pytest.raises(RuntimeError, match="AttributeError"):
            remote.call("no_such_method")
        remote._process.kill()
        with pytest.raises(RuntimeError, match="ended with status"):
            remote.call("open", "Open-Unmix")
    finally:
        remote.close()
