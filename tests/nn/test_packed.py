"""Packed rows on the C++ loop, which leaves out what they do not reach: against the reference."""

import copy
from unittest import mock

import pytest
import torch
from fused_rnn.kernels.cpu import compiler, engine
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
import tests.support.cells as ours
from fused_rnn import Recurrent, cells
from fused_rnn.nn import packed
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

pytestmark = pytest.mark.skipif(compiler.find() is None, reason=compiler.why_not())

T, B, INPUTS = 7, 5, 6
LENGTHS = {
    "different": [7, 5, 5, 2, 1],
    "full": [7] * 5,
    "one long": [7, 1, 1, 1, 1],
    "unsorted": [2, 7, 1, 5, 5],
}
# Cells whose input projection the loop computes as well.
CELLS = [c for c in ours.ALL if not (c.streams or c.raw_gates)]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.key)


def _made(cell, hidden=9, **options):
    torch.manual_seed(0)
    return Recurrent(cell, INPUTS, hidden, backend="cpp", **options)


def _run(module, lengths, with_hx=True, second=False):
    """Outputs, and the gradients of everything: the first ones, and those of their squares."""
    generator, dtype = torch.Generator().manual_seed(1), next(module.parameters()).dtype

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    x, hx = normal(T, B, INPUTS), None
    rows = module.num_layers * module._directions
    states = [normal(rows, B, module._width(i)) for i in range(len(module.cell.states))]
    if with_hx:
        hx = states[0] if len(states) == 1 else tuple(states)
    inputs = {"x": x} | dict(module.named_parameters())
    inputs |= {f"{i}0": state for i, state in enumerate(states if with_hx else [])}
    given = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    output, finals = module(given, hx)
    outputs = [output.data, *([finals] if len(states) == 1 else finals)]
    cotangents = [torch.randn(o.shape, generator=generator).to(dtype) for o in outputs]
    results = {f"output.{i}": o for i, o in enumerate(outputs)}
    gradients = torch.autograd.grad(
        outputs, list(inputs.values()), cotangents, create_graph=second, materialize_grads=True
    )
    results |= {f"d{name}": g for name, g in zip(inputs, gradients, strict=True)}
    if second:
        squares = sum(g.square().sum() for g in gradients if g.requires_grad)
        more = torch.autograd.grad(squares, list(inputs.values()), materialize_grads=True)
        results |= {f"dd{name}": g for name, g in zip(inputs, more, strict=True)}
    return results


def _reference(module):
    other = copy.deepcopy(module)
    other.backend = "reference"
    return other


def _by_the_loop(module, *arguments, **options):
    """``_run``, all of whose layers give the loop the lengths."""
    with mock.patch.object(engine, "layer", wraps=engine.layer) as layer:
        results = _run(module, *arguments, **options)
    assert layer.call_count == module.num_layers
    assert all(call.args[-1] is not None for call in layer.call_args_list)
    return results


@pytest.mark.parametrize("which", LENGTHS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@every_cell
def test_every_output_and_gradient(cell, bidirectional, which):
    module = _made(cell, bidirectional=bidirectional, dtype=torch.float64)
    want = _run(_reference(module), LENGTHS[which])
    # Walking back, a row begins after others: the time that it counts is its own.
    run = _run if bidirectional and cell is ours.CLOCKWORK_RNN else _by_the_loop
    assert_equal_in_float64(run(module, LENGTHS[which]), want)


@pytest.mark.parametrize("hidden", [3, 70])
@pytest.mark.parametrize("name", ["lstm", "gru", "gru_reset_before"])
def test_threads(name, hidden, threads):
    """Of which each takes rows, or several one walk; more than there are rows."""
    module = _made(cells.get(name), hidden, bidirectional=True, dtype=torch.float64)
    for lengths in LENGTHS.values():
        want = _run(_reference(module), lengths)
        assert_equal_in_float64(_by_the_loop(module, lengths), want)


OPTIONS = {
    "layers": {"num_layers": 3},
    "both ways": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False, "bidirectional": True},
    "projection": {"proj_size": 4, "num_layers": 2, "bidirectional": True},
}


