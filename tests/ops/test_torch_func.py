"""torch.func: every transform of every cell, and that it runs the ops, once for all that is mapped.

The oracle is plain autograd over the reference loop, one member after the other.
"""

import dataclasses
from unittest import mock

import pytest
import torch
from fused_rnn.kernels.cpu import compiler, engine
from torch import func, nn

import fused_rnn
import tests.support.cells as ours
from fused_rnn import Recurrent, cells, use_backend
from fused_rnn.engines import sequence
from tests.support.problems import make_problem
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

every_cell = pytest.mark.parametrize("cell", ours.ALL, ids=ours.name_of)
MEMBERS = 3
# Which inputs are mapped: the batch's, the weights, some, all.
MAPPED = {
    "x": ("x",),
    "batch": ("x", "states", "streams"),
    "weights": ("weights",),
    "vectors": ("bias", "params"),
    "all": ("x", "weights", "bias", "states", "params", "streams"),
}


def _cases(of):
    """The cells, each with what there is to map of it."""
    cases = [(cell, mapped) for cell in of for mapped in MAPPED]
    return [
        pytest.param(cell, mapped, id=f"{cell.name}-{mapped}")
        for cell, mapped in cases
        if not (mapped == "vectors" and not (cell.bias_gates or cell.params))
        and not (mapped == "weights" and not cell.matrices)
    ]


def _loss(problem, backend):
    """The product of the outputs with the problem's cotangents, of a dict of its inputs."""

    def loss(inputs):
        outputs = problem.outputs(inputs, backend)
        return sum((outputs[name] * c).sum() for name, c in problem.cotangents.items())

    return loss


def _gradients(results):
    return {name[1:]: value for name, value in results.items() if name.startswith("d")}


@pytest.fixture(params=["sequence", "cpp"])
def counted(request):
    """One of the paths of the CPU for all calls; how often it runs, forward and backward."""
    path = {"sequence": sequence, "cpp": engine}[request.param]
    if path is engine and compiler.find() is None:
        pytest.skip(compiler.why_not())
    with (
        use_backend(request.param),
        mock.patch.object(path, "forward", wraps=path.forward) as forward,
        mock.patch.object(path, "backward", wraps=path.backward) as backward,
    ):
        yield lambda: (forward.call_count, backward.call_count)


@every_cell
def test_grad(cell, counted):
    problem = make_problem(cell, 3, 2, 4, D=2, dtype=torch.float64)
    got = func.grad(_loss(problem, None))(problem.inputs)
    assert counted() == (1, 1)
    assert_equal_in_float64(got, _gradients(problem.run("reference")))


@every_cell
def test_grad_of_grad(cell):
    problem = make_problem(cell, 3, 2, 3, D=2, dtype=torch.float64)

    def size(inputs):
        gradients = func.grad(_loss(problem, None))(inputs)
        return sum(g.square().sum() for g in gradients.values())

    leaves = problem.leaves()
    inputs, loss = list(leaves.values()), _loss(problem, "reference")(leaves)
    once = torch.autograd.grad(loss, inputs, create_graph=True, materialize_grads=True)
    twice = torch.autograd.grad(sum(g.square().sum() for g in once), inputs, materialize_grads=True)
    want = dict(zip(leaves, twice, strict=True))
    assert_equal_in_float64(func.grad(size)(problem.inputs), want)


def _mapped_problem(cell, mapped, D=2, members=MEMBERS, **options):
    """Problems that share the inputs that are not mapped, all inputs as one, and their dims."""
    problems = [
        make_problem(cell, 3, 2, 4, D=D, dtype=torch.float64, seed=seed, **options)
        for seed in range(members)
    ]
    problems = [dataclasses.replace(problem, key=problems[0].key) for problem in problems]
    inputs, dims = {}, {}
    for name, first in problems[0].inputs.items():
        dims[name] = first.dim() if name.split(".")[0] in mapped else None
        for problem in problems:
            problem.cotangents.update(problems[0].cotangents)
            if dims[name] is None:
                problem.inputs[name] = first
        stacked = torch.stack([problem.inputs[name] for problem in problems], -1)
        inputs[name] = first if dims[name] is None else stacked
    return problems, inputs, dims


