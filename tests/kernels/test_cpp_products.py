"""Products over all rows of a sequence by the C++ engine, and where they are used."""

from unittest import mock

import pytest
import torch
from fused_rnn.kernels.cpu import compiler, engine
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn
import tests.support.cells as ours
from fused_rnn.cells import heads
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

if compiler.find() is None:
    pytest.skip(compiler.why_not(), allow_module_level=True)

both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=ours.name_of)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (100, 130, 70), (300, 64, 96), (0, 3, 4)])
@both_dtypes
def test_product(shape, dtype):
    rows, inner, columns = shape
    a, w = torch.randn(rows, inner, dtype=dtype), torch.randn(columns, inner, dtype=dtype)
    exact, eager = functional.linear(a.double(), w.double()), functional.linear(a, w)
    for matrix in (w.t(), w.t().contiguous(), w.repeat(1, 2)[:, :inner].t()):
        got = engine.product(a, matrix)
        assert_as_good_as_eager({"c": got}, {"c": eager}, {"c": exact})


def test_long_sums_round_no_more_than_pytorch_s():
    """Summed up one by one, 1536 products would round almost three times as much."""
    a, matrix = torch.randn(24, 1536), torch.randn(1536, 160)

    def error(out):
        return (out.double() - a.double() @ matrix.double()).square().mean().sqrt()

    assert error(engine.product(a, matrix)) < 2 * error(a @ matrix)


@pytest.mark.parametrize("bias", [True, False])
def test_input_part_of_many_rows(bias):
    """Large enough for the engine's own product; also twice differentiable."""
    module = fused_rnn.GRU(64, 64, bias=bias, backend="cpp", dtype=torch.float64)
    x = torch.randn(40, 40, 64, dtype=torch.float64, requires_grad=True)
    inputs = [x, *module.parameters()]
    found = {}
    for backend in ("reference", "cpp"):
        module.backend = backend
        with mock.patch.object(engine, "product", wraps=engine.product) as product:
            first = torch.autograd.grad(module(x)[0].square().sum(), inputs)
            second = torch.autograd.grad(module(x)[0].square().sum(), inputs, create_graph=True)
            third = torch.autograd.grad(second[0].square().sum(), inputs)
        assert product.called == (backend == "cpp")
        found[backend] = {f"{n}": t for n, t in enumerate((*first, *third))}
    assert_equal_in_float64(found["cpp"], found["reference"])


# Rows, gates, units, vectors, heads: around the widths of blocks, panels and packed steps.
GRADIENTS = [
    (1, 1, 1, 1, 1),
    (5, 3, 7, 1, 1),
    (127, 1, 64, 1, 1),
    (129, 4, 33, 2, 1),
    (300, 4, 96, 1, 4),
    (257, 2, 130, 1, 2),
    (130, 3, 40, 2, 8),
    (0, 2, 8, 1, 2),
]


def _pair(rows, gates, hidden, vectors, dtype):
    """Both as parts of larger tensors, whose rows lie apart."""
    first = torch.randn(rows, gates * hidden + 3, dtype=dtype)[:, 2:-1]
    return first, torch.randn(rows, 2 * vectors * hidden, dtype=dtype)[:, : vectors * hidden]


