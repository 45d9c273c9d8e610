"""The recurrence as PyTorch sees it: custom ops, their checks, what they save."""

import pytest
import torch
from torch import func
from torch.autograd import forward_ad
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

import tests.support.cells as ours
from fused_rnn import cells, scan
from tests.support.problems import make_problem
from tests.support.tolerances import assert_equal_in_float64


def _forward_arguments(problem, save=True):
    leaves = problem.leaves()

    def group(name):
        return [leaf for key, leaf in leaves.items() if key.split(".")[0] == name]

    bias = group("bias")[0] if group("bias") else None
    streams = group("streams") + ([] if problem.key is None else [problem.key])
    tensors = (group("weights"), bias, group("states"), group("params"), streams)
    return (problem.cell.key, leaves["x"], *tensors, problem.reverse, save, "sequence")


def _backward_arguments(problem):
    arguments = _forward_arguments(problem)
    key, _, weights, _, states, params, streams, reverse, _, backend = arguments
    with torch.no_grad():
        weights, states, params, streams = (
            [tensor.clone() for tensor in group] for group in (weights, states, params, streams)
        )
        output = torch.ops.fused_rnn.forward(*arguments)
    n = len(states)
    given = [0, len(output) - 1]
    cotangents = [torch.randn_like(output[place]) for place in given]
    saved = (output[:n], output[n], cotangents, given)
    return (key, weights, states, params, streams, *saved, reverse, backend)


@pytest.mark.parametrize("cell", [cells.LSTM, ours.MUT1], ids=ours.name_of)
def test_opcheck_of_forward(cell):
    arguments = _forward_arguments(make_problem(cell, 1, 2, 3))
    opcheck(torch.ops.fused_rnn.forward.default, arguments)


@pytest.mark.parametrize("cell", ours.ALL, ids=ours.name_of)
def test_opcheck_of_forward_but_for_compilation(cell):
    arguments = _forward_arguments(make_problem(cell, 2, 3, 4, D=2, dtype=torch.bfloat16))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(torch.ops.fused_rnn.forward.default, arguments, test_utils=checks)


@pytest.mark.parametrize("cell", [*ours.ALL, cells.peephole_lstm("f")], ids=lambda c: c.key)
def test_opcheck_of_backward(cell):
    problem = make_problem(cell, 2, 3, 4, D=2, reverse=True)
    opcheck(torch.ops.fused_rnn.backward.default, _backward_arguments(problem))


