"""What was timed on this machine: how it is remembered, and that plans and "auto" follow it."""

import dataclasses
import json
import threading
import warnings
from unittest import mock

import pytest
import torch

import fused_rnn
from fused_rnn import cells, machine, numerics, plan
from fused_rnn.engines import aten as torch_kernels
from fused_rnn.plan import chips, plans, tuned
from fused_rnn.plan.tuned import Timing
from fused_rnn.self_check import admission, trial
from tests.support.tolerances import assert_as_good_as_eager

CPU = torch.device("cpu")
BF16 = torch.bfloat16
FACTS = {"gpu": "GPU", "driver": "1.2", "torch": "2", "triton": "3", "fused_rnn": "0"}
H = 256


@pytest.fixture(autouse=True)
def facts(monkeypatch, tmp_path):
    """A device that is an H100 by its plans, with an empty cache and nothing in memory."""
    facts = dict(FACTS)
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FUSED_RNN_TUNED", raising=False)
    monkeypatch.setenv("FUSED_RNN_SELF_CHECK", "0")
    monkeypatch.setattr(machine, "device_facts", lambda device: facts)
    h100 = chips.chip((9, 0))
    # Kernels with explicit layouts are never interpreted.
    rows = tuple(row for row in h100.rows if not row.blocks.explicit)
    interpreted = dataclasses.replace(h100, rows=rows)
    monkeypatch.setattr(plans, "_chip", lambda device: interpreted)
    forget()
    yield facts
    forget()


def forget():
    """As another process begins."""
    for known in (tuned._memory, tuned._warned, admission._memory, admission._by_digest):
        known.clear()


def files(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.*"))


def launches(cell=cells.LSTM, H=H, dtype=BF16):
    """All that the table has, which are more than one."""
    return [x for fit, _ in plan.launches(cell, 8, H, dtype, CPU).values() for x in fit]


def slowest(cell=cells.LSTM, H=H, dtype=BF16, *, aten=None, steps=8, batch=16):
    """A timing in which what the model likes least is the fastest."""
    ranked = launches(cell, H, dtype)
    best = plan.plan(cell, steps, batch, H, dtype, (9, 0)).forward
    ranked.sort(key=lambda launch: launch == best)
    assert len(ranked) > 1
    times = [(launch, 2.0 + i) for i, launch in enumerate(ranked)]
    return Timing(steps, batch, aten, tuple(times), ("cudnn: not asked",))


def planned(cell=cells.LSTM, T=8, B=16, H=H, dtype=BF16, **options):
    return plan.plan(cell, T, B, H, dtype, CPU, **options)


def test_a_plan_is_what_was_fastest():
    by_model = planned()
    assert "by the model of cost.py" in by_model.explain()
    timing = slowest(aten=7.25)
    tuned.record(timing, cells.LSTM, H, BF16, CPU)
    for _ in range(2):
        found = planned()
        fastest = timing.launches[0][0]
        assert fastest != by_model.forward
        assert (found.forward, found.backward, found.time) == (fastest, fastest.backward(), 2.0)
        text = found.explain()
        assert "by the model" not in text
        lines = text.split("\n  ")[1:]
        assert lines[0].startswith(f"{fastest.strategy}; a program: {fastest.block_b} rows")
        assert lines[0].endswith("2.0 us per step of T 8 and B 16, measured on this machine")
        assert "torch.nn: 7.2 us per step, measured on this machine" in lines
        assert lines[-1] == "cudnn: not asked"
        forget()  # the disk is enough


def test_a_capability_is_planned_for_by_the_tables_alone():
    before = plan.plan(cells.LSTM, 8, 16, H, BF16, (9, 0))
    tuned.record(slowest(), cells.LSTM, H, BF16, CPU)
    assert planned().forward != before.forward
    with mock.patch.object(tuned, "find", side_effect=AssertionError):
        assert plan.plan(cells.LSTM, 8, 16, H, BF16, (9, 0)) == before


def test_inference_is_another_layer_than_training():
    timing = slowest()
    tuned.record(timing, cells.LSTM, H, BF16, CPU, training=False)
    assert planned(training=False).forward == timing.launches[0][0]
    assert planned().forward != timing.launches[0][0]
    assert planned() == plan.plan(cells.LSTM, 8, 16, H, BF16, (9, 0))


def test_what_is_forced_is_not_looked_up():
    tuned.record(slowest(), cells.LSTM, H, BF16, CPU)
    other = plan.Launch("step", 16, 32, 64, 4)
    with mock.patch.object(tuned, "find", side_effect=AssertionError):
        for strategy in ("grid", "step"):
            with plan.use_strategy(strategy):
                assert planned().forward.strategy == strategy
        with plan.use_launch(other):
            assert (planned().forward, planned().backward) == (other, other.backward())
            with plan.use_strategy("grid"):
                assert planned().forward.strategy == "grid"
            assert planned().forward == other


def test_batches_up_to_the_next_power_of_two_and_lengths_beyond_one():
    tuned.record(slowest(batch=48), cells.LSTM, H, BF16, CPU)

    def known(cell=cells.LSTM, T=8, B=48, H=H, dtype=BF16, D=1):
        return tuned.find(cell, T, B, H, dtype, CPU, D) is not None

    assert all(known(B=B) for B in (33, 48, 64))
    assert not any(known(B=B) for B in (1, 32, 65, 128))
    assert all(known(T=T) for T in (2, 7, 1000))
    for other in ({"T": 1}, {"H": H + 1}, {"dtype": torch.float16}, {"D": 2}, {"cell": cells.GRU}):
        assert not known(**other)
    assert not known(B=0)
    tuned.record(slowest(batch=1), cells.LSTM, H, BF16, CPU)
    assert known(B=1)
    assert not known(B=2)
    tuned.record(slowest(steps=1, batch=48), cells.LSTM, H, BF16, CPU)
    assert known(T=1)


def test_tf32_is_another_dtype(monkeypatch):
    with mock.patch.object(numerics, "uses_tf32", return_value=True):
        tuned.record(
            Timing(8, 16, 1.0, ()),
            cells.LSTM,
            H,
            torch.float32,
            CPU,
        )
        assert tuned.find(cells.LSTM, 8, 16, H, torch.float32, CPU)
    assert tuned.find(cells.LSTM, 8, 16, H, torch.float32, CPU) is None


@pytest.mark.parametrize("name", [*FACTS, "kernels", "cudnn"], ids="another {}".format)
def test_of_another_machine_or_version_nothing_is_known(name, facts, monkeypatch):
    tuned.record(slowest(), cells.LSTM, H, BF16, CPU)
    forget()
    if name == "kernels":
        monkeypatch.setattr(machine, "kernels_digest", lambda: "another")
    elif name == "cudnn":
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 1)
    else:
        facts[name] = "another"
    assert tuned.find(cells.LSTM, 8, 16, H, BF16, CPU) is None
    assert "by the model" in planned().explain()


