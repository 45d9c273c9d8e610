"""torch.compile and torch.export of modules and transforms, with batch and length left open."""

import dataclasses
import io

import pytest
import torch
from functorch.compile import aot_module_simplified, make_boxed_func
from torch import func
from torch._dynamo.testing import CompileCounter
from torch.export import Dim
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
import tests.support.cells as ours
from fused_rnn import Recurrent, cells
from fused_rnn.plan import cpu

CELLS = [cell for cell in ours.ALL if not cell.streams]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=ours.name_of)
# (T, B), none of them equal to another size, which torch.compile would take for the same number.
SIZES = ((11, 6), (13, 6), (13, 7), (17, 8), (2, 19))


@pytest.fixture(autouse=True)
def _no_graphs():
    torch.compiler.reset()


def _module(cell, **options):
    return Recurrent(cell, 4, 4, 2, bidirectional=not cell.raw_gates, **options)


def _close(got, want):
    """The same operations on the same numbers, in float32 and perhaps in another order."""
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@every_cell
def test_one_graph_for_every_batch_and_length(cell):
    counter = CompileCounter()
    module = _module(cell)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    for T, B in SIZES:
        x = torch.randn(T, B, 4)
        output, _ = compiled(x)
        output.sum().backward()
        _close(output, module(x)[0])
    assert counter.frame_count == 1


@pytest.mark.parametrize("kind", [fused_rnn.LSTM, fused_rnn.GRU, fused_rnn.RNN])
@pytest.mark.parametrize("grad", [True, False])
def test_second_sizes_are_the_last_to_compile(kind, grad):
    """As torch.compile is used without further ado, where torch.nn's kernels run else."""
    counter = CompileCounter()
    module = kind(4, 4)
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    with torch.set_grad_enabled(grad):
        for T, B in ((11, 6), (13, 7), *SIZES):
            compiled(torch.randn(T, B, 4))
    assert counter.frame_count == 2


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (fused_rnn.LSTM, {}),
        (fused_rnn.LSTM, {"proj_size": 2}),
        (fused_rnn.GRU, {"bias": False}),
        (fused_rnn.RNN, {"nonlinearity": "relu"}),
    ],
)
def test_torchs_kernels_are_one_op_where_nothing_is_differentiated(kind, options, monkeypatch):
    monkeypatch.setattr(cpu, "nearest", lambda *_: None)  # then they are preferred
    graphs = []
    module = kind(4, 5, 2, bidirectional=True, dropout=0.5, **options).eval()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=_kept_in(graphs))
    for T, B in SIZES:
        x = torch.randn(T, B, 4)
        hx = [torch.randn(4, B, module._width(i)) for i in range(len(module.cell.states))]
        hx = hx[0] if len(hx) == 1 else tuple(hx)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x, hx), module(x, hx), rtol=0, atol=0)
    assert [graph.count("fused_rnn.aten.default") for graph in graphs] == [1]
    for training, differentiated in ((True, False), (False, True)):  # dropout; a derivative
        graphs.clear()
        module.train(training)
        with torch.set_grad_enabled(differentiated):
            compiled(x, hx)
        assert "fused_rnn.aten.default" not in graphs[-1]


def test_a_graph_without_torchs_kernels_where_others_are_faster(monkeypatch):
    faster = cpu.Row("gru", "float32", "inference", 50, 8, 5, 3.0)
    monkeypatch.setattr(cpu, "nearest", lambda *_: faster)
    graphs, module = [], fused_rnn.GRU(4, 5).requires_grad_(False)
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=_kept_in(graphs))
    for T, B in SIZES:
        x = torch.randn(T, B, 4)
        _close(compiled(x), module(x))
    assert len(graphs) == 1
    assert "fused_rnn.aten.default" not in graphs[0]