@pytest.mark.parametrize("save", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("D", [1, 2])
def test_fake_outputs_of_strided_inputs(D, save):
    problem = make_problem(cells.LSTM, 2, 3, 4, D=D, contiguous=False)
    arguments = _forward_arguments(problem, save)
    opcheck(torch.ops.fused_rnn.forward.default, arguments, test_utils="test_faketensor")
    arguments = _backward_arguments(problem)
    opcheck(torch.ops.fused_rnn.backward.default, arguments, test_utils="test_faketensor")


@pytest.mark.parametrize("cell", ours.ALL, ids=ours.name_of)
def test_inference_returns_no_more_than_is_shown(cell):
    full = torch.ops.fused_rnn.forward(*_forward_arguments(make_problem(cell, 2, 3, 4)))
    less = torch.ops.fused_rnn.forward(*_forward_arguments(make_problem(cell, 2, 3, 4), save=False))
    n = len(cell.states)
    assert all(tensor.numel() == 0 for tensor in less[1 : n + 1])
    for got, want in zip((less[0], *less[n + 1 :]), (full[0], *full[n + 1 :]), strict=True):
        assert torch.equal(got, want)


@pytest.fixture(params=[cells.LSTM, cells.GRU_RESET_BEFORE, ours.MUT1], ids=ours.name_of)
def call(request):
    """``scan`` with backend and x, and x."""
    problem = make_problem(request.param, 3, 2, 4, dtype=torch.float64)
    arguments = problem.scan_arguments({n: t.detach() for n, t in problem.leaves().items()})
    x = arguments.pop("x_part")
    return lambda backend, x: scan(x_part=x, backend=backend, **arguments)[0], x


def test_func_grad_vmap_and_jvp(call):
    run, x = call
    _, want = torch.autograd.functional.jvp(lambda x: run("reference", x), x, x)
    _, got = func.jvp(lambda x: run(None, x), (x,), (x,))
    assert_equal_in_float64({"jvp": got}, {"jvp": want})
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(run("sequence", leaf).square().sum(), leaf)
    got = func.grad(lambda x: run(None, x).square().sum())(x)
    assert_equal_in_float64({"grad": got}, {"grad": want})
    rows = torch.stack([x, 2 * x])
    want = torch.stack([run("sequence", row) for row in rows])
    assert_equal_in_float64({"vmap": func.vmap(lambda x: run(None, x))(rows)}, {"vmap": want})


def test_forward_mode_is_right_or_an_error(call):
    """Never a tangent that is dropped silently."""
    run, x = call
    _, want = torch.autograd.functional.jvp(lambda x: run("reference", x), x, x)
    with forward_ad.dual_level():
        got = forward_ad.unpack_dual(run(None, forward_ad.make_dual(x, x))).tangent
        assert_equal_in_float64({"jvp": got}, {"jvp": want})
        with pytest.raises(RuntimeError, match='backend "sequence"'):
            run("sequence", forward_ad.make_dual(x, x))


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: lambda x: func.jvp(f, (x,), (x,)),
        lambda f: func.jacfwd(f),
        lambda f: func.hessian(lambda x: f(x).sum()),
    ],
    ids=["jvp", "jacfwd", "hessian"],
)
def test_forward_mode_of_a_backend_that_cannot_is_a_clear_error(transform):
    problem = make_problem(cells.LSTM, 3, 2, 4)
    arguments = problem.scan_arguments({n: t.detach() for n, t in problem.leaves().items()})
    x = arguments.pop("x_part")
    with pytest.raises(RuntimeError, match='backend "sequence" cannot .* forward-mode'):
        transform(lambda x: scan(x_part=x, backend="sequence", **arguments)[0])(x)


class _Watching(TorchDispatchMode):
    """As a counter of operations or a profiler is."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("cell", [cells.LSTM, ours.MUT1], ids=ours.name_of)
def test_first_run_under_a_dispatch_mode(cell):
    problem = make_problem(cell, 2, 3, 4, dtype=torch.float64)
    want = problem.run("reference")
    cell.made.clear()
    with _Watching():
        got = problem.run("sequence")
    assert_equal_in_float64(got, want)


def _leaves_and_outputs():
    problem = make_problem(cells.LSTM, 3, 2, 4)
    leaves = problem.leaves()
    outputs, _ = scan(**problem.scan_arguments(leaves), return_states=True, backend="sequence")
    return leaves, outputs


@pytest.mark.parametrize("what", ["h", "c", "weights.0", "states.h", "states.c"])
def test_changing_what_was_saved_is_an_error(what):
    leaves, (h, c) = _leaves_and_outputs()
    total = h.sum()
    with torch.no_grad():
        (leaves | {"h": h, "c": c})[what].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_backward_twice():
    leaves, (h, _) = _leaves_and_outputs()
    h.sum().backward(retain_graph=True)
    once = {name: leaf.grad.clone() for name, leaf in leaves.items()}
    h.sum().backward()
    assert all(torch.equal(leaf.grad, 2 * once[name]) for name, leaf in leaves.items())
    with pytest.raises(RuntimeError, match="a second time"):
        h.sum().backward()


@pytest.mark.parametrize("backend", ["sequence", "reference"])
def test_no_graph_without_gradients_in_view(backend):
    problem = make_problem(cells.LSTM, 3, 2, 4, without_grad=("x", "weights", "states"))
    arguments = problem.scan_arguments(problem.leaves())
    outputs, finals = scan(**arguments, return_states=True, backend=backend)
    assert not any(tensor.requires_grad for tensor in (*outputs, *finals))
