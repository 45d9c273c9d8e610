"""The bias of the input parts, against their sum computed before."""

from unittest import mock

import pytest
import torch
from fused_rnn.kernels.cpu import compiler, engine

import tests.support.cells as ours
from fused_rnn import cells, scan
from fused_rnn.ops import recurrence
from tests.support.problems import make_problem
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64
from tests.support.transforms import assert_transforms

needs_compiler = pytest.mark.skipif(compiler.find() is None, reason=compiler.why_not())
some_cells = pytest.mark.parametrize(
    "cell", [cells.LSTM, cells.GRU, cells.GRU_RESET_BEFORE, cells.SLSTM], ids=ours.name_of
)
CELLS = [cell for cell in ours.ALL if cell.x_gates]


def _problem(cell, T=4, B=3, H=33, *, D=2, dtype=torch.float64, **options):
    """A problem, and a bias (D, X, H) of its x."""
    made = make_problem(cell, T, B, H, D=D, **options)
    shape = made.inputs["x"].shape[2:]
    x_bias = torch.randn(shape, generator=torch.Generator().manual_seed(3)).double() / 8
    return made.to(dtype), x_bias.to(dtype).requires_grad_()


def _summed(problem, x_bias, backend):
    """What is expected: the sum is computed by PyTorch."""
    return _run(problem, x_bias, backend, lambda x: {"x": x + x_bias})


def _added(problem, x_bias, backend):
    return _run(problem, x_bias, backend, lambda x: {"x": x, "x_bias": x_bias})


def _run(problem, x_bias, backend, given):
    """Outputs and, where gradients are enabled, those of every input and of the bias."""
    leaves = problem.leaves()
    args = problem.arguments(leaves)._asdict()
    args |= given(args.pop("x"))
    found = recurrence.run(
        problem.cell, **args, reverse=problem.reverse, all_states=True, chosen=backend
    )
    results = problem.results(*found)
    if not torch.is_grad_enabled():
        return results
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    wanted["x_bias"] = x_bias
    gradients = torch.autograd.grad(
        list(results.values()),
        list(wanted.values()),
        list(problem.cotangents.values()),
        materialize_grads=True,
    )
    return results | {f"d{name}": g for name, g in zip(wanted, gradients, strict=True)}


@needs_compiler
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("cell", CELLS, ids=ours.name_of)
def test_every_cell(cell, reverse):
    """In float64 and float32, with and without gradients; all of them by the loop."""
    double, x_bias = _problem(cell, reverse=reverse)
    exact = _summed(double, x_bias, "reference")
    with mock.patch.object(engine, "forward", wraps=engine.forward) as forward:
        assert_equal_in_float64(_added(double, x_bias, "cpp"), exact)
        single, narrow = double.to(torch.float32), x_bias.detach().float().requires_grad_()
        got = _added(single, narrow, "cpp")
        with torch.no_grad():
            shown = _added(single, narrow, "cpp")
    assert forward.call_count == 3
    assert all(call.args[-1].shape == x_bias.shape for call in forward.call_args_list)
    assert all(torch.equal(value, got[name]) for name, value in shown.items())
    assert_as_good_as_eager(got, _summed(single, narrow, "reference"), exact)


@needs_compiler
@pytest.mark.parametrize(("B", "H", "D"), [(1, 130, 1), (1, 200, 2), (2, 5, 1), (40, 70, 2)])
@some_cells
def test_threads(cell, B, H, D, threads):
    """Of which several may share a row, and each has its units."""
    problem, x_bias = _problem(cell, 3, B, H, D=D)
    want = _summed(problem, x_bias, "reference")
    assert_equal_in_float64(_added(problem, x_bias, "cpp"), want)


@pytest.mark.parametrize("backend", ["cpp", "sequence", "reference", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@some_cells
def test_backends_and_dtypes(cell, dtype, backend):
    exact = _summed(*_problem(cell, dtype=torch.float64), "reference")
    problem, x_bias = _problem(cell, dtype=dtype)
    if backend == "cpp" and compiler.find() is None:
        pytest.skip(compiler.why_not())
    eager = _summed(problem, x_bias, "reference")
    assert_as_good_as_eager(_added(problem, x_bias, backend), eager, exact)


@some_cells
def test_kernels(interpreter, cell):
    problem, x_bias = _problem(cell, H=16, D=1, dtype=torch.float32)
    got = _added(problem, x_bias, "triton")
    want = _summed(problem, x_bias, "triton")
    assert all(torch.equal(value, want[name]) for name, value in got.items())


@some_cells
@pytest.mark.parametrize("without", [("x",), ("x", "weights", "states", "params", "bias")], ids=len)
def test_what_needs_no_gradient(cell, without):
    problem, x_bias = _problem(cell, without_grad=without)
    want = _summed(problem, x_bias, "reference")
    got = _added(problem, x_bias, "auto")
    assert "dx_bias" in got
    assert_equal_in_float64(got, want)


@some_cells
def test_gradcheck(cell):
    """First and second derivatives, by finite differences."""
    problem, x_bias = _problem(cell, 2, 2, 3, D=1)
    problem = problem.to(torch.float64)
    x, *others = problem.arguments()

    def run(x, x_bias):
        sequences, finals = recurrence.run(
            cell, x, *others, x_bias=x_bias, all_states=True, chosen="auto"
        )
        return *sequences, *finals

    given = (x.requires_grad_(), x_bias)
    assert torch.autograd.gradcheck(run, given)
    assert torch.autograd.gradgradcheck(run, given)


def _arguments(cell):
    problem, x_bias = _problem(cell, 3, 2, 5, D=1)
    return problem.scan_arguments(problem.leaves()), x_bias.flatten()


@some_cells
def test_scan(cell):
    arguments, bias = _arguments(cell)
    x = arguments.pop("x_part")
    got, _ = scan(x_part=x, input_bias=bias, **arguments)
    want, _ = scan(x_part=x + bias, **arguments)
    assert_equal_in_float64({"output": got}, {"output": want})


@some_cells
def test_transforms_and_compilation(cell):
    arguments, bias = _arguments(cell)

    def run(bias):
        return scan(input_bias=bias, **arguments)[0]

    assert_transforms(run, bias.detach())


def test_bad_biases():
    arguments, bias = _arguments(cells.LSTM)
    for given, error, message in (
        (bias[:-1], RuntimeError, r"input_bias: expected shape \(20,\), got \(19,\)"),
        (bias.float(), ValueError, "input_bias: expected dtype torch.float64, got torch.float32"),
        (bias.to("meta"), RuntimeError, "input_bias: expected device cpu, got meta"),
        (bias.tolist(), TypeError, "input_bias: expected a tensor, got list"),
    ):
        with pytest.raises(error, match=message):
            scan(input_bias=given, **arguments)