def test_switched_off(monkeypatch):
    tuned.record(slowest(), cells.LSTM, H, BF16, CPU)
    monkeypatch.setenv("FUSED_RNN_TUNED", "0")
    assert "by the model" in planned().explain()
    monkeypatch.setenv("FUSED_RNN_TUNED", "1")
    assert "measured" in planned().explain()


def test_nothing_is_remembered_of_a_cpu_or_of_another_cell_by_a_known_name(monkeypatch):
    other = fused_rnn.Cell("lstm", lambda pre, state: pre[0] + state[0], gates=["n"])
    tuned.record(slowest(), cells.LSTM, H, BF16, CPU)
    assert tuned.find(other, 8, 16, H, BF16, CPU) is None
    with pytest.raises(ValueError, match="nothing is remembered of cell 'lstm' on cpu"):
        tuned.record(Timing(8, 16, 1.0, ()), other, H, BF16, CPU)
    monkeypatch.undo()
    forget()
    assert tuned.find(cells.LSTM, 8, 16, H, BF16, CPU) is None
    with pytest.raises(ValueError, match="on cpu"):
        tuned.record(Timing(8, 16, 1.0, ()), cells.LSTM, H, BF16, CPU)


def change(field, value):
    def changed(text):
        known = json.loads(text)
        known[field] = value
        return json.dumps(known)

    return changed


