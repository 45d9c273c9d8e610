"""The example that trains every cell: its layers, its data, its results and its page."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

import fused_rnn
from fused_rnn import cells

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def variants():
    pytest.importorskip("matplotlib")
    pytest.importorskip("tqdm")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("variants")
    for name in ("char_lm", "char_lm_peers", "variants", "variants_report"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", cells.names())
def test_every_cell_has_a_layer(variants, name):
    """Each parameter of which has a gradient."""
    layer = variants.CellLayer(name, 3, 8)
    with fused_rnn.use_backend("sequence"):  # which compiles nothing
        output, _ = layer(torch.randn(5, 2, 3))
    assert output.shape == (5, 2, 8)
    output.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_inputs_before_are_those_of_the_step_before(variants):
    layer, x = variants.CellLayer("qrnn", 3, 8), torch.randn(5, 2, 3)
    before = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    assert torch.equal(layer(x)[0], layer.layer(torch.cat([x, before], -1))[0])


def test_models_are_of_equal_size(variants):
    for title, task in variants.TASKS.items():
        task = task(0)
        for name in ("lstm", "ind_rnn", "mut1", "phased_lstm"):
            units = variants.find_units(task, name)
            counts = [
                variants.count(task.model(variants.CellLayer(name, task.features, units + more)))
                for more in (-1, 0, 1)
            ]
            off = [abs(count - task.parameters) for count in counts]
            assert off[1] == min(off), (title, name)


def test_forget_bias(variants):
    layer = variants.CellLayer("lstm_forget_bias_1", 3, 4).layer
    assert layer.bias_ih_l0[4:8].tolist() == [1.0] * 4
    assert layer.bias_ih_l0[:4].abs().max() <= 0.5


def test_problems_say_what_is_wanted(variants):
    x, sums = variants.Adding(0)._draw(7, torch.Generator())
    marked = x[..., 1].bool()
    assert (marked.sum(0) == 2).all()
    torch.testing.assert_close(torch.where(marked, x[..., 0], 0).sum(0), sums)
    task = variants.Copying(0)
    x, wanted = task._draw(7, torch.Generator())
    assert torch.equal(x[: task.symbols], wanted)
    assert (x[-task.symbols - 1] == task.kinds + 1).all()
    assert (x[-task.symbols :] == task.kinds).all()


def test_a_model_that_knows_nothing_scores_what_is_said(variants):
    adding = variants.Adding(0)
    assert adding.score(lambda x: torch.ones(x.shape[1]), 0) == pytest.approx(1 / 6, rel=0.2)


def test_writes_a_page_and_keeps_the_runs(variants, tmp_path, capsys):
    options = ["--steps=2", "--workers=1", "--seeds=1", "--tasks", "adding", "--cells"]
    options += ["lstm", "phased_lstm", "--out", str(tmp_path)]
    variants.main(options)
    results = variants.load(tmp_path)
    assert len(results["runs"]) == 2 * len(variants.RATES)
    assert "| `phased_lstm` |" in (tmp_path / "README.md").read_text("utf-8")
    assert (tmp_path / "variants.png").stat().st_size > 0
    assert "0/2" in capsys.readouterr().err

    results["problems"]["adding"]["T"] = 3
    variants.save(tmp_path, results)
    with pytest.raises(SystemExit):
        variants.main(options)
    assert "has runs of other problems" in capsys.readouterr().err


def test_known_runs_are_not_made_again(variants):
    job = ("lstm", "copying")
    first = variants.train_all({}, *job, 1, 2, variants.RATES)
    assert len(first) == len(variants.RATES)
    more = variants.train_all(first, *job, 3, 2, variants.RATES)
    assert len(more) == 2
    assert not more.keys() & first.keys()
    assert variants.train_all(first | more, *job, 3, 2, variants.RATES) == {}
    again = variants.train_all({}, *job, 1, 2, variants.RATES)
    assert [run["score"] for run in again.values()] == [run["score"] for run in first.values()]


@pytest.mark.parametrize(
    ("ours", "theirs", "relation"),
    [
        ([1, 2, 3], [4, 5, 6], "better"),
        ([4, 5, 6], [1, 2, 3], "worse"),
        ([1, 2, 4], [3, 5, 6], "same"),
        ([1, 2], [4, 5, 6], "too few seeds"),
    ],
)
def test_relations(variants, ours, theirs, relation):
    report = importlib.import_module("variants_report")
    entries = [report.Entry(0.01, 1, 1, scores) for scores in (ours, theirs)]
    assert report.compare(*entries) == relation


def test_a_run_that_diverged_is_the_worst(variants):
    report = importlib.import_module("variants_report")
    lost = report.Entry(0.01, 1, 1, [1.0, 1.0], diverged=1)
    assert report.compare(lost, report.Entry(0.01, 1, 1, [2.0, 2.0, 2.0])) == "same"
    assert variants.choose_rate({0.01: {"choosing": None}, 0.03: {"choosing": 3.0}}) == 0.03