@pytest.mark.parametrize("with_hx", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options(options, with_hx):
    module = _made(cells.LSTM, dtype=torch.float64, **options)
    want = _run(_reference(module), LENGTHS["unsorted"], with_hx)
    # With a projection, states that are given are multiplied before: another way.
    run = _run if with_hx and "proj_size" in options else _by_the_loop
    assert_equal_in_float64(run(module, LENGTHS["unsorted"], with_hx), want)


@pytest.mark.parametrize("cell", [cells.LSTM, cells.GRU], ids=ours.name_of)
def test_float32_is_as_good_as_eager(cell):
    module = _made(cell, 33, bidirectional=True)
    eager, exact = _reference(module), _reference(module).double()
    lengths = LENGTHS["different"]
    results = [_run(other, lengths) for other in (eager, exact)]
    assert_as_good_as_eager(_by_the_loop(module, lengths), *results)


@pytest.mark.parametrize("cell", [cells.LSTM, cells.GRU_RESET_BEFORE], ids=ours.name_of)
def test_gradients_of_gradients(cell):
    module = _made(cell, 4, bidirectional=True, dtype=torch.float64)
    want = _run(_reference(module), LENGTHS["different"], second=True)
    assert_equal_in_float64(_by_the_loop(module, LENGTHS["different"], second=True), want)


def test_outputs_without_gradients_have_the_same_bits():
    module = _made(cells.LSTM, num_layers=2, bidirectional=True)
    given = pack_padded_sequence(torch.randn(T, B, INPUTS), LENGTHS["different"])
    output, (h, c) = module(given)
    with torch.no_grad():
        again, (h2, c2) = module(given)
    assert torch.equal(output.data, again.data)
    assert torch.equal(h, h2)
    assert torch.equal(c, c2)


def _padded(module, x, lengths):
    with torch.no_grad():
        output, hn = module(pack_padded_sequence(x, lengths))
    return torch.nn.utils.rnn.pad_packed_sequence(output)[0], hn


def test_rows_are_those_of_rows_alone():
    """Not bit for bit: a single step sums its products in another order."""
    module = _made(cells.GRU, bidirectional=True).double()
    x, lengths = torch.randn(T, B, INPUTS).double(), LENGTHS["different"]
    padded, hn = _padded(module, x, lengths)
    for row, length in enumerate(lengths):
        with torch.no_grad():
            alone, last = module(x[:length, row : row + 1])
        got = {"output": padded[:length, row : row + 1], "h": hn[:, row : row + 1]}
        assert_equal_in_float64(got, {"output": alone, "h": last}, f"row {row}")


def test_no_row_sees_another():
    """Bit for bit: nor what lies beyond its own end."""
    module = _made(cells.GRU, bidirectional=True)
    x, lengths = torch.randn(T, B, INPUTS), LENGTHS["different"]
    padded, hn = _padded(module, x, lengths)
    for row, length in enumerate(lengths):
        others = torch.full_like(x, float("nan"))
        others[:length, row] = x[:length, row]
        again, last = _padded(module, others, lengths)
        assert torch.equal(padded[:, row], again[:, row])
        assert torch.equal(hn[:, row], last[:, row])


def test_dropout_draws_torch_nns_numbers():
    """In training, between the layers, on packed data."""
    torch.manual_seed(0)
    theirs = torch.nn.GRU(INPUTS, 9, 2, dropout=0.5, dtype=torch.float64)
    mine = fused_rnn.convert(copy.deepcopy(theirs), backend="cpp")
    given = pack_padded_sequence(torch.randn(T, B, INPUTS).double(), LENGTHS["different"])
    results = []
    for module in (mine, theirs):
        torch.manual_seed(5)
        results.append({"output": module(given)[0].data})
    assert_equal_in_float64(*results)


def test_what_takes_another_way():
    given = pack_padded_sequence(torch.randn(T, B, INPUTS), LENGTHS["different"])
    modules = {
        "16 bits": _made(cells.GRU).bfloat16(),
        "recompute": _made(cells.GRU, recompute=True),
        "sequence": _made(cells.GRU),
    }
    modules["sequence"].backend = "sequence"
    for way, module in modules.items():
        own = given
        if way == "16 bits":
            own = given._replace(data=given.data.bfloat16())
        with mock.patch.object(packed, "_differentiable") as taken:
            module(own)
        assert not taken.called
