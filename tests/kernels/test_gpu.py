"""On a GPU: the compiled kernels against the reference and against torch.nn under cuDNN."""

import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn import cells, plan
from tests.support.cells import BUILTIN, name_of
from tests.support.problems import make_problem
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

pytestmark = pytest.mark.gpu

PAIRS = (
    (fused_rnn.LSTM, nn.LSTM, {}),
    (fused_rnn.GRU, nn.GRU, {}),
    (fused_rnn.RNN, nn.RNN, {}),
    (fused_rnn.RNN, nn.RNN, {"nonlinearity": "relu"}),
)


@pytest.fixture(autouse=True)
def _exact_products():
    """TF32, which both use by default, would drown what is compared here."""
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    yield
    torch.backends.cudnn.rnn.fp32_precision = before


@pytest.mark.parametrize("strategy", plan.STRATEGIES)
@pytest.mark.parametrize("H", (1, 17, 64))
@pytest.mark.parametrize(
    "dtype", (torch.float32, torch.bfloat16, torch.float16, torch.float64), ids=name_of
)
@pytest.mark.parametrize("cell", BUILTIN, ids=name_of)
def test_kernels_against_the_reference(cell, dtype, H, strategy):
    problem = make_problem(cell, 5, 19, H, D=2, dtype=dtype, device="cuda")
    with plan.use_strategy(strategy):
        got = problem.run("triton")
    exact = problem.to(torch.float64).run("reference")
    if dtype == torch.float64:
        assert_equal_in_float64(got, exact, cell.name)
    else:
        assert_as_good_as_eager(got, problem.run("reference"), exact, cell.name)


@pytest.mark.parametrize("H", (64, 300))
@pytest.mark.parametrize(("ours", "theirs", "options"), PAIRS, ids=str)
def test_modules_against_cudnn(ours, theirs, options, H):
    """Outputs, finals and all gradients; cuDNN's error against float64 is the measure."""
    sizes = (24, H, 2)
    exact = theirs(*sizes, bidirectional=True, dtype=torch.float64, device="cuda", **options)
    results = []
    for kind, dtype in ((ours, torch.float32), (theirs, torch.float32), (theirs, torch.float64)):
        module = kind(*sizes, bidirectional=True, dtype=dtype, device="cuda", **options)
        module.load_state_dict(exact.state_dict())
        x = torch.randn(7, 5, 24, generator=torch.Generator().manual_seed(1)).to("cuda", dtype)
        output, hn = module(x.requires_grad_())
        finals = hn if isinstance(hn, tuple) else (hn,)
        loss = output.square().sum() + sum(final.sin().sum() for final in finals)
        gradients = torch.autograd.grad(loss, (x, *module.parameters()))
        names = ("dx", *(f"d{name}" for name, _ in module.named_parameters()))
        states = {f"final {i}": final for i, final in enumerate(finals)}
        found = dict(zip(names, gradients, strict=True))
        results.append({"output": output, **states, **found})
    assert_as_good_as_eager(*results, name=ours.__name__)


@pytest.mark.parametrize("strategy", plan.STRATEGIES)
def test_capture_and_replay(strategy):
    module = fused_rnn.PeepholeLSTM(16, 32, device="cuda", backend="triton")
    x, g = torch.randn(6, 4, 16, device="cuda"), torch.randn(6, 4, 32, device="cuda")

    def step():
        output, _ = module(x)
        return (output, *torch.autograd.grad(output, list(module.parameters()), g))

    with plan.use_strategy(strategy):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()  # compiles
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = step()
        x.copy_(torch.randn_like(x))
        graph.replay()
        for got, want in zip(captured, step(), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("strategy", plan.STRATEGIES)
def test_two_streams(strategy):
    problems = [make_problem(cells.LSTM, 50, 33, 64, device="cuda", seed=s) for s in (0, 1)]
    with plan.use_strategy(strategy):
        want = [problem.run("triton") for problem in problems]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in problems]
        got = []
        for problem, stream in zip(problems, streams, strict=True):
            with torch.cuda.stream(stream):
                got.append(problem.run("triton"))
        torch.cuda.synchronize()
    for one, other in zip(got, want, strict=True):
        for name, value in one.items():
            assert torch.equal(value, other[name]), name


def test_auto_is_triton():
    module = fused_rnn.LSTM(8, 16, device="cuda")
    x = torch.randn(3, 2, 8, device="cuda")
    with fused_rnn.use_backend("triton"):
        want = module(x)[0]
    assert torch.equal(module(x)[0], want)
