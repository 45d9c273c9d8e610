"""Layers whose input projection the C++ loop computes too, against the reference."""

from unittest import mock

import pytest
import torch
from fused_rnn.kernels.cpu import compiler, engine
from torch.nn.utils import parametrizations

import fused_rnn
import tests.support.cells as ours
from fused_rnn import Cell, Recurrent, cells
from fused_rnn.engines import choose
from tests.support.problems import run_module
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

if compiler.find() is None:
    pytest.skip(compiler.why_not(), allow_module_level=True)

CELLS = [cell for cell in ours.ALL if not cell.streams and not cell.raw_gates]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.key)
some_cells = pytest.mark.parametrize(
    "cell", [cells.LSTM, cells.PEEPHOLE_LSTM, cells.GRU, cells.GRU_RESET_BEFORE], ids=ours.name_of
)


def _module(cell, H, backend="cpp", I=None, **options):  # noqa: E741 - the project's name of it
    torch.manual_seed(0)
    return Recurrent(cell, I or H, H, backend=backend, **options)


def _states(module, x):
    generator = torch.Generator().manual_seed(2)
    rows = module.num_layers * (2 if module.bidirectional else 1)
    shape = (rows, x.shape[1], module.hidden_size)
    return tuple(torch.randn(shape, generator=generator).to(x) for _ in module.cell.states)


def _run(module, x, with_hx=False, **options):
    states = _states(module, x) if with_hx else None
    return run_module(module, x, states[0] if with_hx and len(states) == 1 else states, **options)


def _assert_right(cell, H, x, with_hx=False, options=None, **arguments):
    """Training and inference in float64 and float32; that all of them went through the loop."""
    results = []
    for dtype in (torch.float64, torch.float32):
        mine, plain = (_module(cell, H, b, **arguments).to(dtype) for b in ("cpp", "reference"))
        with mock.patch.object(engine, "layer", wraps=engine.layer) as layer:
            got = _run(mine, x, with_hx, **(options or {}))
            with torch.no_grad():
                shown = _run(mine, x, with_hx, **(options or {}))
        assert layer.call_count == 2 * mine.num_layers
        for name, value in shown.items():
            assert torch.equal(value, got[name]), name
        results += [got, _run(plain, x, with_hx, **(options or {}))]
    double, exact, single, eager = results
    assert_equal_in_float64(double, exact)
    assert_as_good_as_eager(single, eager, exact)


@pytest.mark.parametrize(
    ("T", "B", "H", "with_hx", "arguments"),
    [
        (3, 1, 5, False, {}),
        (4, 3, 33, True, {"bidirectional": True}),
        (3, 2, 17, True, {"bias": False}),
        (2, 3, 8, False, {"num_layers": 2, "bidirectional": True, "bias": False}),
    ],
    ids=ours.name_of,
)
@every_cell
def test_every_cell(cell, T, B, H, with_hx, arguments):
    _assert_right(cell, H, torch.randn(T, B, H), with_hx, **arguments)


@pytest.mark.parametrize(
    ("T", "B", "I", "H"),
    [(150, 5, 3, 9), (40, 9, 40, 20), (300, 1, 2, 8), (1, 140, 70, 4)],
    ids=str,
)
@some_cells
def test_more_steps_than_are_made_at_once(cell, T, B, I, H):  # noqa: E741
    _assert_right(cell, H, torch.randn(T, B, I), True, bidirectional=True, I=I)


@some_cells
def test_lengths_resets_and_all_states(cell):
    x = torch.randn(7, 4, 6)
    _assert_right(cell, 6, x, True, {"lengths": torch.tensor([7, 0, 3, 5])}, bidirectional=True)
    _assert_right(cell, 6, x, True, {"reset": torch.rand(7, 4) < 0.3}, bidirectional=True)
    with torch.no_grad():
        modules = [_module(cell, 6, backend).double() for backend in ("cpp", "reference")]
        assert_equal_in_float64(*(_run(m, x, True, return_states=True) for m in modules))


@some_cells
def test_same_bits_with_any_number_of_threads(cell):
    """That also decides whether the input part is made at once or for some steps at a time."""
    module, x = _module(cell, 40, bidirectional=True), torch.randn(90, 3, 40)
    before, results = torch.get_num_threads(), []
    with torch.no_grad():
        for threads in (1, 2, 5, 64):
            torch.set_num_threads(threads)
            results.append(_run(module, x))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(other[name], results[0][name]) for name in other)


@some_cells
def test_gradients_of_gradients(cell):
    module, x = _module(cell, 3, num_layers=2).double(), torch.randn(3, 2, 3).double()
    names = [name for name, _ in module.named_parameters()]
    weights = [p.detach().requires_grad_() for p in module.parameters()]

    def run(x, *weights):
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x,))[0]

    with mock.patch.object(engine, "layer", wraps=engine.layer) as layer:
        assert torch.autograd.gradgradcheck(run, (x.requires_grad_(), *weights), fast_mode=True)
    assert layer.called


