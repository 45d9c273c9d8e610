"""The built-in cells of the literature against oracles written from their papers."""

import pytest
import torch
from fused_rnn.kernels.cpu import compiler
from torch.autograd import gradcheck, gradgradcheck

from fused_rnn import cells, scan
from tests.support.papers import PAPERS, torchrecurrent_cells
from tests.support.problems import make_problem
from tests.support.tolerances import assert_equal_in_float64

every_cell = pytest.mark.parametrize("name", PAPERS)


def _scan(name, v, **options):
    """``scan`` of a cell with the tensors of its paper."""
    cell, paper = cells.get(name), PAPERS[name]
    matrices, parts = iter(paper.x), []
    for gate, bias in zip(cell.x_gates, paper.b, strict=False):
        part = v["x"] if gate in cell.raw_gates else v["x"] @ v[next(matrices)].mT
        parts.append(part if bias == "0" else part + v[bias])
    zeros = torch.zeros_like(v[f"{paper.states[0]}_0"][0])
    biases = [zeros if bias == "0" else v[bias] for bias in paper.b[len(cell.x_gates) :]]
    assert len(biases) == len(cell.bias_gates)
    return scan(
        cell,
        torch.cat(parts, -1),
        [torch.cat([torch.cat([v[m] for m in gate], 1) for gate in stage]) for stage in paper.r],
        [v[f"{state}_0"] for state in paper.states],
        bias=torch.cat(biases) if biases else None,
        params=[v[name] for name in paper.params],
        streams=[v[name] for name in paper.streams],
        **options,
    )


def _with_gradients(v, sequences, finals):
    """All outputs, and the gradients of all of ``v`` for the same random cotangents."""
    outputs = [*sequences, *finals]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
    gradients = torch.autograd.grad(outputs, list(v.values()), cotangents, materialize_grads=True)
    named = {f"output.{i}": output for i, output in enumerate(outputs)}
    return named | {f"d{name}": g for name, g in zip(v, gradients, strict=True)}


@pytest.mark.parametrize("backend", ["reference", "sequence", "cpp"])
@every_cell
def test_cell_is_its_paper(name, backend):
    if backend == "cpp" and compiler.find() is None:
        pytest.skip(compiler.why_not())
    paper = PAPERS[name]
    v = paper.values(T=5, B=3, I=7, H=9)
    want = _with_gradients(v, *paper.run(v))
    got = _with_gradients(v, *_scan(name, v, backend=backend, return_states=True))
    assert_equal_in_float64(got, want)


def _of_one(name):
    """All sequences of a small problem, as a function of one vector of all its tensors."""
    problem = make_problem(cells.get(name), 3, 1, 2, dtype=torch.float64)
    leaves = problem.leaves()
    sizes = [leaf.numel() for leaf in leaves.values()]

    def run(vector):
        parts = zip(leaves.items(), vector.split(sizes), strict=True)
        given = {name: part.view(leaf.shape) for (name, leaf), part in parts}
        arguments = problem.scan_arguments(given)
        return scan(**arguments, return_states=True, backend="sequence")[0]

    return run, torch.cat([t.detach().flatten() for t in leaves.values()]).requires_grad_()


@every_cell
def test_derivatives(name):
    assert gradcheck(*_of_one(name), fast_mode=True)
    assert gradgradcheck(*_of_one(name), fast_mode=True)


@pytest.mark.parametrize("name", torchrecurrent_cells.CELLS)
def test_torchrecurrent_agrees_with_the_paper(name):
    package = pytest.importorskip("torchrecurrent")
    paper = PAPERS[name]
    v = paper.values(T=5, B=3, I=7, H=9)
    want = _with_gradients(v, paper.run(v)[0][:1], [])
    got = _with_gradients(v, [torchrecurrent_cells.run(package, name, v)], [])
    assert_equal_in_float64(got, want)