GRID = {"strategy": "grid", "block_b": 16, "block_h": 16, "block_k": 64, "num_warps": 2}
CORRUPT = {
    "empty": lambda text: "",
    "cut off": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[]",
    "another key": change("key", {"gpu": "GPU"}),
    "no launches": change("launches", None),
    "no time": change("launches", [GRID]),
    "negative time": change("launches", [GRID | {"time": -1.0}]),
    "not a number": change("aten", float("nan")),
    "a string of a time": change("aten", "1.0"),
    "unknown strategy": change("launches", [GRID | {"strategy": "fast", "time": 1.0}]),
    "no warps": change("launches", [GRID | {"num_warps": 0, "time": 1.0}]),
    "more of a launch": change("launches", [GRID | {"clusters": 2, "time": 1.0}]),
    "no steps": change("steps", 0),
}


@pytest.mark.parametrize("corruption", CORRUPT)
def test_a_corrupt_file_is_warned_of_once_and_ignored(corruption, tmp_path):
    tuned.record(slowest(), cells.LSTM, H, BF16, CPU)
    (file,) = files(tmp_path)
    good = file.read_text()
    file.write_text(CORRUPT[corruption](good))
    forget()
    with pytest.warns(RuntimeWarning, match="is not used.*again with `python -m bench.tune`") as w:
        assert "by the model" in planned().explain()
    (message,) = w
    assert str(file) in str(message.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "by the model" in planned().explain()
        tuned._memory.clear()
        assert "by the model" in planned().explain()
        tuned.record(slowest(), cells.LSTM, H, BF16, CPU)
    assert file.read_text() == good
    assert "measured" in planned().explain()


def test_launches_that_the_tables_do_not_have_are_not_used():
    foreign = plan.Launch("grid", 16, 16, 64, 32)
    known = slowest().launches[0][0]
    tuned.record(Timing(8, 16, None, ((foreign, 0.1),)), cells.LSTM, H, BF16, CPU)
    assert "by the model" in planned().explain()
    timing = Timing(8, 16, None, ((foreign, 0.1), (known, 5.0)))
    tuned.record(timing, cells.LSTM, H, BF16, CPU)
    assert planned().forward == known


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="file/cache cannot be written"):
        tuned.record(slowest(), cells.LSTM, H, BF16, CPU)
    assert "by the model" in planned().explain()


def test_two_writers_and_a_reader(tmp_path):
    """A reader finds one of the two as a whole, at any time; nothing else is left."""
    key, contents = {"gpu": "GPU"}, [{"of": who, "much": [who] * 5000} for who in range(2)]
    machine.remember(key, contents[0])
    start, found = threading.Barrier(3), []

    def write(content):
        start.wait()
        for _ in range(40):
            assert machine.remember(key, content)

    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    for writer in writers:
        writer.start()
    start.wait()
    while any(writer.is_alive() for writer in writers):
        found.append(machine.recall(key))
    for writer in writers:
        writer.join()
    assert found
    assert all(known in [{"key": key} | content for content in contents] for known in found)
    assert files(tmp_path) == [machine.file_of(key)]


@pytest.fixture
def aten():
    """What runs, by name: torch.nn's kernels or ours, in the interpreter."""
    ran = []

    def spy(name, right):
        def run(*args):
            ran.append(name)
            return right(*args)

        return run

    from fused_rnn.kernels.gpu import launch

    with (
        mock.patch.dict(
            torch_kernels.TORCH,
            {n: of._replace(run=spy("aten", of.run)) for n, of in torch_kernels.TORCH.items()},
        ),
        mock.patch.object(launch, "start", spy("fused", launch.start)),
    ):
        yield ran


def runs(ran, module, *args, **options):
    ran.clear()
    output = module(torch.randn(3, 2, 4), *args, **options)[0]
    if isinstance(output, torch.Tensor) and output.requires_grad:
        output.sum().backward()
    (who,) = set(ran)
    return who


def tune(cell, fused, aten, H=5, T=3, **options):
    """Times of the first launch and of torch.nn, in float32."""
    launch = plan.launches(cell, T, H, torch.float32, CPU)["resident"][0][0]
    timing = Timing(T, 2, aten, ((launch, fused),))
    tuned.record(timing, cell, H, torch.float32, CPU, **options)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("name", ("lstm", "gru", "rnn_tanh", "rnn_relu"))
