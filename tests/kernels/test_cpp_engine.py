"""The C++ engine beyond the matrix of ``test_cpu_paths``: sizes, operations, threads, errors."""

import concurrent.futures
import ctypes
from pathlib import Path
from unittest import mock

import pytest
import torch
from fused_rnn.kernels.cpu import compiler, emit, engine, loop

import fused_rnn
import tests.support.cells as ours
from fused_rnn import Cell, cells, context
from fused_rnn.cells import derived
from fused_rnn.engines import choose, sequence
from tests.support.problems import make_problem
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

if compiler.find() is None:
    pytest.skip(compiler.why_not(), allow_module_level=True)

# Around the widths of vectors, panels and blocks of rows; more rows and units than one of each.
SIZES = ((2, 1, 64), (3, 2, 65), (2, 5, 63), (2, 7, 129), (2, 13, 96), (1, 33, 31), (3, 1, 300))


def _assert_right(problem):
    exact = problem.to(torch.float64).run("reference")
    if problem.inputs["x"].dtype == torch.float64:
        assert_equal_in_float64(problem.run("cpp"), exact)
    else:
        assert_as_good_as_eager(problem.run("cpp"), problem.run("reference"), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=ours.name_of)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    "cell", [cells.LSTM, cells.GRU_RESET_BEFORE, ours.FULL_PEEPHOLE_LSTM], ids=ours.name_of
)
def test_sizes_around_blocks(cell, size, dtype):
    _assert_right(make_problem(cell, *size, D=2, dtype=dtype))


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("cell", [cells.GRU, cells.GRU_RESET_BEFORE, ours.CLOCKWORK_RNN])
def test_cells_of_segments(cell, masked, zeros):
    carrying = derived.derive(cell, masked, 1 if zeros else 2, 1)
    _assert_right(make_problem(carrying, 5, 3, 17, D=2, dtype=torch.float64))


def _odd(pre, state, params, streams, t):
    """The operations whose derivatives the printer knows and the other cells do without."""
    a, b = pre
    (h,) = state
    (p,) = params
    (s,) = streams
    chosen = torch.logical_or(torch.logical_and(a > b, torch.logical_not(a <= 0)), h != h)
    h = torch.where(chosen, a, h) + a.abs().sqrt() + (1 + b * b).log() + torch.log1p(a * a)
    h = h + a.sin() * b.cos() + a.erf() + (1 + a * a).rsqrt() + (1 + b * b).reciprocal()
    h = h + a.sign() * b.floor() + (s + 2) ** 1.5 + (a / (2 + b * b)) ** 3
    h = h - torch.remainder(a, 1.5)
    return torch.where(0 * p + t == 0, torch.exp(-h * h), -(3 - h) * 0.25 + s.clamp(min=0.1) - p)


