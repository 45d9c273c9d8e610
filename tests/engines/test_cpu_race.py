"""What "auto" runs on the CPU: from planted times and tables, never by a clock."""

import threading

import pytest
import torch
from fused_rnn.kernels.cpu import compiler
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
from fused_rnn import machine
from fused_rnn.engines import choose, contract, cpu_race
from fused_rnn.nn import timed
from fused_rnn.plan import cpu

KIND = ("lstm", torch.float32, False, 50, 8, 64)


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Nothing known, in this process or on disk, and a loop that could serve."""
    monkeypatch.setenv("FUSED_RNN_CACHE", str(tmp_path))
    monkeypatch.setenv("FUSED_RNN_MEASURE", "1")
    monkeypatch.setattr(cpu_race, "_known", {})
    monkeypatch.setattr(contract, "why_not", lambda *_: None)


def _planted(monkeypatch, seconds):
    """``cpu_race.timer`` says this, and what it was asked for is kept."""
    asked = []
    monkeypatch.setattr(cpu_race, "timer", lambda kind: asked.append(kind) or seconds)
    return asked


def _table(monkeypatch, ratio, **environment):
    row = cpu.Row("lstm", "float32", "inference", 50, 8, 64, ratio)
    monkeypatch.setattr(cpu, "table", lambda: (environment, (row,)))
    cpu._nearest.cache_clear()


def _choose(may_time=True, **more):
    return cpu_race.settle(cpu_race.kind_of(*KIND, **more), *KIND[3:], may_time)


def _here():
    return {"processor": machine.processor(), "threads": torch.get_num_threads()}


@pytest.mark.parametrize(
    ("seconds", "aten_runs"), [((3, 1), False), ((1, 3), True), ((1.02, 1), True)]
)
def test_what_was_timed_decides_and_is_remembered(monkeypatch, seconds, aten_runs):
    """By a margin, so that a tie is torch.nn's; in this process, and in the next."""
    _table(monkeypatch, 1 / 9 if seconds[0] > seconds[1] else 9.0)
    asked = _planted(monkeypatch, seconds)
    assert (_choose().aten, _choose().source) == (aten_runs, "timed")
    assert len(asked) == 1
    monkeypatch.setattr(cpu_race, "_known", {})
    assert _choose().aten == aten_runs
    assert len(asked) == 1


def test_what_is_remembered_is_of_this_processor_and_these_threads(monkeypatch):
    asked = _planted(monkeypatch, (3, 1))
    _choose()
    for name, other in (("processor", lambda: "another"), ("loop_digest", lambda: "another")):
        monkeypatch.setattr(cpu_race, "_known", {})
        with monkeypatch.context() as patched:
            patched.setattr(machine, name, other)
            _choose()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        _choose()
    finally:
        torch.set_num_threads(threads)
    assert len(asked) == 4


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seconds": [1]}', '{"seconds": [0, 1]}'])
def test_a_damaged_memory_is_none(monkeypatch, content):
    asked = _planted(monkeypatch, (3, 1))
    file = machine.file_of(cpu_race._key(cpu_race.kind_of(*KIND)), "cpu")
    file.parent.mkdir(parents=True)
    file.write_text(content)
    assert not _choose().aten
    assert len(asked) == 1


def test_without_timing_the_table_of_another_processor_needs_a_large_margin(monkeypatch):
    asked = _planted(monkeypatch, (3, 1))
    for off in (True, False):
        monkeypatch.setenv("FUSED_RNN_MEASURE", "0" if off else "1")
        for ratio, aten_runs in ((1.4, True), (1.99, True), (2.0, False), (0.5, True)):
            _table(monkeypatch, ratio, processor="another", threads=torch.get_num_threads())
            found = _choose(may_time=off)
            assert (found.aten, found.source, found.here) == (aten_runs, "table", False)
    assert not asked
    cpu._nearest.cache_clear()


def test_the_table_of_this_processor_is_as_good_as_timed_where_it_is_near(monkeypatch):
    asked = _planted(monkeypatch, (1, 3))
    for ratio, aten_runs in ((1.1, False), (1.04, True)):
        _table(monkeypatch, ratio, **_here())
        found = _choose()
        assert (found.aten, found.source, found.here) == (aten_runs, "table", True)
    assert not asked
    for more in ({"directions": 2}, {"P": 3}, {"packed": True}):  # which it does not have
        assert _choose(**more).source == "timed"
    far = cpu_race.kind_of("lstm", torch.float32, False, 1000, 8, 8)
    assert cpu_race.settle(far, 1000, 8, 8, may_time=True).source == "timed"
    assert len(asked) == 4
    cpu._nearest.cache_clear()


def test_without_a_compiler_nothing_is_timed(monkeypatch):
    asked = _planted(monkeypatch, (3, 1))
    monkeypatch.setattr(contract, "why_not", lambda *_: "no compiler")
    found = _choose()
    assert (found.aten, found.source, found.reason) == (True, "alone", "no compiler")
    assert not asked


