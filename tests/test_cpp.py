"""The C++ engine beyond the matrix of ``test_cpu_paths``: sizes, threads, the compiler, auto."""

import concurrent.futures
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest import mock

import cells_for_tests as ours
import pytest
import torch
from fused_rnn.kernels import cpu, emit_c
from problems import make_problem
from tolerances import assert_as_good_as_eager, assert_equal_in_float64

import fused_rnn
from fused_rnn import Cell, backends, cells, compiler, direct, explain, measured, segments, sequence

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
    derived = segments.derive(cell, masked, 1 if zeros else 2, 1)
    _assert_right(make_problem(derived, 5, 3, 17, D=2, dtype=torch.float64))


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
        return a.sigmoid(), b.tanh(), c.exp()

    cell = Cell("activations", activations, gates=("a", "b", "c"), states=("s", "t", "e"))
    limit = 1e4
    x = torch.cat([torch.linspace(-limit, limit, 4001), torch.logspace(-30, 4, 2000)]).to(dtype)
    x = torch.cat([x, -x, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=dtype)])
    found = _apply(cell, x)
    exact = (x.double().sigmoid(), x.double().tanh(), x.double().exp())
    for got, want in zip(found, exact, strict=True):
        want = want.to(dtype)
        assert torch.equal(got.isnan(), x.isnan())
        plain, limits = want.isfinite(), torch.finfo(dtype)
        error = (got.double() - want.double()).abs()[plain]
        assert (error <= 4 * limits.eps * want.double().abs()[plain] + limits.tiny).all()
        assert torch.equal(got[~plain & ~x.isnan()], want[~plain & ~x.isnan()])


def _apply(cell, x):
    """The printed step on rows of units, by itself."""
    import ctypes

    library = compiler.load(
        compiler.build("step", emit_c.emit(cell, x.dtype), Path(cpu.__file__).parent)
    )
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
    right = cpu._Problem

    def watch(*args, **kwargs):
        made = right(*args, **kwargs)
        seen.append(made.threads)
        return made

    with mock.patch.object(cpu, "_Problem", watch):
        for threads in (1, 3):
            torch.set_num_threads(threads)
            problem.run_forward("cpp")
    torch.set_num_threads(before)
    assert seen == [1, 3]
    assert cpu._parallel_for() is not None


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
    with mock.patch.object(direct, "possible", return_value=False):
        got = run("cpp")
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_other_devices_are_refused():
    with pytest.raises(RuntimeError, match="\"cpp\" cannot run cell 'lstm' here: .* on cuda"):
        backends.choose("cpp", cells.LSTM, torch.device("cuda"), torch.float32)


def test_unknown_operations_are_named():
    def step(pre, state):
        return torch.special.bessel_j0(pre[0])

    cell = Cell("bessel", step, gates=("n",))
    arguments = torch.zeros(2, 1, 3), torch.zeros(3, 3), torch.zeros(1, 3)
    with pytest.raises(RuntimeError, match="'bessel' here: .*bessel_j0.* in C; write the step"):
        fused_rnn.scan(cell, *arguments, backend="cpp")


# The compiler and its cache, each time in a process of its own.

RUN = """
    import sys, time
    import torch
    import fused_rnn
    from fused_rnn import compiler
    torch.manual_seed(0)
    layer = fused_rnn.PeepholeLSTM(5, 7, backend=sys.argv[1])
    x = torch.randn(4, 3, 5)
    layer(x)[0].sum().backward()
    print(f"{layer.weight_hh_l0.grad.norm():.5f}", fused_rnn.explain(layer, 4, 3).backend)
"""


