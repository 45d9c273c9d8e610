"""Modules of cells without products, with gates that no product reaches, and with ``Param``s."""

import copy
import itertools

import pytest
import torch
from torch import nn, sigmoid, tanh
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import tests.support.cells as ours
from fused_rnn import Cell, Recurrent, RecurrentCell, Stage, explain
from tests.cells.test_operations import CPP
from tests.support.cells import LEAKING, LEAKING_ALONE
from tests.support.problems import run_module
from tests.support.tolerances import assert_equal_in_float64

BACKENDS = ["auto", "sequence", "reference", pytest.param("cpp", marks=CPP)]
backends = pytest.mark.parametrize("backend", BACKENDS)


both = pytest.mark.parametrize("cell", [LEAKING, LEAKING_ALONE], ids=ours.name_of)


def _loop(module, x, suffix="_l0", reverse=False):
    """The oracle: one layer in one direction, x (T, I) without a batch."""

    def tensor(name):
        return getattr(module, name + suffix)

    (w_first, w_second), (b_first, b_second) = (
        tensor("weight_ih").chunk(2),
        tensor("bias_ih").chunk(2),
    )
    h, rows = x.new_zeros(module.hidden_size), []
    for row in x.flip(0) if reverse else x:
        pre = w_first @ row + b_first + w_second @ row + b_second
        if module.cell is LEAKING:
            matrix = tensor("weight_hh")
            pre = pre + (matrix - torch.diag(matrix.diagonal())) @ h + tensor("bias_hh")
        h = (1 - tensor("rate") / tensor("period")) * h + tensor("scale") * tanh(pre)
        rows.append(h)
    return torch.stack(rows[::-1] if reverse else rows), h


class _ByRow(nn.Module):
    """The oracle of a stack in two directions, whose rows have these lengths and resets."""

    def __init__(self, module, lengths, cuts):
        super().__init__()
        self.module, self.lengths, self.cuts = module, lengths, cuts

    def forward(self, x, hx):
        finals = []
        for layer in range(self.module.num_layers):
            rows, ends = [], []
            for b, length in enumerate(self.lengths):
                bounds = [0, *(cut for cut in self.cuts if cut < length), length]
                parts = []
                for begin, end in itertools.pairwise(bounds):
                    some = x[begin:end, b]
                    parts.append(
                        [
                            _loop(self.module, some, f"_l{layer}", False),
                            _loop(self.module, some, f"_l{layer}_reverse", True),
                        ]
                    )
                output = torch.cat([torch.cat([f[0], r[0]], 1) for f, r in parts])
                rows.append(nn.functional.pad(output, (0, 0, 0, len(x) - length)))
                ends.append(torch.stack([parts[-1][0][1], parts[0][1][1]]))
            x = torch.stack(rows, 1)
            finals.append(torch.stack(ends, 1))
        return x, torch.cat(finals)


def _renamed(results):
    return {name.replace("dmodule.", "d"): value for name, value in results.items()}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", ["plain", "lengths", "resets", "packed"])
@backends
@both
def test_numbers_and_gradients(cell, backend, kind, recompute):
    module = Recurrent(
        cell, 3, 4, 2, bidirectional=True, dtype=torch.float64, recompute=recompute, backend=backend
    )
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    lengths = [3, 5, 1] if kind in ("lengths", "packed") else [5, 5, 5]
    cuts = [2] if kind == "resets" else []
    want = _renamed(run_module(_ByRow(module, lengths, cuts), x))
    options = {}
    if kind == "lengths":
        options["lengths"] = torch.tensor(lengths)
    if kind == "resets":
        options["reset"] = torch.arange(5)[:, None].expand(5, 3) == 2
    run = module
    if kind == "packed":

        class Packed(nn.Module):
            def __init__(self):
                super().__init__()
                self.module = module

            def forward(self, x, hx):
                packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
                output, final = module(packed, hx)
                return pad_packed_sequence(output, total_length=len(x))[0], final

        run = Packed()
    assert_equal_in_float64(_renamed(run_module(run, x, **options)), want)


@pytest.mark.parametrize("backend", ["auto", "sequence"])
@pytest.mark.parametrize(
    "cell",
    [LEAKING, LEAKING_ALONE, ours.GATED_AVERAGE, ours.MULTIPLICATIVE_LSTM, ours.ATTENTIVE_GRU],
    ids=ours.name_of,
)
def test_derivatives(cell, backend):
    """The first and the second, in the input, the first state and every parameter."""
    module = Recurrent(cell, 2, 2, dtype=torch.float64, backend=backend)
    named = dict(module.named_parameters())
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    h = torch.randn(1, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(x, h, *parameters):
        tensors = dict(zip(named, parameters, strict=True))
        hx = (h, *[2 * h] * (len(cell.states) - 1)) if len(cell.states) > 1 else h
        return torch.func.functional_call(module, tensors, (x, hx))[0]

    assert gradcheck(run, (x, h, *named.values()), fast_mode=True)
    assert gradgradcheck(run, (x, h, *named.values()), fast_mode=True)


@both
def test_torch_compile_and_export(cell):
    module, x = Recurrent(cell, 3, 4, 2, bidirectional=True), torch.randn(5, 2, 3)
    want = run_module(copy.deepcopy(module), x)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for name, value in run_module(compiled, x).items():
        torch.testing.assert_close(value, want[name.replace("_orig_mod.", "")])
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x)[0], want["output"])