@pytest.mark.parametrize(("cell", "mapped"), _cases(ours.ALL))
def test_vmap_of_outputs_and_gradients(cell, mapped, counted):
    problems, inputs, dims = _mapped_problem(cell, MAPPED[mapped])
    first = problems[0]
    outputs = func.vmap(lambda i: first.outputs(i, None), (dims,))(inputs)
    assert counted() == (1, 0)
    gradients = func.vmap(func.grad(_loss(first, None)), (dims,))(inputs)
    assert counted() == (2, 1)
    for n, problem in enumerate(problems):
        got = {name: value[n] for name, value in outputs.items()}
        got |= {f"d{name}": value[n] for name, value in gradients.items()}
        assert_equal_in_float64(got, problem.run("reference"), f"member {n}")


@pytest.mark.parametrize(("cell", "mapped"), _cases([cells.PEEPHOLE_LSTM, cells.GRU, ours.MUT1]))
@pytest.mark.parametrize(("D", "reverse"), [(1, False), (1, True), (2, True)])
def test_grad_of_vmap(cell, mapped, D, reverse):
    problems, inputs, dims = _mapped_problem(cell, MAPPED[mapped], D, reverse=reverse)
    loss = _loss(problems[0], None)
    got = func.grad(lambda i: func.vmap(loss, (dims,))(i).sum())(inputs)
    each = [_gradients(problem.run("reference")) for problem in problems]
    want = {}
    for name, dim in dims.items():
        stacked = torch.stack([gradients[name] for gradients in each], -1)
        want[name] = stacked.sum(-1) if dim is None else stacked
    assert_equal_in_float64(got, want)


@pytest.mark.parametrize("members", [1, 2, 5])
def test_vmap_of_vmap(members):
    problems, inputs, dims = _mapped_problem(cells.LSTM, ("weights", "x"), members=members)
    problem, x = problems[0], torch.stack([inputs["x"], 2 * inputs["x"]])

    def run(backend):
        def inner(x, inputs):
            return problem.outputs(inputs | {"x": x}, backend)

        return func.vmap(func.vmap(inner, (-1, dims | {"x": None})), (0, None))(x, inputs)

    inputs["x"] = problem.inputs["x"]
    assert_equal_in_float64(run(None), run("reference"))


@pytest.mark.parametrize("cell", [cells.LSTM, cells.GRU_RESET_BEFORE], ids=ours.name_of)
def test_vmap_under_plain_autograd_and_without(cell):
    problems, inputs, dims = _mapped_problem(cell, ("x", "weights"))
    run = func.vmap(_loss(problems[0], None), (dims,))
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    run(leaves).sum().backward()
    want = func.grad(lambda i: run(i).sum())(inputs)
    assert_equal_in_float64({name: leaf.grad for name, leaf in leaves.items()}, want)
    with torch.no_grad():
        assert_equal_in_float64({"loss": run(leaves)}, {"loss": run(inputs)})


@pytest.mark.parametrize(
    "jacobian", [func.jacrev, func.jacfwd, lambda f: func.jacrev(f, chunk_size=2)]
)
@pytest.mark.parametrize("cell", [cells.LSTM, cells.GRU_RESET_BEFORE, ours.FADED_RNN])
def test_jacobians_and_hessians(cell, jacobian):
    problem = make_problem(cell, 2, 2, 3, dtype=torch.float64)
    inputs = {name: value.detach() for name, value in problem.inputs.items()}

    def final(x):
        return problem.outputs(inputs | {"x": x}, None)["final.h"]

    def by_reference(x):
        return problem.outputs(inputs | {"x": x}, "reference")["final.h"]

    x = inputs["x"]
    want = torch.autograd.functional.jacobian(by_reference, x)
    assert_equal_in_float64({"jacobian": jacobian(final)(x)}, {"jacobian": want})
    want = torch.autograd.functional.hessian(lambda x: by_reference(x).square().sum(), x)
    got = jacobian(func.jacrev(lambda x: final(x).square().sum()))(x)
    assert_equal_in_float64({"hessian": got}, {"hessian": want})


