"""Several threads that take one walk together, however they come, wait or stay away."""

import contextlib
import ctypes
import random
import threading
import time
from unittest import mock

import pytest
import torch
from fused_rnn.kernels.cpu import compiler, loop

import fused_rnn
import tests.support.cells as ours
from fused_rnn import cells
from tests.support.problems import make_problem
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

if compiler.find() is None:
    pytest.skip(compiler.why_not(), allow_module_level=True)

# Of one and two stages, with a concatenated source, a source for the first stage, and more states
# than are kept where nothing is differentiated.
CELLS = [cells.RNN_TANH, cells.LSTM, cells.PEEPHOLE_LSTM, cells.GRU, cells.GRU_RESET_BEFORE]
CELLS += [ours.FULL_PEEPHOLE_LSTM, ours.MULTIPLICATIVE_LSTM]
CELLS += [c for c in ours.ALL if c.stages and callable(c.stages[0].source)]
T, H = 20, 240  # enough products for several pieces, of which the last panel is not whole

_TASK = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
_PARALLEL_FOR = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, _TASK, ctypes.c_void_p
)


@contextlib.contextmanager
def _threads(count, run):
    """``run(tasks)`` in place of PyTorch's threads, whose number is ``count``.

    Yields how many tasks each region has; those of the packing have many.
    """
    regions = []

    def parallel_for(begin, end, grain, task, context):
        regions.append(end - begin)
        run([lambda i=i: task(i, i + 1, context) for i in range(begin, end)])
        return 0

    function = _PARALLEL_FOR(parallel_for)
    address = ctypes.cast(function, ctypes.c_void_p).value
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with mock.patch.object(loop, "parallel_for", return_value=address):
            yield regions
    finally:
        torch.set_num_threads(before)


def _together(tasks):
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _late(tasks):
    """Each comes some milliseconds after the one before, when much is done."""

    def wait_and_run(i, task):
        time.sleep(0.002 * i)
        task()

    _together([lambda i=i, task=task: wait_and_run(i, task) for i, task in enumerate(tasks)])


def _one_after_the_other(tasks):
    """As inside another parallel region: the first task runs alone, the others find no work."""
    for task in tasks:
        task()


def _last_first(tasks):
    _one_after_the_other(tasks[::-1])


def _in_two_threads(tasks):
    """Fewer threads than members."""
    random.Random(0).shuffle(tasks)
    half = len(tasks) // 2
    _together([lambda: _one_after_the_other(tasks[:half]), lambda: _last_first(tasks[half:])])


def _members(cell, threads):
    """How many take a walk of one row."""
    gates = sum(
        len(stage.gates) * n for stage, n in zip(cell.stages, cell.source_sizes, strict=True)
    )
    return min(threads, gates * H * H // len(cell.stages) >> 13)


WAYS = [_together, _late, _one_after_the_other, _last_first, _in_two_threads]


@pytest.mark.parametrize("members", [2, 3, 5])
@pytest.mark.parametrize("run", WAYS, ids=lambda run: run.__name__.strip("_"))
@pytest.mark.parametrize("cell", CELLS, ids=ours.name_of)
def test_same_bits_however_they_come(cell, run, members):
    problem = make_problem(cell, T, 1, H, reverse=True)
    with _threads(1, _one_after_the_other) as regions:
        alone, shown = problem.run("cpp"), problem.run_forward("cpp")
    assert not regions
    with _threads(members, run) as regions:
        got, only = problem.run("cpp"), problem.run_forward("cpp")
    assert _members(cell, members) in regions
    # dR is one product over all steps, by PyTorch, whose sums may be cut by threads.
    names = [name for name in got if not name.startswith("dweights")]
    assert all(torch.equal(got[name], alone[name]) for name in names)
    assert all(torch.equal(only[name], shown[name]) for name in only)


@pytest.mark.parametrize(("rows", "members"), [(2, 3), (2, 5), (3, 5), (4, 5)])
@pytest.mark.parametrize("run", WAYS, ids=lambda run: run.__name__.strip("_"))
@pytest.mark.parametrize("cell", [cells.LSTM, cells.GRU_RESET_BEFORE], ids=ours.name_of)
def test_few_rows_of_large_matrices_share_a_walk(cell, run, rows, members):
    """Rather than that each thread reads all matrices for a row or two."""
    problem = make_problem(cell, 5, rows, 400, reverse=True)
    with _threads(1, _one_after_the_other):
        alone, shown = problem.run("cpp"), problem.run_forward("cpp")
    with _threads(members, run) as regions:
        got, only = problem.run("cpp"), problem.run_forward("cpp")
    assert members in regions
    names = [name for name in got if not name.startswith("dweights")]
    assert all(torch.equal(got[name], alone[name]) for name in names)
    assert all(torch.equal(only[name], shown[name]) for name in only)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=ours.name_of)