@both
def test_one_step(cell):
    layer = Recurrent(cell, 3, 4, dtype=torch.float64)
    step = RecurrentCell(cell, 3, 4, dtype=torch.float64)
    step.load_state_dict({n.removesuffix("_l0"): t for n, t in layer.state_dict().items()})
    x, h = torch.randn(2, 3).double(), torch.randn(2, 4).double()
    for step.backend in ("auto", "sequence", "reference"):
        assert_equal_in_float64({"h": step(x, h)}, {"h": layer(x[None], h[None])[1][0]})


def test_a_weight_is_made_once_per_forward_of_a_layer():
    calls = []

    def counted(matrix):
        calls.append(matrix.shape)
        return matrix.tril()

    stages = (Stage(("n",), weight=counted),)
    cell = Cell("counted", lambda pre, state: tanh(pre[0]), ("n",), stages=stages)
    module = Recurrent(cell, 3, 4, 2, bidirectional=True)
    module(torch.randn(5, 2, 3))[0].sum().backward()
    assert calls == [(4, 4)] * 4
    assert not module.weight_hh_l0.grad.triu(1).any()


def test_a_param_with_a_parametrization():
    class Positive(nn.Module):
        def forward(self, raw):
            return nn.functional.softplus(raw)

    module, x = Recurrent(LEAKING, 3, 4, dtype=torch.float64), torch.randn(2, 1, 3).double()
    plain = copy.deepcopy(module)
    parametrize.register_parametrization(module, "scale_l0", Positive())
    with torch.no_grad():
        plain.scale_l0.copy_(nn.functional.softplus(plain.scale_l0))
    assert_equal_in_float64({"h": module(x)[0]}, {"h": plain(x)[0]})
    module.reset_parameters()
    assert module.scale_l0.shape == ()


def test_autocast():
    module, x = Recurrent(LEAKING, 3, 4), torch.randn(4, 2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        output = module(x)[0]
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), module(x)[0], rtol=0.05, atol=0.05)


RAW = Cell(
    "raw_average", lambda pre, state: 0.5 * (pre[0] + state[0]), ("x",), raw_gates=("x",), stages=()
)


@pytest.mark.parametrize("bias", [True, False])
def test_a_cell_of_raw_gates_alone(bias):
    """With no bias it has no tensor at all."""
    module = Recurrent(RAW, 3, 3, bias=bias)
    assert list(module.state_dict()) == ["bias_ih_l0"] * bias
    x, h = torch.randn(4, 2, 3), torch.zeros(2, 3)
    added = module.bias_ih_l0 if bias else 0
    for row, output in zip(x, module(x)[0], strict=True):
        h = 0.5 * (row + added + h)
        torch.testing.assert_close(output, h)
    step = RecurrentCell(RAW, 3, 3, bias=bias)
    assert step(x[0], h).shape == (2, 3)
    assert explain(module, 4, 2).backend in ("cpp", "sequence")


def _shown_lstm(names):
    """The LSTM with a gate e that no product reaches, its gates in this order."""

    def step(pre, state):
        i, f, g, o, e = (pre[names.index(name)] for name in ("i", "f", "g", "o", "e"))
        c = sigmoid(f) * state[1] + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c) * sigmoid(e), c

    stages = (Stage(("i", "f", "g", "o")),)
    return Cell(
        "shown_lstm", step, names, ("h", "c"), x_gates=("e", "i", "f", "g", "o"), stages=stages
    )


@backends
@pytest.mark.parametrize(
    "options",
    [
        {"proj_size": 2},
        {"proj_size": 2, "bidirectional": True, "num_layers": 2},
        {"recompute": True},
    ],
    ids=str,
)
def test_a_gate_stands_where_it_likes(options, backend):
    last, first = _shown_lstm(("i", "f", "g", "o", "e")), _shown_lstm(("e", "i", "f", "g", "o"))
    made = Recurrent(last, 3, 4, dtype=torch.float64, backend="reference", **options)
    other = Recurrent(first, 3, 4, dtype=torch.float64, backend=backend, **options)
    other.load_state_dict(made.state_dict())
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    rows = 2 * made.num_layers if made.bidirectional else 1
    hx = [torch.randn(rows, 2, made._width(i), dtype=torch.float64) for i in range(2)]
    assert_equal_in_float64(run_module(other, x, hx), run_module(made, x, hx))


def _summed(pre, state):
    c = state[1] + pre[0]
    return tanh(c), c


# Nothing reads its output.
SUMMED = Cell("summed", _summed, gates=("n",), states=("h", "c"), stages=())


@pytest.mark.parametrize("cell", [SUMMED, ours.ATTENTIVE_GRU, LEAKING_ALONE], ids=ours.name_of)
def test_no_projection_where_no_product_alone_reads_the_output(cell):
    with pytest.raises(ValueError, match=f"proj_size: cell {cell.name!r} cannot have a projection"):
        Recurrent(cell, 3, 4, proj_size=2)
    with pytest.raises(RuntimeError, match='backend "aten" cannot run cell'):
        Recurrent(cell, 3, 4, backend="aten")(torch.randn(2, 1, 3))