def _kept_in(graphs):
    def keep(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    return keep


@pytest.mark.parametrize("what", ["states", "weight"])
def test_what_is_no_parameter_may_be_differentiated(what):
    module = fused_rnn.GRU(4, 5).requires_grad_(False)
    x, h0 = torch.randn(3, 2, 4), torch.randn(1, 2, 5, requires_grad=what == "states")
    if what == "weight":
        del module.weight_hh_l0
        module.weight_hh_l0 = torch.randn(15, 5, requires_grad=True)
    leaf = h0 if what == "states" else module.weight_hh_l0
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    got, want = (torch.autograd.grad(run(x, h0)[0].sum(), leaf) for run in (compiled, module))
    _close(got, want)


def test_opcheck_of_torchs_kernels():
    module = fused_rnn.LSTM(4, 5, 2, bidirectional=True).requires_grad_(False)
    states = list(torch.randn(2, 4, 2, 5).unbind())
    flat = [weight for weights in module.all_weights for weight in weights]
    arguments = ("lstm", torch.randn(3, 2, 4), states, flat, True, 2, True)
    torch.library.opcheck(torch.ops.fused_rnn.aten.default, arguments)


def test_the_op_of_torchs_kernels_checks_projections():
    module = fused_rnn.LSTM(4, 5, proj_size=2).requires_grad_(False)
    x, (weights,) = torch.randn(3, 2, 4), module.all_weights
    states = [torch.randn(1, 2, 2), torch.randn(1, 2, 5)]
    got = torch.ops.fused_rnn.aten("lstm", x, states, weights, True, 1, False)
    torch.testing.assert_close(got[0], module(x, tuple(states))[0])
    for wrong in ([states[0], states[0]], [states[1], states[1]], states[::-1]):
        with pytest.raises(RuntimeError, match="expected"):
            torch.ops.fused_rnn.aten("lstm", x, wrong, weights, True, 1, False)


@pytest.mark.slow  # half a minute of a C++ compiler
def test_inductor():
    """PyTorch's own compiler, training and evaluation."""
    model = torch.nn.ModuleList([fused_rnn.LSTM(4, 5, 2, bidirectional=True)])
    model.append(fused_rnn.PeepholeLSTM(10, 3))

    def run(x):
        output, _ = model[0](x.sin())
        output, (h, c) = model[1](output * 2)
        return output.square().sum() + h.sum() + c.sum()

    compiled = torch.compile(run, fullgraph=True, dynamic=True)
    for T, B in SIZES[:2]:
        results = []
        for function in (compiled, run):
            x = torch.randn(T, B, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
            loss = function(x)
            results.append((loss, torch.autograd.grad(loss, (x, *model.parameters()))))
        _close(*results)
        with torch.no_grad():
            _close(compiled(x), run(x))


@every_cell
def test_export(cell):
    """With T and B left open, and back from a file."""
    module = _module(cell).eval()
    rows = 2 if cell.raw_gates else 4
    hx = tuple(torch.randn(rows, 6, 4) for _ in cell.states)
    hx = hx if len(hx) > 1 else hx[0]
    T, B = Dim("T"), Dim("B")
    states = {1: B} if isinstance(hx, torch.Tensor) else tuple({1: B} for _ in hx)
    program = torch.export.export(
        module, (torch.randn(11, 6, 4), hx), dynamic_shapes=({0: T, 1: B}, states)
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for steps, batch in (*SIZES, (1, 1), (3, 0)):
        x = torch.randn(steps, batch, 4)
        hx = tuple(torch.randn(rows, batch, 4) for _ in cell.states)
        hx = hx if len(hx) > 1 else hx[0]
        _close(loaded(x, hx), module(x, hx))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("fused_rnn.forward.default") == 2  # one a layer


def _transforms(module):
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    x, rows = torch.randn(2, 3, 4), torch.randn(5, 2, 3, 4)

    def loss(parameters, x):
        return functional_call(module, parameters, (x,))[0].square().sum()

    def outputs(x):
        return module(x)[0]

    def last(x):
        return module(x)[0][-1]

    return {
        "grad": (func.grad(loss), (parameters, x)),
        "vmap": (func.vmap(loss, (None, 0)), (parameters, rows)),
        "gradients of samples": (func.vmap(func.grad(loss), (None, 0)), (parameters, rows)),
        "vjp": (lambda x: func.vjp(outputs, x)[1](torch.ones(2, 3, 4)), (x,)),
        "jvp": (lambda x: func.jvp(outputs, (x,), (x,)), (x,)),
        "jacrev": (func.jacrev(last), (x,)),
        "jacfwd": (func.jacfwd(last), (x,)),
        "hessian": (func.hessian(lambda x: last(x).sum()), (x,)),
    }


@pytest.mark.parametrize("name", _transforms(torch.nn.Identity()))
@pytest.mark.parametrize("cell", [cells.LSTM, cells.GRU_RESET_BEFORE], ids=ours.name_of)
def test_compiled_transforms(cell, name):
    """Never a derivative that is dropped silently."""
    function, arguments = _transforms(Recurrent(cell, 4, 4))[name]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    _close(compiled(*arguments), function(*arguments))


@pytest.mark.parametrize(("cell", "backend"), [("lstm", "sequence"), ("gru_reset_before", None)])
def test_compiled_module(cell, backend):
    """One graph, with one op forward and one backward, and no new one for a third length."""
    graphs = []

    def compiler(module, inputs):
        def keep(graph, _):
            graphs.append(graph)
            return make_boxed_func(graph.forward)

        return aot_module_simplified(module, inputs, fw_compiler=keep, bw_compiler=keep)

    torch.compiler.reset()
    # A cell of its own, of which nothing is known before it is compiled.
    cell = dataclasses.replace(cells.get(cell), name=f"compiled_{cell}")
    module = fused_rnn.Recurrent(cell, 3, 4, bidirectional=True, backend=backend)
    compiled = torch.compile(module, fullgraph=True, backend=compiler)
    for steps in (3, 5, 7):
        results = []
        for run in (compiled, module):
            x = torch.randn(steps, 2, 3, generator=torch.Generator().manual_seed(1))
            output, _ = run(x.requires_grad_())
            results.append(torch.autograd.grad(output.square().sum(), (x, *module.parameters())))
        # The same operations on the same numbers.
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)
    names = [[str(node.target) for node in graph.graph.nodes] for graph in graphs]
    assert [n.count("fused_rnn.forward.default") for n in names] == [1, 0, 1, 0]
    assert [n.count("fused_rnn.backward.default") for n in names] == [0, 1, 0, 1]


@pytest.mark.parametrize("kind", [fused_rnn.LSTM, fused_rnn.PeepholeLSTM])
def test_packed_sequences(kind):
    """Their sizes are on the host, where torch.compile breaks its graph; the numbers are right."""
    module = kind(4, 5, 2, bidirectional=True)
    compiled = torch.compile(module, backend="aot_eager")
    for lengths in ([3, 7, 1], [5, 2, 2, 6]):
        results = []
        for run in (compiled, module):
            torch.manual_seed(1)
            x = torch.randn(max(lengths), len(lengths), 4, requires_grad=True)
            output, (h, c) = run(pack_padded_sequence(x, lengths, enforce_sorted=False))
            loss = output.data.square().sum() + h.sum() + c.sum()
            gradients = torch.autograd.grad(loss, (x, *module.parameters()))
            results.append((output.data, output.batch_sizes, h, c, *gradients))
        _close(*results)


@pytest.mark.parametrize("kind", [fused_rnn.LSTM, fused_rnn.PeepholeLSTM])
def test_compiled_module_follows_the_backend_in_use(kind):
    graphs = []

    def keep(graph, _):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph

    torch.compiler.reset()
    module = kind(3, 4)
    compiled, x = torch.compile(module, fullgraph=True, backend=keep), torch.randn(3, 2, 3)
    with fused_rnn.use_backend("sequence"):
        first = compiled(x)[0]
    with fused_rnn.use_backend("reference"):
        second = compiled(x)[0]
    assert ["fused_rnn.forward.default" in targets for targets in graphs] == [True, False]
    # Two float32 paths of three steps.
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)
