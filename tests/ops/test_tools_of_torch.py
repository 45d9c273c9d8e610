"""Subsystems of PyTorch that look at operations from outside: its older vmap, the meta device,
counters of FLOPs, DTensors, parametrizations.

The oracle is torch.nn, the reference loop, or one cotangent after the other.
"""

import copy
import os
import socket

import pytest
import torch
from torch import nn
from torch.autograd import functional
from torch.distributed.tensor import (
    DTensor,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
    init_device_mesh,
)
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn
import tests.support.cells as ours
from tests.support.problems import make_problem
from tests.support.tolerances import assert_equal_in_float64

float64 = torch.float64
backends = pytest.mark.parametrize("backend", ["cpp", "sequence"])


def _assert_batched(outputs, inputs, members=3):
    """Gradients of many cotangents at once, and their own derivatives, against one by one."""
    outputs = [output for output in outputs if output.requires_grad]
    cotangents = [torch.randn(members, *o.shape, dtype=o.dtype) for o in outputs]

    def gradients(cotangents, **options):
        options |= {"create_graph": True, "materialize_grads": True}
        return torch.autograd.grad(outputs, inputs, cotangents, **options)

    each = [gradients([c[n] for c in cotangents]) for n in range(members)]
    pair = (
        gradients(cotangents, is_grads_batched=True),
        [*map(torch.stack, zip(*each, strict=True))],
    )
    firsts, seconds = [], []
    for found in pair:
        firsts.append({str(i): g.detach() for i, g in enumerate(found)})
        total = sum(g.square().sum() for g in found)
        more = torch.autograd.grad(total, inputs, retain_graph=True, materialize_grads=True)
        seconds.append({str(i): g for i, g in enumerate(more)})
    assert_equal_in_float64(*firsts, "first")
    assert_equal_in_float64(*seconds, "second")


@backends
@pytest.mark.parametrize("cell", ours.ALL, ids=ours.name_of)
def test_batched_cotangents_of_cells(cell, backend):
    leaves = (problem := make_problem(cell, 3, 2, 4, D=2, dtype=float64)).leaves()
    _assert_batched(problem.outputs(leaves, backend).values(), [*leaves.values()])