@some_cells
def test_each_gradient_by_itself(cell):
    x, cotangent = torch.randn(4, 2, 5).double(), torch.randn(4, 2, 5).double()
    for only in ("x", *(name for name, _ in _module(cell, 5).named_parameters())):
        found = []
        for backend in ("cpp", "reference"):
            module = _module(cell, 5, backend).double()
            tensors = dict(module.named_parameters()) | {"x": x.clone()}
            for name, tensor in tensors.items():
                tensor.requires_grad_(name == only)
            output, _ = module(tensors["x"])
            found.append({only: torch.autograd.grad(output, tensors[only], cotangent)[0]})
        assert_equal_in_float64(*found)


def test_given_states_are_left_as_they_are():
    module, x = _module(cells.LSTM, 6), torch.randn(4, 2, 6)
    states = _states(module, x)
    before = [state.clone() for state in states]
    with torch.no_grad():
        module(x, states)
    assert all(torch.equal(state, copy) for state, copy in zip(states, before, strict=True))


def test_two_calls_share_nothing():
    module, x = _module(cells.LSTM, 6), torch.randn(4, 2, 6)
    with torch.no_grad():
        output, (h, c) = module(x)
        copies = [t.clone() for t in (output, h, c)]
        module(2 * x)
    assert all(torch.equal(a, b) for a, b in zip((output, h, c), copies, strict=True))


@some_cells
@pytest.mark.parametrize("grad", [True, False])
def test_tensors_that_are_not_contiguous(cell, grad):
    module = _module(cell, 6, batch_first=True)
    for parameter in module.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.t().contiguous().t()
    plain = _module(cell, 6, "reference", batch_first=True)
    x = torch.randn(6, 3, 5).permute(1, 2, 0)  # (B, T, I)
    with torch.set_grad_enabled(grad):
        found = [{"output": m.double()(x.double())[0]} for m in (module, plain)]
    assert_equal_in_float64(*found)


@pytest.mark.parametrize("grad", [True, False])
def test_parametrized_weights(grad):
    results = {}
    for backend in ("cpp", "reference"):
        module = _module(cells.GRU, 6, backend).double()
        parametrizations.weight_norm(module, "weight_hh_l0")
        with torch.set_grad_enabled(grad):
            results[backend] = _run(module, torch.randn(5, 2, 6, generator=torch.manual_seed(3)))
    assert_equal_in_float64(results["cpp"], results["reference"])


def test_one_step():
    torch.manual_seed(0)
    cell = fused_rnn.GRUCell(5, 7, backend="cpp").double()
    plain = fused_rnn.GRUCell(5, 7, backend="reference").double()
    plain.load_state_dict(cell.state_dict())
    x, h = torch.randn(2, 3, 5).double(), torch.randn(3, 7).double()
    with torch.no_grad():
        got, want = {"h": cell(x[0], h)}, {"h": plain(x[0], h)}
        assert_equal_in_float64(got, want)
        assert_equal_in_float64({"h": cell(x[1])}, {"h": plain(x[1])})


OTHER_WAYS = {
    "bfloat16": ({}, {"dtype": torch.bfloat16}),
    "projection": ({"proj_size": 3}, {}),
    "sequence": ({"backend": "sequence"}, {}),
    "no compiler": ({"backend": "auto"}, {}),
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_what_takes_another_way(way):
    arguments, converted = OTHER_WAYS[way]
    module = _module(cells.PEEPHOLE_LSTM, 6, **arguments).to(**converted)
    reason = (
        "no compiler"
        if way == "no compiler"
        else engine.why_not(module.cell, torch.device("cpu"), torch.float32)
    )
    x = torch.randn(4, 2, 6).to(**converted)
    with (
        mock.patch.object(engine, "layer", wraps=engine.layer) as layer,
        mock.patch.object(engine, "why_not", return_value=reason),
    ):
        module(x)
        torch.func.vmap(module)(x.unsqueeze(1))
    # Without an h0 to multiply, a projection is nothing but another recurrent matrix.
    assert layer.call_count == (way == "projection")


def test_raw_gates_take_another_way():
    cell = next(cell for cell in ours.ALL if cell.raw_gates)
    assert not choose.takes_input("cpp", cell, [torch.randn(2, 1, 3)])


def test_a_cell_without_input():
    """Gates that have recurrent parts only."""
    cell = Cell("ticking", lambda pre, state: pre[0].tanh(), gates=("n",), x_gates=())
    assert not choose.takes_input("cpp", cell, [torch.randn(2, 1, 3)])