def test_vjp_after_its_transform():
    problem = make_problem(cells.PEEPHOLE_LSTM, 3, 2, 4, D=2, dtype=torch.float64)
    outputs, pull_back = func.vjp(lambda i: problem.outputs(i, None), problem.inputs)
    (gradients,) = pull_back(problem.cotangents)
    got = outputs | {f"d{name}": value for name, value in gradients.items()}
    assert_equal_in_float64(got, problem.run("reference"))


LAYERS = {
    "LSTM": (nn.LSTM, fused_rnn.LSTM),
    "GRU": (nn.GRU, fused_rnn.GRU),
    "RNN": (nn.RNN, fused_rnn.RNN),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_each_sample_of_a_module(kind, counted):
    """Per-sample gradients against torch.nn's module, sample after sample."""
    plain, own = LAYERS[kind]
    theirs = plain(3, 4, 2, bidirectional=True, dtype=torch.float64)
    mine = own(3, 4, 2, bidirectional=True, dtype=torch.float64)
    mine.load_state_dict(theirs.state_dict())
    parameters = {name: p.detach() for name, p in mine.named_parameters()}
    x = torch.randn(5, 4, 3, dtype=torch.float64)  # samples first

    def loss(parameters, row):
        output, _ = func.functional_call(mine, parameters, (row.unsqueeze(1),))
        return output.square().sum()

    got = func.vmap(func.grad(loss), (None, 0))(parameters, x)
    assert counted() == (2, 2)  # per layer
    for n, row in enumerate(x):
        theirs.zero_grad()
        theirs(row.unsqueeze(1))[0].square().sum().backward()
        want = {name: p.grad for name, p in theirs.named_parameters()}
        assert_equal_in_float64({name: g[n] for name, g in got.items()}, want, f"sample {n}")


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "peephole_lstm", "gru_reset_before"])
def test_ensemble_of_modules(cell, bidirectional, counted):
    """Stacked weights, one run for all members; against each module on its own."""
    modules = [
        Recurrent(cell, 3, 4, bidirectional=bidirectional, dtype=torch.float64) for _ in range(4)
    ]
    parameters, buffers = func.stack_module_state(modules)
    x = torch.randn(5, 2, 3, dtype=torch.float64)

    def loss(parameters, buffers, x):
        output, _ = func.functional_call(modules[0], (parameters, buffers), (x,))
        return output.square().sum()

    got = func.vmap(func.grad(loss), (0, 0, None))(parameters, buffers, x)
    assert counted() == (1, 1)
    for n, module in enumerate(modules):
        module.backend = "reference"
        module(x)[0].square().sum().backward()
        want = {name: p.grad for name, p in module.named_parameters()}
        assert_equal_in_float64({name: g[n] for name, g in got.items()}, want, f"member {n}")


@pytest.mark.parametrize("mapped", ["batch", "all"])
@pytest.mark.parametrize("cell", [cells.PEEPHOLE_LSTM, cells.GRU_RESET_BEFORE], ids=ours.name_of)
def test_kernels_under_vmap_and_grad(cell, mapped, interpreter):
    problems, inputs, dims = _mapped_problem(cell, MAPPED[mapped])
    inputs = {name: value.float() for name, value in inputs.items()}
    problems = [problem.to(torch.float32) for problem in problems]
    with (
        mock.patch.object(sequence, "forward", side_effect=AssertionError),
        mock.patch.object(sequence, "backward", side_effect=AssertionError),
    ):
        got = func.vmap(func.grad(_loss(problems[0], "triton")), (dims,))(inputs)
    for n, problem in enumerate(problems):
        assert_as_good_as_eager(
            {name: value[n] for name, value in got.items()},
            _gradients(problem.run("reference")),
            _gradients(problem.to(torch.float64).run("reference")),
            f"member {n}",
        )