def test_every_operation():
    odd = Cell("odd", _odd, gates=("a", "b"), params=("p",), streams=("s",))
    _assert_right(make_problem(odd, 3, 2, 19, dtype=torch.float64))
    _assert_right(make_problem(odd, 3, 2, 19, dtype=torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=ours.name_of)
def test_activations_are_right_to_rounding(dtype):
    """To four units in the last place of the value, from -1e4 to 1e4, and for inf and NaN."""

    def activations(pre, state):
        a, b, c = pre
        return a.sigmoid(), b.tanh(), c.exp(), a.log(), b.log1p(), c.expm1()

    states = ("s", "t", "e", "l", "l1", "e1")
    cell = Cell("activations", activations, gates=("a", "b", "c"), states=states)
    limit = 1e4
    x = torch.cat([torch.linspace(-limit, limit, 4001), torch.logspace(-30, 4, 2000)]).to(dtype)
    near_one = 1 + torch.logspace(-8, -1, 100).to(dtype)
    edges = [0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, 1e-40, 3e38]
    x = torch.cat([x, near_one, 2 - near_one])
    x = torch.cat([x, -x, torch.tensor(edges, dtype=dtype)])
    found, exact = _apply(cell, x), activations([x.double()] * 3, ())
    for got, want in zip(found, exact, strict=True):
        want = want.to(dtype)
        assert torch.equal(got.isnan(), want.isnan())
        plain, limits = want.isfinite(), torch.finfo(dtype)
        error = (got.double() - want.double()).abs()[plain]
        assert (error <= 4 * limits.eps * want.double().abs()[plain] + limits.tiny).all()
        infinite = want.isinf()
        assert torch.equal(got[infinite], want[infinite])


def _apply(cell, x):
    """The printed step on rows of units, by itself."""
    text = emit.emit(cell, x.dtype)
    library = compiler.library("step", text, Path(engine.__file__).parent)
    states = [torch.zeros_like(x) for _ in cell.states]
    out = [torch.empty_like(x) for _ in cell.states]

    def pointers(tensors):
        return (ctypes.c_void_p * len(tensors))(*(t.data_ptr() for t in tensors))

    inputs = [x] * len(cell.gates) + states
    library.step(pointers(inputs), pointers(out), ctypes.c_int64(len(x)), ctypes.c_int64(0))
    return out


def test_same_bits_with_any_number_of_threads():
    problem = make_problem(cells.PEEPHOLE_LSTM, 20, 13, 70, D=2)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5, 64):
        torch.set_num_threads(threads)
        results.append(problem.run("cpp"))
    torch.set_num_threads(before)
    for other in results[1:]:
        # dR is one product over all steps, by PyTorch, whose sums may be cut by threads.
        names = [name for name in other if not name.startswith("dweights")]
        assert all(torch.equal(other[name], results[0][name]) for name in names)


def test_threads_are_those_that_were_asked_for():
    problem = make_problem(cells.LSTM, 20, 13, 70)
    before, seen = torch.get_num_threads(), []
    right = engine._Problem

    def watch(*args, **kwargs):
        made = right(*args, **kwargs)
        seen.append(made.threads)
        return made

    with mock.patch.object(engine, "_Problem", watch):
        for threads in (1, 3):
            torch.set_num_threads(threads)
            problem.run_forward("cpp")
    torch.set_num_threads(before)
    assert seen == [1, 3]
    assert loop.parallel_for() is not None


def test_from_many_python_threads_at_once():
    problems = [make_problem(cells.GRU, 9, 5, 33, seed=seed) for seed in range(8)]
    alone = [problem.run("cpp") for problem in problems]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda problem: problem.run("cpp"), problems))
    for one, other in zip(alone, together, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_auto_runs_the_loop_and_not_the_sequence_path():
    with mock.patch.object(sequence, "forward", side_effect=AssertionError):
        problem = make_problem(cells.CIFG_LSTM, 3, 2, 5)
        assert all(t.isfinite().all() for t in problem.run(None).values())


@pytest.mark.parametrize("grad", [True, False])
def test_direct_calls_are_those_of_the_ops(grad):
    problem = make_problem(cells.GRU, 4, 3, 5)
    run = problem.run if grad else problem.run_forward
    want = run("cpp")
    with mock.patch.object(context, "possible", return_value=False):
        got = run("cpp")
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_other_devices_are_refused():
    with pytest.raises(RuntimeError, match="\"cpp\" cannot run cell 'lstm' here: .* on cuda"):
        choose.layer("cpp", cells.LSTM, torch.device("cuda"), torch.float32)


def test_unknown_operations_are_named():
    def step(pre, state):
        return torch.special.bessel_j0(pre[0])

    cell = Cell("bessel", step, gates=("n",))
    arguments = torch.zeros(2, 1, 3), torch.zeros(3, 3), torch.zeros(1, 3)
    with pytest.raises(RuntimeError, match="'bessel' here: .*bessel_j0.* in C; write the step"):
        fused_rnn.scan(cell, *arguments, backend="cpp")