def test_auto_runs_what_was_faster(name, aten):
    cell, module = cells.get(name), fused_rnn.Recurrent(name, 4, 5)
    assert runs(aten, module) == "fused"
    tune(cell, fused=2.0, aten=1.0)
    assert runs(aten, module) == "aten"
    tune(cell, fused=1.0, aten=2.0)
    assert runs(aten, module) == "fused"
    tune(cell, fused=1.0, aten=None)
    assert runs(aten, module) == "fused"
    tuned.record(Timing(3, 2, 9.0, ()), cell, 5, torch.float32, CPU)
    assert runs(aten, module) == "aten"  # no launch was right
    module.backend = "triton"
    assert runs(aten, module) == "fused"


@pytest.mark.usefixtures("interpreter")
def test_auto_runs_aten_only_for_what_was_measured(aten, monkeypatch):
    module = fused_rnn.LSTM(4, 5)
    tune(cells.LSTM, fused=2.0, aten=1.0)
    assert runs(aten, module) == "aten"
    assert runs(aten, module, return_states=True) == "fused"
    assert runs(aten, module, lengths=torch.tensor([3, 1])) == "fused"
    assert runs(aten, fused_rnn.LSTM(4, 5, recompute=True)) == "fused"
    assert runs(aten, fused_rnn.LSTM(4, 6)) == "fused"
    assert runs(aten, fused_rnn.LSTM(4, 5, proj_size=3)) == "fused"
    assert runs(aten, fused_rnn.LSTM(4, 5, bidirectional=True)) == "fused"
    assert runs(aten, fused_rnn.LSTM(4, 5, num_layers=2)) == "aten"
    # Packed values are (rows, I), which is not (T, B).
    tuned.record(Timing(3, 4, 1.0, ()), cells.LSTM, 5, torch.float32, CPU)
    aten.clear()
    module(torch.nn.utils.rnn.pack_padded_sequence(torch.randn(3, 2, 4), [3, 2]))
    assert set(aten) == {"fused"}
    with torch.no_grad():
        assert runs(aten, module) == "fused"
    module.eval()  # cuDNN has no backward there
    assert runs(aten, module) == "fused"
    tune(cells.LSTM, fused=2.0, aten=1.0, training=False)
    assert runs(aten, module) == "fused"
    with torch.no_grad():
        assert runs(aten, module) == "aten"
    assert runs(aten, module.requires_grad_(False)) == "aten"
    assert runs(aten, module.requires_grad_(True).train()) == "aten"
    monkeypatch.setenv("FUSED_RNN_TUNED", "0")
    assert runs(aten, module) == "fused"


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("faster", ("aten", "fused"))
def test_results_are_right_either_way(faster, aten):
    times = {"fused": 1.0, "aten": 1.0} | {faster: 0.5}
    tune(cells.LSTM, **times)
    module = fused_rnn.LSTM(4, 5)
    x = torch.randn(3, 2, 4, requires_grad=True)

    def run(backend, dtype=torch.float32):
        module.to(dtype).backend = backend
        output, (h, c) = module(x.to(dtype))
        leaves = [x, *module.parameters()]
        gradients = torch.autograd.grad((output**2).sum() + (h * c).sum(), leaves)
        return dict(enumerate([output, h, c, *gradients]))

    got = run("auto")
    assert set(aten) == {faster}
    assert_as_good_as_eager(got, run("reference"), run("reference", torch.float64))


@pytest.mark.usefixtures("interpreter")
def test_what_was_fastest_without_a_backward_runs_and_is_checked_there(monkeypatch):
    from fused_rnn.kernels.gpu import launch

    monkeypatch.delenv("FUSED_RNN_SELF_CHECK")
    fit = plan.launches(cells.GRU, 3, 5, torch.float32, CPU)
    for strategy, training in (("resident", True), ("step", False)):
        timing = Timing(3, 2, None, ((fit[strategy][0][0], 1.0),))
        tuned.record(timing, cells.GRU, 5, torch.float32, CPU, training=training)
    module, x = fused_rnn.GRU(4, 5), torch.randn(3, 2, 4)
    right = launch.start
    for strategy, grad in (("step", False), ("resident", True)):
        with (
            torch.set_grad_enabled(grad),
            mock.patch.object(trial, "attempt", return_value=trial.Outcome(True)) as attempt,
            mock.patch.object(launch, "start", side_effect=right) as start,
        ):
            module(x)
        assert attempt.call_args.args[1] == strategy
        assert {call.args[3]["ALONE"] for call in start.call_args_list} == {grad}
        assert start.call_count == (1 if grad else 3)