@pytest.mark.parametrize("cell", CELLS, ids=ours.name_of)
def test_is_right(cell, dtype):
    problem = make_problem(cell, T, 2, H, D=2, dtype=dtype)
    exact = problem.to(torch.float64).run("reference")
    with _threads(9, _together) as regions:
        got = problem.run("cpp")
    assert 4 * _members(cell, 2) in regions  # for each row and direction
    if dtype == torch.float64:
        assert_equal_in_float64(got, exact)
    else:
        assert_as_good_as_eager(got, problem.run("reference"), exact)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("units", [128, 384], ids=["one panel at most", "panels"])
@pytest.mark.parametrize("cell", [cells.LSTM, cells.GRU_RESET_BEFORE, ours.FULL_PEEPHOLE_LSTM])
def test_heads_are_shared_by_panels(cell, units, heads):
    """A member has some heads, or a part of one, where these have whole panels."""
    each = [heads] * len(cell.matrices)
    problem = make_problem(cell, T, 1, units, D=2, dtype=torch.float64, heads=each, reverse=True)
    exact = problem.run("reference")
    for count in (1, 8):
        with _threads(count, _together):
            assert_equal_in_float64(problem.run("cpp"), exact)


def test_heads_without_whole_panels_are_one_piece():
    """Their blocks are packed from a head's first column on."""
    problem = make_problem(cells.LSTM, T, 1, 360, dtype=torch.float64, heads=[3])
    with _threads(3, _together):
        assert_equal_in_float64(problem.run("cpp"), problem.run("reference"))


@pytest.mark.parametrize("run", WAYS, ids=lambda run: run.__name__.strip("_"))
@pytest.mark.parametrize("cell", [ours.GATED_AVERAGE, ours.FADING_UNITS], ids=ours.name_of)
def test_units_that_no_product_connects(cell, run):
    """One phase: each thread walks with its own units through all steps."""
    problem = make_problem(cell, 30, 1, 600, D=2, dtype=torch.float64)
    with _threads(1, _one_after_the_other):
        alone, shown = problem.run("cpp"), problem.run_forward("cpp")
    with _threads(6, run) as regions:
        got, only = problem.run("cpp"), problem.run_forward("cpp")
    assert regions == [6, 6, 6]  # for each direction three
    assert all(torch.equal(got[name], alone[name]) for name in got)
    assert all(torch.equal(only[name], shown[name]) for name in only)
    assert_equal_in_float64(got, problem.run("reference"))


def test_threads_of_pytorch():
    problem = make_problem(cells.LSTM, T, 1, H)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3, 64):
        torch.set_num_threads(threads)
        results += [problem.run("cpp")["sequence.h"] for _ in range(5)]
    torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_state_that_is_overwritten_is_not_shared():
    """Another's may be a step ahead: where only h is kept at each step, one thread walks."""
    cell = ours.FULL_PEEPHOLE_LSTM  # whose products read c
    weights = [torch.randn(3 * H, 2 * H), torch.randn(H, 2 * H)]
    given = (cell, torch.randn(T, 1, 4 * H), weights, [torch.randn(1, H) for _ in "hc"])
    with _threads(4, _together) as regions:
        kept, _ = fused_rnn.scan(*given, backend="cpp", return_states=True)
        assert 4 in regions
        regions.clear()
        output, _ = fused_rnn.scan(*given, backend="cpp")
        assert 4 not in regions
    assert torch.equal(output, kept[0])


def test_little_work_is_not_shared():
    problem = make_problem(cells.LSTM, 50, 1, 32)
    with _threads(4, _together) as regions:
        problem.run("cpp")
    assert not regions
