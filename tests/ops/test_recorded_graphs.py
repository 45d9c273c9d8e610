"""Graphs of torch.jit.trace, torch.export and make_fx: recorded with or without gradients, run with
other sizes, and trained. The oracle is the reference loop in float64."""

import pytest
import torch
from torch.export import Dim
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

import fused_rnn
from tests.support.tolerances import assert_equal_in_float64

SIZES = ((5, 3), (7, 2), (2, 9))


class Asked(torch.nn.Module):
    """A module, and what it is asked for."""

    def __init__(self, kind, asked, **options):
        super().__init__()
        self.layer = getattr(fused_rnn, kind)(4, 6, dtype=torch.float64, **options)
        self.asked = asked

    def forward(self, x):
        if self.asked == "step":
            found = self.layer(x[0])
        elif self.asked == "unbatched":
            found = self.layer(x[:, 0])
        elif self.asked == "rows":
            lengths = torch.arange(x.shape[1]) % (x.shape[0] + 1)
            found = self.layer(x, lengths=lengths, reset=x[..., 0] > 1, return_states=True)
        else:
            found = self.layer(x)
        return torch.utils._pytree.tree_leaves(found)


def _trace(module, x):
    traced = torch.jit.trace(module, (x,))
    return lambda parameters, x: traced(x), lambda: dict(traced.named_parameters())


def _export(module, x):
    dims = ({0: Dim("T", min=2), 1: Dim("B", min=2)},)
    made = torch.export.export(module, (x,), dynamic_shapes=dims).module()
    return lambda parameters, x: made(x), lambda: dict(made.named_parameters())


def _make_fx(module, x):
    def call(parameters, x):
        return functional_call(module, parameters, (x,))

    graph = make_fx(call, tracing_mode="symbolic")(dict(module.named_parameters()), x)
    return graph, lambda: dict(module.named_parameters())


CASES = [
    ("RNN", "plain", {}),
    ("LSTM", "plain", {"num_layers": 2, "bidirectional": True}),
    ("LSTM", "unbatched", {"proj_size": 2}),
    ("GRU", "rows", {"backend": "cpp"}),
    ("PeepholeLSTM", "plain", {"recompute": True}),
    ("PeepholeLSTM", "rows", {"bidirectional": True, "backend": "sequence"}),
    ("LSTMCell", "step", {}),
    ("PeepholeLSTMCell", "step", {}),
]


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("record", [_trace, _export, _make_fx])
@pytest.mark.parametrize(("kind", "asked", "options"), CASES)
def test_recorded_then_trained_with_other_sizes(kind, asked, options, record, grad):
    module = Asked(kind, asked, **options)
    with torch.set_grad_enabled(grad):
        run, parameters = record(module, torch.randn(5, 3, 4, dtype=torch.float64))
    for T, B in SIZES:
        x = torch.randn(T, B, 4, dtype=torch.float64, requires_grad=True)
        results = []
        for reference in (False, True):
            own = dict(module.named_parameters()) if reference else parameters()
            if reference:
                module.layer.backend = "reference"
                outputs = module(x)
                module.layer.backend = options.get("backend")
            else:
                outputs = run(own, x)
            total = sum((o * (1 + n)).square().sum() for n, o in enumerate(outputs))
            gradients = torch.autograd.grad(total, [x, *own.values()])
            found = {str(n): output for n, output in enumerate(outputs)}
            results.append(found | dict(zip(["dx", *own], gradients, strict=True)))
        assert_equal_in_float64(*results, f"{T}, {B}")
        with torch.no_grad():
            again = {str(n): output for n, output in enumerate(run(parameters(), x))}
        assert_equal_in_float64(again, {name: results[1][name] for name in again})


@pytest.mark.parametrize("kind", ["GRU", "PeepholeLSTM"])
def test_gradients_of_gradients_of_a_recorded_graph(kind):
    module, x = Asked(kind, "plain"), torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        traced = torch.jit.trace(module, (x,))
    results = []
    for run in (traced, module):
        (once,) = torch.autograd.grad(run(x)[0].square().sum(), x, create_graph=True)
        inputs = [x, *run.parameters()]
        twice = torch.autograd.grad(once.square().sum(), inputs, materialize_grads=True)
        results.append({str(n): g for n, g in enumerate(twice)})
    assert_equal_in_float64(*results)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU", "PeepholeLSTM"])
def test_the_grad_mode_is_no_part_of_a_graph(kind):
    module, x = Asked(kind, "plain"), torch.randn(5, 3, 4, dtype=torch.float64)
    nodes = []
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            program = torch.export.export(module, (x,))
        nodes.append([(str(node.target), str(node.args)) for node in program.graph.nodes])
    assert nodes[0] == nodes[1]
