"""The modules that are more than a cell's name, with PyTorch's tools and the kernels."""

import copy
import io
import pickle

import pytest
import torch
from torch.export import Dim
from torch.utils import _pytree as pytree

import fused_rnn
from tests.support.problems import run_module
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

T, B, I, H = 4, 3, 5, 6  # noqa: E741
MAKE = {
    "BlockGRU": lambda **options: fused_rnn.BlockGRU(I, H, 2, num_heads=2, **options),
    "ClockworkRNN": lambda **options: fused_rnn.ClockworkRNN(I, H, 2, groups=3, **options),
    "DepthGatedLSTM": lambda **options: fused_rnn.DepthGatedLSTM(I, H, 2, **options),
    "GridLSTM": lambda **options: fused_rnn.GridLSTM(I, H, 2, **options),
    "GridLSTM, tied": lambda **options: fused_rnn.GridLSTM(I, H, 2, tied=True, **options),
    "LayerNormGRU": lambda **options: fused_rnn.LayerNormGRU(I, H, 2, **options),
    "LayerNormLSTM": lambda **options: fused_rnn.LayerNormLSTM(I, H, 2, **options),
    "SLSTM": lambda **options: fused_rnn.SLSTM(I, H, 2, num_heads=2, **options),
}
STACKS = ("DepthGatedLSTM", "GridLSTM", "GridLSTM, tied")
every_module = pytest.mark.parametrize("name", MAKE)


def leaves(results):
    return {str(i): t for i, t in enumerate(pytree.tree_leaves(results))}


def same(got, want):
    for name, value in leaves(got).items():
        torch.testing.assert_close(value, leaves(want)[name])


@every_module
@pytest.mark.parametrize("asked", [False, True])
def test_by_the_kernels(interpreter, name, asked):
    """Outputs and every gradient, in the interpreter; with lengths and resets, and without."""
    module = MAKE[name](backend="triton", dtype=torch.float64)
    x, given = torch.randn(T, B, I), {}
    if asked:
        given = {"lengths": torch.tensor([3, 0, 4]), "reset": torch.rand(T, B) < 0.3}
    got = run_module(module, x, **given)
    other = MAKE[name](backend="reference", dtype=torch.float64)
    other.load_state_dict(module.state_dict())
    assert_equal_in_float64(got, run_module(other, x, **given))


@every_module
def test_compiled_as_one_graph(name):
    """Training, at several sizes; and without gradients."""
    torch._dynamo.reset()  # it counts what it compiled of the same code before
    module = MAKE[name]()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in ((T, B), (7, 2)):
        x = torch.randn(*sizes, I)
        results = []
        for run in (compiled, module):
            given = x.clone().requires_grad_()
            output, hn = run(given)
            gradients = torch.autograd.grad(
                output.square().sum(), (given, *module.parameters()), materialize_grads=True
            )
            results.append((output, hn, gradients))
        same(*results)
    with torch.no_grad():
        same(compiled(x), module(x))


@every_module
def test_exported(name):
    """With T and B left open, and back from a file."""
    module = MAKE[name]().eval()
    program = torch.export.export(
        module, (torch.randn(T, B, I),), dynamic_shapes=({0: Dim("T"), 1: Dim("B")},)
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for sizes in ((T, B), (7, 2)):
        x = torch.randn(*sizes, I)
        same(loaded(x), module(x))


@every_module
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:# The axis name")
def test_onnx(name):
    """As Scans; onnxruntime computes what the module does, at other sizes too."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    module = MAKE[name]().eval()
    program = torch.onnx.export(
        module,
        (torch.randn(T, B, I),),
        dynamo=True,
        dynamic_shapes=({0: Dim("T"), 1: Dim("B")},),
        verbose=False,
    )
    assert [node.op_type for node in program.model.graph].count("Scan") == 2
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (entry,) = session.get_inputs()
    for sizes in ((T, B), (7, 2)):
        x = torch.randn(*sizes, I)
        got = [torch.from_numpy(value) for value in session.run(None, {entry.name: x.numpy()})]
        with torch.no_grad(), fused_rnn.use_backend("reference"):
            eager, exact = leaves(module(x)), leaves(copy.deepcopy(module).double()(x.double()))
        assert_as_good_as_eager(leaves(got), eager, exact)


@every_module
def test_copies(name):
    module, x = MAKE[name](), torch.randn(T, B, I)
    want, file = module(x), io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = MAKE[name]()
    other.load_state_dict(torch.load(file))
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), other):
        assert repr(copied) == repr(module)
        for got, expected in zip(*map(pytree.tree_leaves, (copied(x), want)), strict=True):
            assert torch.equal(got, expected)
    changed = copy.deepcopy(module)
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    assert not torch.equal(changed(x)[0], want[0])
    assert torch.equal(module(x)[0], want[0])


@every_module
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name, dtype):
    """Results in autocast's dtype and about as exact as that is; gradients in float32."""
    module, x = MAKE[name](), torch.randn(T, B, I)
    exact = leaves(copy.deepcopy(module).double()(x.double()))
    with torch.autocast("cpu", dtype):
        output, hn = module(x)
    got = leaves((output, hn))
    assert {value.dtype for value in got.values()} == {dtype}
    for key, value in got.items():
        assert (value - exact[key]).abs().max() < 16 * torch.finfo(dtype).eps * (
            1 + exact[key].abs().max()
        )
    output.float().square().sum().backward()
    assert {p.grad.dtype for p in module.parameters() if p.grad is not None} == {torch.float32}


@every_module
def test_torch_script_is_refused(name):
    module = MAKE[name]().eval()
    with pytest.raises((RuntimeError, NotImplementedError), match="torch.jit.script"):
        torch.jit.script(module)