def _start(backend, cache, **environment):
    code = textwrap.dedent(RUN)
    command = [sys.executable, "-c", code, backend]
    full = os.environ | {"FUSED_RNN_CACHE": str(cache)} | environment
    return subprocess.Popen(
        command, env=full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _run(backend, cache, **environment):
    process = _start(backend, cache, **environment)
    said, complained = process.communicate(timeout=120)
    return process.returncode, said.split(), complained


def test_builds_once_and_reads_the_cache_after(tmp_path):
    code, first, _ = _run("cpp", tmp_path)
    assert (code, first[1]) == (0, "cpp")
    made = sorted(tmp_path.iterdir())
    assert [file.name.split("-")[0] for file in made] == ["loop", "peephole_lstm"]
    times = [file.stat().st_mtime_ns for file in made]
    assert _run("cpp", tmp_path)[:2] == (0, first)
    assert [file.stat().st_mtime_ns for file in sorted(tmp_path.iterdir())] == times


def test_processes_that_build_at_once(tmp_path):
    processes = [_start("cpp", tmp_path) for _ in range(4)]
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert len({out for out, _ in said}) == 1
    assert len(list(tmp_path.iterdir())) == 2  # nothing half made is left


def test_no_compiler(tmp_path):
    nothing = {"PATH": str(tmp_path), "CXX": "", "FUSED_RNN_CXX": ""}
    want = _run("sequence", tmp_path / "cache")[1][0]
    code, said, complained = _run("auto", tmp_path / "cache", **nothing)
    assert (code, said, complained) == (0, [want, "sequence"], "")
    code, _, complained = _run("cpp", tmp_path / "cache", **nothing)
    assert code == 1
    assert "cpp\" cannot run cell 'peephole_lstm' here: there is no C++ compiler" in complained


def test_a_compiler_that_fails(tmp_path):
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\ncase "$*" in *loop.cpp*) echo no; exit 3;; esac; exec c++ "$@"\n')
    broken.chmod(0o755)
    code, said, complained = _run("auto", tmp_path / "cache", FUSED_RNN_CXX=str(broken))
    assert (code, said[1]) == (0, "sequence")
    assert "RuntimeWarning" in complained
    assert "exit status 3: no" in complained
    code, _, complained = _run("cpp", tmp_path / "cache", FUSED_RNN_CXX=str(broken))
    assert code == 1
    assert "exit status 3: no" in complained


def test_flags_of_the_user_are_part_of_the_build(tmp_path):
    assert _run("cpp", tmp_path)[0] == 0
    before = len(list(tmp_path.iterdir()))
    assert _run("cpp", tmp_path, FUSED_RNN_CXXFLAGS="-DOTHER -g0")[0] == 0
    assert len(list(tmp_path.iterdir())) == 2 * before
    code, _, complained = _run("cpp", tmp_path, FUSED_RNN_CXXFLAGS="-no-such-flag")
    assert code == 1
    assert "no-such-flag" in complained


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    assert _run("cpp", tmp_path)[0] == 0


def test_a_cache_below_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert _run("cpp", file / "cache")[0] == 0


def test_the_package_has_its_sources():
    folder = Path(cpu.__file__).parent
    assert {"loop.cpp", "products.h", "pointwise.h"} <= {file.name for file in folder.iterdir()}
    assert shutil.which(compiler.find().command)


# What "auto" says and does.


def test_explain_says_what_auto_runs():
    for name in cells.names():
        for training in (True, False):
            said = explain(name, 3, 2, 5, training=training)
            assert said.backend in ("aten", "cpp")
            assert str(said).startswith(f'"{said.backend}": ')
            layer = fused_rnn.Recurrent(name, 4, 5)
            assert explain(layer, 3, 2, training=training) == said
            x = torch.randn(3, 2, 4, requires_grad=training)
            with mock.patch.object(cpu, "forward", wraps=cpu.forward) as forward:
                with torch.set_grad_enabled(training):
                    layer(x)
                assert forward.called == (said.backend == "cpp")
    assert explain(ours.MUT1, 3, 2, 5).backend == "cpp"


def test_explain_of_what_was_measured():
    faster = measured.Row("lstm", "float32", "training", 10, 1, 32, 2.0)
    slower = measured.Row("lstm", "float32", "training", 100, 64, 512, 0.5)
    table = ({"cpu": "a machine"}, (faster, slower))
    measured._nearest.cache_clear()
    with mock.patch.object(measured, "table", return_value=table):
        said = explain("lstm", 10, 1, 64)
        assert said.backend == "cpp"
        assert "the C++ loop took 0.50 times as long as torch.nn" in said.reason
        assert "T 10, B 1, H 32 on a machine" in said.reason
        assert explain("lstm", 50, 128, 300).backend == "aten"
        nothing = explain("lstm", 10, 1, 64, dtype=torch.float64)
        assert (nothing.backend, nothing.reason) == (
            "aten",
            "nothing was measured for torch.float64",
        )
        assert explain("lstm", 10, 1, 64, training=False).backend == "aten"
    measured._nearest.cache_clear()


def test_explain_needs_hidden_units():
    with pytest.raises(ValueError, match="H: expected the hidden units of cell 'lstm', got None"):
        explain("lstm", 3, 2)


def test_the_table_is_of_cells_that_torch_has():
    environment, rows = measured.table()
    assert environment["cpu"]
    assert {row.cell for row in rows} == {"rnn_tanh", "rnn_relu", "lstm", "gru"}
    assert {row.dtype for row in rows} == {"float32", "float64"}
    assert {row.mode for row in rows} == {"inference", "training"}
    assert all(row.aten_over_cpp > 0 for row in rows)
