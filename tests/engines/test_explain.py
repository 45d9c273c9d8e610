"""``explain`` says what "auto" does, and cites the table that decides it."""

from unittest import mock

import pytest
import torch
from fused_rnn.kernels.cpu import compiler, engine

import fused_rnn
import tests.support.cells as ours
from fused_rnn import explain
from fused_rnn.engines import cpu_race
from fused_rnn.plan import cpu

needs_compiler = pytest.mark.skipif(compiler.find() is None, reason=compiler.why_not())


@needs_compiler
def test_explain_says_what_auto_runs():
    for name in ours.CORE:
        for training in (True, False):
            said = explain(name, 3, 2, 5, training=training)
            assert said.backend in ("aten", "cpp")
            assert str(said).startswith(f'"{said.backend}": ')
            layer = fused_rnn.Recurrent(name, 4, 5)
            assert explain(layer, 3, 2, training=training) == said
            x = torch.randn(3, 2, 4, requires_grad=training)
            with mock.patch.object(engine, "_forward", wraps=engine._forward) as forward:
                with torch.set_grad_enabled(training):
                    layer(x)
                assert forward.called == (said.backend == "cpp")
    assert explain(ours.MUT1, 3, 2, 5).backend == "cpp"


@needs_compiler
def test_explain_of_what_the_table_has(monkeypatch):
    monkeypatch.setenv("FUSED_RNN_MEASURE", "0")
    faster = cpu.Row("lstm", "float32", "training", 10, 1, 32, 3.0)
    slower = cpu.Row("lstm", "float32", "training", 100, 64, 512, 1.5)
    table = ({"cpu": "a machine"}, (faster, slower))
    cpu._nearest.cache_clear()
    with mock.patch.object(cpu, "table", return_value=table):
        said = explain("lstm", 10, 1, 64)
        assert said.backend == "cpp"
        assert said.reason.startswith(
            "nearest measured: lstm float32 training T=10 B=1 H=32 on a machine: torch.nn took "
            "3.00 times as long as the C++ loop, 1.0 factors of two away"
        )
        assert said.reason.endswith("; asked: T=10 B=1 H=64")
        assert "another processor or number of threads" in said.reason
        assert explain("lstm", 50, 128, 300).backend == "aten"
        nothing = explain("lstm", 10, 1, 64, dtype=torch.float64)
        assert nothing.backend == "aten"
        assert nothing.reason == ("nothing was timed, and cpu.json has nothing for float64")
        assert explain("lstm", 10, 1, 64, training=False).backend == "aten"
    cpu._nearest.cache_clear()


@needs_compiler
def test_explain_of_what_was_timed(monkeypatch):
    monkeypatch.setenv("FUSED_RNN_MEASURE", "1")
    kind = cpu_race.kind_of("lstm", torch.float32, True, 10, 1, 64)
    monkeypatch.setattr(cpu_race, "_known", {kind: cpu_race.Finding(False, "timed", kind, 2.0)})
    said = explain("lstm", 10, 1, 64)
    assert said.backend == "cpp"
    assert said.reason.startswith(
        "timed on this processor: lstm float32 training T=8 B=1 H=64 I=64, "
    )
    assert said.reason.endswith(
        "torch.nn took 2.00 times as long as the C++ loop; asked: T=10 B=1 H=64"
    )


def test_explain_of_one_step():
    assert explain(fused_rnn.GRUCell(4, 5), 1, 2).backend == "aten"
    assert explain(fused_rnn.GRUCell(4, 5).bfloat16(), 1, 2).backend == "reference"
    assert explain(fused_rnn.GRUCell(4, 5, reset_after=False), 1, 2).backend == "reference"
    once = explain(fused_rnn.GRUCell(4, 5, reset_after=False), 1, 4, training=False)
    assert str(once) == '"cpp": without gradients the C++ loop takes a single step of up to 4 rows'
    assert explain(fused_rnn.GRUCell(4, 5), 1, 5, training=False).backend == "aten"
    drawn = fused_rnn.RecurrentCell("gru", 4, 5, zoneout=0.1)
    assert explain(drawn, 1, 2, training=False).backend == "reference"
    with pytest.raises(ValueError, match="T: expected 1 for a module of one step, got 7"):
        explain(fused_rnn.GRUCell(4, 5), 7, 2)


def test_explain_needs_hidden_units():
    with pytest.raises(ValueError, match="H: expected the hidden units of cell 'lstm', got None"):
        explain("lstm", 3, 2)


def test_the_table_is_of_cells_that_torch_has():
    environment, rows = cpu.table()
    assert environment["cpu"]
    assert {row.cell for row in rows} == {"rnn_tanh", "rnn_relu", "lstm", "gru"}
    assert {row.dtype for row in rows} == {"float32", "float64"}
    assert {row.mode for row in rows} == {"inference", "training"}
    assert all(row.aten_over_cpp > 0 for row in rows)


@pytest.mark.parametrize("options", [{"num_heads": 2}, {"zoneout": 0.1}], ids=str)
def test_what_torch_nn_does_not_have_is_named(options):
    found = fused_rnn.explain(fused_rnn.LSTM(3, 4, **options), T=5, B=2)
    assert found.backend != "aten"
    assert f"torch.nn's kernels have no {next(iter(options))}" in found.reason
