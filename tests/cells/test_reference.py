"""The derivatives of every cell against finite differences, in float64, to the second order.

Of the reference loop, which is the oracle of the other tests, and of the sequence path. Step and
tolerances are those of ``torch.autograd.gradcheck``.
"""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import tests.support.cells as ours
from fused_rnn import Recurrent, cells, scan
from tests.support.problems import make_problem

CELLS = (*ours.ALL, *map(cells.peephole_lstm, ("i", "f", "o")))
BACKENDS = ["reference", "sequence"]


def _without_periods(tensors):
    """Those that the cell is differentiable in: a changed period would jump, not slope."""
    return {name: t for name, t in tensors.items() if "period" not in name}


def _of_one(function, tensors):
    """``function`` of one vector of all the tensors' values, and that: far fewer pairs to check."""
    sizes, shapes = [t.numel() for t in tensors], [t.shape for t in tensors]

    def run(vector):
        parts = zip(vector.split(sizes), shapes, strict=True)
        return function(*(part.view(shape) for part, shape in parts))

    return run, torch.cat([t.detach().flatten() for t in tensors]).requires_grad_()


def _scan_of(cell, backend, batch, reverse=False):
    """``scan`` with all states shown, as a function of the tensors of a problem, and these."""
    problem = make_problem(cell, 3, batch, 2, dtype=torch.float64, reverse=reverse)
    leaves = problem.leaves()
    differentiable = _without_periods(leaves)

    def run(*tensors):
        given = leaves | dict(zip(differentiable, tensors, strict=True))
        arguments = problem.scan_arguments(given)
        sequences, finals = scan(**arguments, return_states=True, backend=backend)
        return (*sequences, *finals)

    return run, tuple(differentiable.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.key)
def test_scan_to_the_first_order(cell, backend):
    run, tensors = _scan_of(cell, backend, 1, reverse=True)
    if backend == "reference":  # every element; the other backends are compared with this one
        assert gradcheck(run, tensors)
    else:
        assert gradcheck(*_of_one(run, tensors), fast_mode=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.key)
def test_scan_to_the_second_order(cell, backend):
    assert gradgradcheck(*_of_one(*_scan_of(cell, backend, 2)), fast_mode=True)


def _module_of(cell, backend):
    """A stack of two layers, bidirectional where that can be, as a function, and its tensors."""
    module = Recurrent(
        cell, 2, 2, 2, bidirectional=not cell.raw_gates, dtype=torch.float64, backend=backend
    )
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        if "period" in name:
            parameter.requires_grad_(False).copy_(torch.tensor([1.0, 2.0]))
    rows = 2 if cell.raw_gates else 4
    names = list(_without_periods(parameters))
    inputs = [torch.randn(3, 2, 2), *(torch.randn(rows, 2, 2) for _ in cell.states)]
    inputs = [tensor.double().requires_grad_() for tensor in inputs]

    def run(x, *tensors):
        states, weights = tensors[: len(cell.states)], tensors[len(cell.states) :]
        hx = states if len(states) > 1 else states[0]
        output, finals = functional_call(module, dict(zip(names, weights, strict=True)), (x, hx))
        return (output, *finals) if len(states) > 1 else (output, finals)

    return run, (*inputs, *(parameters[name] for name in names))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", [c for c in ours.ALL if not c.streams], ids=ours.name_of)
def test_module_to_the_second_order(cell, backend):
    run, vector = _of_one(*_module_of(cell, backend))
    assert gradcheck(run, vector, fast_mode=True)
    if backend != "reference":  # plain autograd, checked to the second order above
        assert gradgradcheck(run, vector, fast_mode=True)


@pytest.mark.parametrize("cell", [c for c in ours.ALL if not c.drawn], ids=ours.name_of)
def test_directions_are_independent(cell):
    """The second direction is the first one's code on the reversed sequence, for every cell."""
    both = make_problem(cell, 4, 2, 3, D=2, dtype=torch.float64)
    results = both.run_forward("reference")
    for direction, reverse in ((0, False), (1, True)):
        one = make_problem(cell, 4, 2, 3, dtype=torch.float64, reverse=reverse)
        for name, tensor in both.inputs.items():
            dim = 2 if name == "x" or name.startswith("streams") else 0
            one.inputs[name] = tensor.narrow(dim, direction, 1)
        for name, tensor in one.run_forward("reference").items():
            dim = 2 if name.startswith("sequence") else 0
            assert torch.equal(tensor, results[name].narrow(dim, direction, 1))


@pytest.mark.parametrize("cell", [c for c in ours.ALL if not c.drawn], ids=ours.name_of)
def test_reverse_is_the_reversed_sequence(cell):
    forward = make_problem(cell, 4, 2, 3, dtype=torch.float64)
    backward = make_problem(cell, 4, 2, 3, dtype=torch.float64, reverse=True)
    for name in [n for n in forward.inputs if n == "x" or n.startswith("streams")]:
        backward.inputs[name] = forward.inputs[name].flip(0)
    want, got = forward.run_forward("reference"), backward.run_forward("reference")
    for name, tensor in got.items():
        assert torch.equal(tensor.flip(0) if name.startswith("sequence") else tensor, want[name])