@both_dtypes
@pytest.mark.parametrize("size", GRADIENTS, ids=str)
def test_gradient(size, dtype, threads):
    rows, gates, hidden, vectors, count = size
    pairs = [_pair(n, gates, hidden, vectors, dtype) for n in (3, rows)]
    got = engine.gradient(pairs, vectors, count)
    assert got.shape == (gates * hidden, vectors * hidden // count)
    eager = heads.gradient(pairs, vectors, count)
    if dtype == torch.float64:
        return assert_equal_in_float64({"dR": got}, {"dR": eager})
    exact = heads.gradient([(a.double(), b.double()) for a, b in pairs], vectors, count)
    assert_as_good_as_eager({"dR": got}, {"dR": eager}, {"dR": exact})


def test_gradient_of_blocks_is_that_of_the_dense_matrix():
    """The other oracle: of the product of all units, what lies in the blocks."""
    (rows, source), count = _pair(50, 3, 12, 2, torch.float64), 4
    full = (rows.t() @ source).view(3, count, 3, 2, count, 3)
    blocks = torch.stack([full[:, head, :, :, head] for head in range(count)], 1)
    got = engine.gradient([(rows, source)], 2, count)
    assert_equal_in_float64({"dR": got}, {"dR": blocks.reshape(36, 6)})


def test_values_of_other_layouts():
    """Columns that lie apart, and negated views, which have their numbers elsewhere."""
    rows, source = torch.randn(8, 40).double().t(), torch.randn(40, 6).double()
    negated = torch.randn(40, 6, dtype=torch.complex128).conj().imag
    assert negated.is_neg()
    for given in (source, source.t().contiguous().t(), negated):
        got = engine.gradient([(rows, given)], 1, 1)
        assert_equal_in_float64({"dR": got}, {"dR": rows.t() @ given})
    a = torch.randn(3, 40).double()
    assert_equal_in_float64({"c": engine.product(a, negated)}, {"c": a @ negated})


def _recurrence(**options):
    def make(dtype):
        weight = (torch.randn(4 * 64, 64 // options.get("num_heads", 1)) / 8).to(dtype)
        given = [torch.randn(40, 64, 4 * 64).to(dtype), weight, *torch.randn(2, 64, 64).to(dtype)]

        def run(x, weight, h, c, backend):
            return fused_rnn.scan("lstm", x, weight, (h, c), backend=backend, **options)[0]

        return run, given

    return make


def _layer(pack=False, **options):
    def make(dtype):
        module = fused_rnn.LSTM(64, 64, **options).to(dtype)
        lengths = torch.tensor([20] * 16 + [15] * 16)

        def run(x, *_, backend):
            module.backend = backend
            if not pack:
                return module(x)[0]
            return module(pack_padded_sequence(x, lengths))[0].data

        return run, [torch.randn(20, 32, 64).to(dtype), *module.parameters()]

    return make


@pytest.mark.parametrize(
    ("make", "calls"),
    [
        (_recurrence(), 1),
        (_recurrence(reverse=True), 1),
        (_recurrence(num_heads=4), 1),
        (_layer(), 2),
        (_layer(bidirectional=True), 3),
        (_layer(recompute=True), 1),
        (_layer(pack=True), 2),
    ],
    ids=["scan", "reverse", "heads", "layer", "bidirectional", "recompute", "packed"],
)
def test_where_gradients_are_computed(make, calls):
    results = {}
    for backend in ("cpp", "reference"):
        torch.manual_seed(0)
        run, given = make(torch.float64)
        leaves = [tensor.detach().requires_grad_() for tensor in given[:1]] + given[1:]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        with mock.patch.object(engine, "gradient", wraps=engine.gradient) as gradient:
            output = run(*leaves, backend=backend)
            weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).double()
            found = torch.autograd.grad(output, leaves, weights)
        assert gradient.call_count == (calls if backend == "cpp" else 0)
        results[backend] = {str(i): value for i, value in enumerate((output, *found))}
    assert_equal_in_float64(results["cpp"], results["reference"])


def test_pytorch_counts_its_own():
    run, given = _recurrence()(torch.float64)
    leaves = [leaf.requires_grad_() for leaf in given]
    with FlopCounterMode(display=False) as counted:
        torch.autograd.grad(run(*leaves, backend="cpp").sum(), leaves)
    # The forward, the gradient of h and that of the matrix.
    assert counted.get_total_flops() >= 3 * 2 * 40 * 64 * 4 * 64 * 64


@pytest.mark.parametrize("count", [1, 4])
def test_second_derivatives(count):
    run, given = _recurrence(num_heads=count)(torch.float64)
    leaves, results = [leaf.requires_grad_() for leaf in given], {}
    for backend in ("cpp", "reference"):
        output = run(*leaves, backend=backend)
        first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        results[backend] = {str(i): value for i, value in enumerate((*first, *second))}
    assert_equal_in_float64(results["cpp"], results["reference"])