MODULES = {
    "rnn": (fused_rnn.RNN, {}),
    "lstm": (fused_rnn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "projection": (fused_rnn.LSTM, {"proj_size": 2}),
    "gru": (fused_rnn.GRU, {"recompute": True}),
    "peepholes": (fused_rnn.PeepholeLSTM, {"recompute": True, "bidirectional": True}),
}


@backends
@pytest.mark.parametrize("what", ["plain", "lengths", "packed"])
@pytest.mark.parametrize("name", MODULES)
def test_batched_cotangents_of_modules(name, what, backend):
    kind, options = MODULES[name]
    module = kind(4, 5, dtype=float64, backend=backend, **options)
    x, lengths = torch.randn(3, 4, 4, dtype=float64, requires_grad=True), torch.tensor([2, 0, 3, 1])
    if what == "packed":
        lengths = lengths.clamp(min=1)
        output, hn = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
        output = output.data
    elif what == "lengths":
        output, hn = module(x, lengths=lengths, reset=x[..., 0] > 1)
    else:
        output, hn = module(x)
    _assert_batched([output, *(hn if isinstance(hn, tuple) else [hn])], [x, *module.parameters()])


def test_batched_cotangents_in_the_kernels(interpreter):
    """The interpreter computes float32: against the C++-free path one by one, by allclose."""
    module = fused_rnn.PeepholeLSTM(4, 5, bidirectional=True, backend="triton")
    x = torch.randn(3, 2, 4, requires_grad=True)
    output, inputs = module(x)[0], [x, *module.parameters()]
    cotangents = torch.randn(3, *output.shape)
    got = torch.autograd.grad(output, inputs, cotangents, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(output, inputs, c, retain_graph=True) for c in cotangents]
    torch.testing.assert_close(
        got, tuple(map(torch.stack, zip(*each, strict=True))), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("backend", ["auto", "sequence"])
@pytest.mark.parametrize("kind", [fused_rnn.GRU, fused_rnn.PeepholeLSTM])
def test_functions_made_of_batched_cotangents(kind, backend):
    module = kind(2, 3, dtype=float64, bidirectional=True, backend=backend)
    x = torch.randn(3, 2, 2, dtype=float64, requires_grad=True)

    def output(x, *_):
        return module(x)[0]

    def size(x):
        return output(x).square().sum()

    inputs = (x, *module.parameters())
    assert torch.autograd.gradcheck(output, inputs, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(output, inputs, check_batched_grad=True)
    for of, function in ((functional.jacobian, output), (functional.hessian, size)):
        got, want = of(function, x, vectorize=True), of(function, x)
        assert_equal_in_float64({"": got}, {"": want}, of.__name__)
    inner = {True: None, False: None}
    for vectorize in inner:
        inner[vectorize] = functional.jacobian(
            lambda x, v=vectorize: functional.jacobian(
                lambda x: output(x)[-1], x, vectorize=v, create_graph=True
            ),
            x,
            vectorize=vectorize,
        )
    assert_equal_in_float64({"": inner[True]}, {"": inner[False]}, "jacobian of a jacobian")


def test_batched_cotangents_of_other_levels():
    """Two levels of the older vmap, torch.func's over a gradient, and a checkpoint."""
    module = fused_rnn.GRU(2, 3, dtype=float64, backend="cpp")
    x = torch.randn(3, 2, 2, dtype=float64, requires_grad=True)
    cotangents = torch.randn(4, 5, 3, 2, 3, dtype=float64)

    def gradient(output, cotangent, **options):
        return torch.autograd.grad(output, x, cotangent, retain_graph=True, **options)[0]

    output = module(x)[0]
    want = torch.stack([torch.stack([gradient(output, c) for c in row]) for row in cotangents])
    nested = torch._vmap_internals._vmap(lambda c: gradient(output, c, is_grads_batched=True))
    assert_equal_in_float64({"": nested(cotangents)}, {"": want}, "nested")
    mapped = torch.func.vmap(torch.func.vmap(lambda c: gradient(output, c)))
    assert_equal_in_float64({"": mapped(cotangents)}, {"": want}, "torch.func")
    saved = checkpoint(lambda x: module(x)[0], x, use_reentrant=False)
    (got,) = torch.autograd.grad(saved, x, cotangents[0], is_grads_batched=True)
    assert_equal_in_float64({"": got}, {"": want[0]}, "checkpoint")


def _facts(run, inputs):
    """What is known of results and gradients without their values."""
    outputs = torch.utils._pytree.tree_leaves(run())
    gradients = torch.autograd.grad(outputs, inputs, [torch.ones_like(o) for o in outputs])
    return [(o.shape, o.dtype, o.stride()) for o in outputs] + [
        (g.shape, g.dtype) for g in gradients
    ]


@pytest.mark.parametrize("backend", ["auto", "triton", "cpp", "sequence", "reference"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("RNN", {}),
        ("LSTM", {"num_layers": 2, "bidirectional": True, "dropout": 0.5}),
        ("LSTM", {"proj_size": 2}),
        ("GRU", {"batch_first": True, "bias": False}),
        ("PeepholeLSTM", {"recompute": True}),
        ("LSTMCell", {}),
        ("GRUCell", {}),
        ("PeepholeLSTMCell", {}),
    ],
)
def test_meta_tensors(kind, options, backend):
    """With every backend, also on a machine that lacks it."""
    shape = (3, 4) if kind.endswith("Cell") else (5, 3, 4)
    facts = []
    for library, device in ((fused_rnn, "meta"), (getattr(nn, kind, None) and nn, "cpu")):
        if library is None:  # nothing of torch.nn's: as on the CPU
            library = fused_rnn
        given = {k: v for k, v in options.items() if library is fused_rnn or k != "recompute"}
        if device == "meta":
            given["backend"] = backend
        module = getattr(library, kind)(4, 6, device=device, **given)
        x = torch.randn(shape, device=device, requires_grad=True)
        facts.append(_facts(lambda m=module, x=x: m(x), [x, *module.parameters()]))
    assert facts[0] == facts[1]


@pytest.mark.parametrize("cell", ours.ALL, ids=ours.name_of)
def test_scan_of_meta_tensors(cell):
    problem = make_problem(cell, 3, 2, 4)
    facts = []
    for device in ("meta", "cpu"):
        moved = problem.to(device=device)
        leaves = moved.leaves()
        arguments = moved.scan_arguments(leaves)
        facts.append(_facts(lambda a=arguments: fused_rnn.scan(**a), [*leaves.values()]))
    assert facts[0] == facts[1]


def test_lengths_and_resets_of_meta_tensors():
    facts = []
    for device in ("meta", "cpu"):
        module = fused_rnn.GRU(4, 6, bidirectional=True, device=device)
        x = torch.randn(5, 3, 4, device=device, requires_grad=True)
        given = {"lengths": torch.tensor([5, 0, 2], device=device), "reset": x[..., 0] > 1}
        run = lambda m=module, x=x, g=given: m(x, **g, return_states=True)  # noqa: E731
        facts.append(_facts(run, [x, *module.parameters()]))
    assert facts[0] == facts[1]


def _count(module, x, grad):
    """FLOPs of a forward, and with its backward."""
    with torch.set_grad_enabled(grad), FlopCounterMode(display=False) as counter:
        found = module(x)
        forward = counter.get_total_flops()
        if grad:
            torch.utils._pytree.tree_leaves(found)[0].sum().backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("backend", ["auto", "cpp", "sequence"])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_flops_are_those_of_torch_nn(kind, backend):
    """As torch.nn's own operations are counted; oneDNN's single one of an LSTM is not."""
    for shape in ((5, 3, 4), (1, 1, 4), (5, 4)):
        for options in ({}, {"num_layers": 2, "bidirectional": True}):
            for grad, of_input in ((True, True), (True, False), (False, False)):
                x = torch.randn(shape, requires_grad=of_input)
                theirs = _count(_without_onednn(kind, options), x, grad)
                own = _count(getattr(fused_rnn, kind)(4, 6, backend=backend, **options), x, grad)
                assert own == theirs, (shape, options, grad, of_input)


def _without_onednn(kind, options):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = getattr(nn, kind)(4, 6, **options)

        def forward(self, x):
            enabled = torch._C._get_mkldnn_enabled()
            torch._C._set_mkldnn_enabled(False)
            try:
                return self.layer(x)
            finally:
                torch._C._set_mkldnn_enabled(enabled)

    return Plain()


@pytest.mark.parametrize("kind", ["PeepholeLSTM", "CIFGLSTM"])
def test_flops_of_cells_that_torch_nn_lacks(kind):
    gates = 4 if kind == "PeepholeLSTM" else 3
    for options in ({}, {"recompute": True}):
        module = getattr(fused_rnn, kind)(4, 6, **options)
        assert _count(module, torch.randn(5, 3, 4), False)[0] == 2 * 5 * 3 * gates * 6 * (4 + 6)


def _train_sharded(rank, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        for kind, options in SHARDED:
            for placement in (Replicate(), Shard(1)):
                _assert_sharded(kind, options, mesh, placement)
    finally:
        torch.distributed.destroy_process_group()


SHARDED = [
    ("RNN", {}),
    ("LSTM", {"num_layers": 2, "bidirectional": True}),
    ("GRU", {"backend": "cpp", "recompute": True}),
    ("PeepholeLSTM", {"backend": "sequence"}),
    ("Recurrent", {"cell": ours.LEAKING}),
    ("Recurrent", {"cell": ours.LEAKING_ALONE}),
]


def _assert_sharded(kind, options, mesh, placement):
    """Three rows, which two processes do not share evenly."""
    torch.manual_seed(0)
    sizes = {"input_size": 4, "hidden_size": 6}
    own = getattr(fused_rnn, kind)(**sizes, dtype=float64, **options)
    x = torch.randn(5, 3, 4, dtype=float64)
    sharded = distribute_module(copy.deepcopy(own), mesh)
    leaf = distribute_tensor(x, mesh, [placement]).requires_grad_()
    x.requires_grad_()
    results = []
    for module, input in ((sharded, leaf), (own, x)):
        if module is own:
            lengths = torch.tensor([5, 2, 1])
        else:
            rows = placement if placement == Replicate() else Shard(0)
            lengths = distribute_tensor(torch.tensor([5, 2, 1]), mesh, [rows])
        found = torch.utils._pytree.tree_leaves((module(input), module(input, lengths=lengths)))
        total = sum(output.square().sum() for output in found)
        found += torch.autograd.grad(total, [input, *module.parameters()])
        whole = [t.full_tensor() if isinstance(t, DTensor) else t for t in found]
        results.append({str(n): tensor for n, tensor in enumerate(whole)})
    assert_equal_in_float64(*results, f"{kind} {placement}")


def test_two_processes_with_their_own_rows():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_train_sharded, (port,), nprocs=2)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int32, torch.uint16, torch.uint32, torch.uint64]
)
def test_dtypes_of_lengths(dtype):
    module, x = fused_rnn.GRU(4, 6, bidirectional=True), torch.randn(5, 3, 4)
    want = module(x, lengths=torch.tensor([5, 0, 2]))
    large = 5 if dtype == torch.int8 else torch.iinfo(dtype).max
    got = module(x, lengths=torch.tensor([large, 0, 2], dtype=dtype))
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


class _Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, weight):
        self.calls += 1
        return weight * 1.5


@pytest.mark.parametrize("what", ["plain", "lengths", "step", "compiled"])
@pytest.mark.parametrize("backend", ["auto", "aten", "cpp", "sequence"])
def test_a_parametrization_is_evaluated_once(what, backend):
    if backend == "aten" and what == "lengths":
        pytest.skip("it has none")
    kind = fused_rnn.GRUCell if what == "step" else fused_rnn.GRU
    module, counted = kind(4, 6, backend=backend), []
    for name in list(module._parameters):
        counted.append(_Counted())
        parametrize.register_parametrization(module, name, counted[-1])
    for one in counted:
        one.calls = 0
    x = torch.randn(3, 4) if what == "step" else torch.randn(5, 3, 4)
    if what == "compiled":
        torch.compiler.reset()
        graphs = []

        def keep(graph, _):
            graphs.extend(str(node) for node in graph.graph.nodes if "mul" in str(node.target))
            return graph

        with torch.no_grad():
            torch.compile(module, backend=keep)(x)
        assert len(graphs) == len(counted)
        return
    module(x, lengths=torch.tensor([5, 2, 0])) if what == "lengths" else module(x)
    assert [one.calls for one in counted] == [1] * len(counted)