def test_kinds_are_rounded_to_powers_of_two():
    of = cpu_race.kind_of
    assert of(*KIND) == of("lstm", torch.float32, False, 60, 9, 64, I=70)
    assert of(*KIND) != of("lstm", torch.float32, False, 50, 8, 65)
    assert of("lstm", torch.float32, False, 10**6, 1, 3).T == 1024
    assert of("lstm", torch.float32, False, 100, 128, 1024).T == 8
    assert of("lstm", torch.float32, False, 3, 128, 1024).T == 4
    assert of("lstm", torch.float32, False, 1, 1, 1, I=0) == of(
        "lstm", torch.float32, False, 1, 0, 1, I=1
    )


def test_threads_that_ask_at_once_wait_for_one_of_them(monkeypatch):
    asked, begun, answers = [], threading.Event(), []

    def seconds(kind):
        asked.append(kind)
        begun.wait(5)
        return (3, 1)

    monkeypatch.setattr(cpu_race, "timer", seconds)
    threads = [threading.Thread(target=lambda: answers.append(_choose())) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.set()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert len(set(answers)) == 1


def _asked(monkeypatch, call):
    """The kinds that a call has timed, as torch.nn's kernels are to run it."""
    asked = _planted(monkeypatch, (1, 9))
    call()
    return asked


def test_what_a_layer_is_asked_as(monkeypatch):
    x = torch.randn(9, 4, 16)
    layer = fused_rnn.LSTM(16, 8)
    (kind,) = _asked(monkeypatch, lambda: layer(x))
    assert kind[:9] == ("lstm", "float32", "training", 8, 4, 16, 8, 1, 0)
    (kind,) = _asked(monkeypatch, lambda: layer.requires_grad_(False)(x))
    assert kind.mode == "inference"
    layer = fused_rnn.LSTM(16, 8, 2, bidirectional=True, proj_size=3)
    (kind,) = _asked(monkeypatch, lambda: layer(x))
    assert (kind.I, kind.directions, kind.P) == (16, 2, 3)  # I of the layers after the first
    packed = pack_padded_sequence(x, [9, 5, 3, 2])
    (kind,) = _asked(monkeypatch, lambda: fused_rnn.GRU(16, 8)(packed))
    assert (kind.T, kind.B, kind.packed) == (8, 4, True)


def test_torch_nn_projects_in_its_lstm_only(monkeypatch):
    layer = fused_rnn.RNN(16, 8, proj_size=3)
    x = torch.randn(9, 4, 16)
    assert not _asked(monkeypatch, lambda: layer(x))
    assert fused_rnn.explain(layer, T=9, B=4).backend != "aten"
    with (
        fused_rnn.use_backend("aten"),
        pytest.raises(RuntimeError, match="a projection of cell 'rnn_tanh': .*lstm only"),
    ):
        layer(x)


class _Mode(torch.utils._python_dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_nothing_is_timed_in_modes_graphs_and_transforms(monkeypatch):
    x, layer = torch.randn(9, 4, 16), fused_rnn.GRU(16, 8)

    def in_mode():
        with _Mode():
            layer(x)

    def compiled():
        torch.compiler.reset()
        torch.compile(layer, fullgraph=True, backend="eager")(x)

    for call in (
        in_mode,
        compiled,
        lambda: torch.func.vmap(layer)(x[None]),
        lambda: torch.jit.trace(layer, x, check_trace=False),
    ):
        assert not _asked(monkeypatch, call)


needs_compiler = pytest.mark.skipif(compiler.find() is None, reason=compiler.why_not())
REAL = [
    {},
    {"directions": 2},
    {"P": 3},
    {"packed": True},
    {"packed": True, "directions": 2},
]


@needs_compiler
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("more", REAL, ids=str)
def test_timing_changes_nothing_of_the_callers(more, training):
    """No generator, no hook of saved tensors or modules, no mode of autograd."""
    kind = cpu_race.kind_of("lstm", torch.float32, training, 3, 2, 4, **more)
    called, before = [], torch.get_rng_state()
    saved = torch.autograd.graph.saved_tensors_hooks(called.append, called.append)
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: called.append(1))
    try:
        with saved, torch.autocast("cpu", torch.bfloat16), torch.inference_mode(not training):
            seconds = timed.seconds(kind)
    finally:
        handle.remove()
    assert all(value > 0 for value in seconds)
    assert torch.equal(torch.get_rng_state(), before)
    assert not called


@needs_compiler
@pytest.mark.parametrize("aten_runs", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_checkpointing_at_the_first_use(aten_runs, training, monkeypatch):
    """Which counts what is saved, in the forward and when it runs again."""
    monkeypatch.setattr(cpu_race, "MARGIN", 1e9 if aten_runs else 0)
    layer, x = fused_rnn.GRU(3, 4), torch.randn(5, 2, 3, requires_grad=training)
    output = torch.utils.checkpoint.checkpoint(lambda x: layer(x)[0], x, use_reentrant=False)
    output.sum().backward()
    assert [known.aten for known in cpu_race._known.values()] == [aten_runs]


def test_a_graph_asks_for_no_size(monkeypatch):
    asked = _planted(monkeypatch, (3, 1))
    assert choose._in_graphs("lstm", torch.bfloat16, False, 5)
    assert not asked
    kind = cpu_race.kind_of("lstm", torch.float32, False, 50, 8, 5)
    cpu_race._known[kind] = cpu_race.Finding(False, "timed", kind, 3.0)
    assert not choose._in_graphs("lstm", torch.float32, False, 5)
