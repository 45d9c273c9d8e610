"""Modules that keep the states but not the gates: same numbers, fewer bytes."""

import copy
from unittest import mock

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import fused_rnn
import tests.support.cells as ours
from bench.reports.memory import kept as kept_bytes
from fused_rnn import Recurrent, cells
from fused_rnn.engines import sequence
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

CELLS = [cell for cell in ours.ALL if not cell.streams]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=ours.name_of)


def _module(cell, **options):
    both = not cell.raw_gates
    options = {"num_layers": 2, "bidirectional": both, "recompute": True} | options
    return Recurrent(cell, 4, 4, **options)


def _run(module, x):
    """Output, final states and the gradients of everything."""
    x = x.detach().to(next(module.parameters()).dtype).requires_grad_()
    output, finals = module(x)
    finals = [finals] if isinstance(finals, torch.Tensor) else list(finals)
    loss = output.square().sum() + sum((n + 2) * final.sum() for n, final in enumerate(finals))
    inputs = {"x": x} | dict(module.named_parameters())
    gradients = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)
    results = {"output": output} | {f"final.{n}": final for n, final in enumerate(finals)}
    return results | {f"d{name}": g for name, g in zip(inputs, gradients, strict=True)}


@pytest.mark.parametrize("size", [(5, 3), (1, 1), (3, 0)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@every_cell
def test_numbers_and_gradients(cell, bias, size):
    module, x = _module(cell, bias=bias), torch.randn(*size, 4)
    plain = copy.deepcopy(module)
    plain.backend = "reference"
    eager, exact = _run(plain, x), _run(plain.double(), x)
    assert_as_good_as_eager(_run(module, x), eager, exact)
    assert_equal_in_float64(_run(module.double(), x), exact)


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("proj_size", [0, 3])
def test_with_what_a_call_asks_for(proj_size, given):
    """Lengths, resets and all states, against the loop that keeps everything."""
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    first = torch.randn(4, 3, proj_size or 4, dtype=torch.float64)
    hx = (first, torch.randn(4, 3, 4, dtype=torch.float64)) if given else None
    lengths, reset = torch.tensor([4, 6, 0]), torch.rand(6, 3) < 0.4
    module = _module(cells.LSTM, proj_size=proj_size, dtype=torch.float64)
    op, results = fused_rnn.ops.recompute.forward_without_gates, []
    for backend in ("sequence", "reference"):
        module.backend = backend
        inputs = [x.clone().requires_grad_(), *module.parameters()]
        inputs += [state.requires_grad_() for state in hx or ()]
        with mock.patch.object(fused_rnn.ops.recompute, "forward_without_gates", wraps=op) as run:
            outputs, finals = module(
                inputs[0], hx, lengths=lengths, reset=reset, return_states=True
            )
        # A projection with a state given is the one case that keeps the gates.
        assert run.call_count == (2 if backend == "sequence" and not (proj_size and given) else 0)
        loss = sum((n + 1) * t.square().sum() for n, t in enumerate((*outputs, *finals)))
        tensors = [*outputs, *finals, *torch.autograd.grad(loss, inputs)]
        results.append({str(n): tensor for n, tensor in enumerate(tensors)})
    assert_equal_in_float64(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=ours.name_of)
@every_cell
def test_half_precision(cell, dtype):
    module, x = _module(cell).to(dtype), torch.randn(5, 3, 4).to(dtype)
    plain = copy.deepcopy(module)
    plain.backend = "reference"
    assert_as_good_as_eager(_run(module, x), _run(plain, x), _run(plain.double(), x))


@every_cell
def test_to_the_second_order(cell):
    module = _module(cell, num_layers=1, dtype=torch.float64)
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    names = ("weight_hh0_l0", "weight_hh_l0", "weight_ih_l0")  # a cell may have no stages
    name = next(name for name in names if hasattr(module, name))
    weight = module.get_parameter(name)

    def run(x, weight):
        return torch.func.functional_call(module, {name: weight}, (x,))[0]

    weight = weight.detach().requires_grad_()
    assert gradcheck(run, (x, weight), fast_mode=True)
    assert gradgradcheck(run, (x, weight), fast_mode=True)


# Values of size H that a step keeps per row and direction, with and without the gates.
KEPT = {"rnn_tanh": (2, 1), "lstm": (6, 2), "cifg_lstm": (5, 2), "gru": (5, 1)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=ours.name_of)
@pytest.mark.parametrize("cell", KEPT)
def test_bytes_kept(cell, dtype):
    """As docs/memory.md has them; the c of an LSTM is float32, in 16-bit dtypes too."""
    T, B, H = 400, 4, 32
    x = torch.randn(T, B, 8, dtype=dtype)
    for recompute, values in zip((False, True), KEPT[cell], strict=True):
        module = Recurrent(cell, 8, H, recompute=recompute, backend="sequence", dtype=dtype)
        kept = kept_bytes(module, x) / (T * B * H)
        wide = 4 - dtype.itemsize if "lstm" in cell else 0
        assert kept == pytest.approx(values * dtype.itemsize + wide, rel=0.05)


def test_op():
    module = _module(cells.PEEPHOLE_LSTM, num_layers=1)
    caught = []
    op = fused_rnn.ops.recompute.forward_without_gates
    with mock.patch.object(
        fused_rnn.ops.recompute, "forward_without_gates", lambda *a: caught.append(a) or op(*a)
    ):
        module(torch.randn(3, 2, 4))
    opcheck(torch.ops.fused_rnn.forward_without_gates.default, caught[0])


@pytest.mark.parametrize("cell", [cells.LSTM, cells.GRU_RESET_BEFORE, ours.MUT1], ids=ours.name_of)
def test_compiled(cell):
    module = _module(cell, dtype=torch.float64)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for T, B in ((11, 6), (13, 7)):
        x = torch.randn(T, B, 4)
        want = _run(module, x)
        leaf = x.double().requires_grad_()
        output, _ = compiled(leaf)
        (dx,) = torch.autograd.grad(output.square().sum(), leaf)
        (want_dx,) = torch.autograd.grad(module(leaf)[0].square().sum(), leaf)
        assert_equal_in_float64(
            {"output": output, "dx": dx}, {"output": want["output"], "dx": want_dx}
        )


def test_one_walk_each_way():
    module = _module(cells.LSTM, num_layers=1, backend="sequence")
    x = torch.randn(5, 3, 4)
    with (
        mock.patch.object(sequence, "forward", wraps=sequence.forward) as forward,
        mock.patch.object(sequence, "backward", wraps=sequence.backward) as backward,
    ):
        module(x)[0].sum().backward()
    assert (forward.call_count, backward.call_count) == (1, 1)


def test_backward_twice_and_changed_tensors():
    module = _module(cells.LSTM, num_layers=1, bidirectional=False)
    x = torch.randn(5, 3, 4)
    loss = module(x)[0].sum()
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in module.parameters()]
    loss.backward()
    for p, grad in zip(module.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * grad)
    for what in ("input", "output", "weight"):
        given = x.clone()
        output, _ = module(given)
        total = output.sum()
        with torch.no_grad():
            {"input": given, "output": output}.get(what, module.weight_hh_l0).mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            total.backward()


@pytest.mark.parametrize("cell", [cells.PEEPHOLE_LSTM, cells.GRU_RESET_BEFORE], ids=ours.name_of)
def test_kernels(cell, interpreter):
    module, x = _module(cell, backend="triton"), torch.randn(4, 3, 4)
    plain = copy.deepcopy(module)
    plain.backend = "reference"
    eager, exact = _run(plain, x), _run(plain.double(), x)
    with (
        mock.patch.object(sequence, "forward", side_effect=AssertionError),
        mock.patch.object(sequence, "backward", side_effect=AssertionError),
    ):
        assert_as_good_as_eager(_run(module, x), eager, exact)
