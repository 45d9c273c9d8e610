"""Recurrent matrices of several heads: each head is a recurrence that sees its own units alone."""

import pytest
import torch
from torch import nn

import fused_rnn
from fused_rnn import Recurrent, RecurrentCell, cells
from tests.support import cells as ours
from tests.support.problems import make_problem, run_module
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

T, B, D, H = 4, 3, 2, 12
# Heads per stage. Where they differ, those of one stage see several of another.
CASES = {
    "lstm": (cells.LSTM, [3]),
    "lstm one unit each": (cells.LSTM, [12]),
    "gru_reset_before": (cells.GRU_RESET_BEFORE, [2, 2]),
    "gru_reset_before mixed": (cells.GRU_RESET_BEFORE, [4, 6]),
    "gru_reset_before one and four": (cells.GRU_RESET_BEFORE, [1, 4]),
    "fgr_lstm": (cells.get("fgr_lstm"), [3, 3]),
    "full_peephole_lstm": (ours.FULL_PEEPHOLE_LSTM, [4, 4]),
    "noisy_gru": (ours.NOISY_GRU, [2, 2]),
}
every_case = pytest.mark.parametrize(("cell", "heads"), CASES.values(), ids=CASES)


def _dense(weight, vectors, heads):
    """The oracle's full matrix, block by block."""
    full = weight.new_zeros(*weight.shape[:-1], vectors * H)
    size = H // heads
    for row in range(weight.shape[-2]):
        first = row % H // size * size
        for v in range(vectors):
            own = weight[..., row, v * size : (v + 1) * size]
            full[..., row, v * H + first : v * H + first + size] = own
    return full


def _expected(problem, heads):
    """Outputs and gradients by autograd through full matrices, where one head is one loop."""
    leaves = problem.leaves()
    full = dict(leaves)
    for s, (vectors, count) in enumerate(zip(problem.cell.source_sizes, heads, strict=True)):
        full[f"weights.{s}"] = _dense(leaves[f"weights.{s}"], vectors, count)
    results = problem.outputs(full, "reference")
    wanted = [problem.cotangents[name] for name in results]
    gradients = torch.autograd.grad(
        list(results.values()), list(leaves.values()), wanted, materialize_grads=True
    )
    return results | {f"d{name}": g for name, g in zip(leaves, gradients, strict=True)}


@every_case
@pytest.mark.parametrize("backend", ["reference", "sequence", "cpp"])
@pytest.mark.parametrize("reverse", [False, True])
def test_heads_see_their_own_units(cell, heads, backend, reverse):
    problem = make_problem(cell, T, B, H, D=D, dtype=torch.float64, heads=heads, reverse=reverse)
    assert_equal_in_float64(problem.run(backend), _expected(problem, heads))


@every_case
@pytest.mark.parametrize("directions", [1, 2])
def test_kernels(interpreter, cell, heads, directions):
    """With one direction, tensors by heads are views that are not contiguous."""
    problem = make_problem(cell, T, B, H, D=directions, dtype=torch.float32, heads=heads)
    eager, exact = problem.run("reference"), _expected(problem.to(torch.float64), heads)
    assert_as_good_as_eager(problem.run("triton"), eager, exact)


@pytest.mark.parametrize("backend", ["reference", "sequence", "cpp"])
def test_no_rows(backend):
    problem = make_problem(cells.GRU_RESET_BEFORE, 2, 0, 4, dtype=torch.float64, heads=[2, 4])
    results = problem.run(backend)
    assert results["sequence.h"].shape == (2, 0, 1, 4)
    assert not results["dweights.0"].any()


def test_derivatives_of_derivatives():
    problem = make_problem(cells.GRU_RESET_BEFORE, 2, 2, 4, dtype=torch.float64, heads=[2, 4])
    wanted = problem.run_higher("reference")
    for backend in ("sequence", "cpp"):
        assert_equal_in_float64(problem.run_higher(backend), wanted, backend)


def _with_zeros(module, plain):
    """The weights of a module with heads, in one of the same shape without; by torch.nn's names."""
    given = {}
    for name, tensor in module.state_dict().items():
        wanted = plain.state_dict()[name].shape
        heads = wanted[-1] // tensor.shape[-1]
        given[name] = tensor if heads == 1 else _dense(tensor, wanted[-1] // H, heads)
    plain.load_state_dict(given)
    return plain


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("backend", ["auto", "cpp", "sequence", "reference"])
@pytest.mark.parametrize("recompute", [False, True])
def test_layers(kind, backend, recompute):
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True, "dtype": torch.float64}
    made = getattr(fused_rnn, kind)(
        5, H, num_heads=3, backend=backend, recompute=recompute, **options
    )
    assert "num_heads=3" in repr(made)
    plain = _with_zeros(made, getattr(nn, kind)(5, H, **options))
    x = torch.randn(B, T, 5, dtype=torch.float64)
    hx = [torch.randn(4, B, H, dtype=torch.float64) for _ in made.cell.states]
    hx = hx[0] if len(hx) == 1 else tuple(hx)
    got, wanted = run_module(made, x, hx), run_module(plain, x, hx)
    for name, gradient in wanted.items():
        if "weight_hh" in name:  # of the blocks alone
            wanted[name] = torch.cat(
                [gradient.view(-1, 3, H // 3, H)[:, n, :, n * 4 : n * 4 + 4] for n in range(3)], 1
            ).reshape(-1, H // 3)
    assert_equal_in_float64(got, wanted)


@pytest.mark.parametrize("backend", ["auto", "sequence"])
def test_rows_of_different_lengths(backend):
    made = fused_rnn.LSTM(5, H, num_heads=4, bidirectional=True, dtype=torch.float64)
    made.backend = backend
    plain = fused_rnn.LSTM(5, H, bidirectional=True, dtype=torch.float64, backend="reference")
    _with_zeros(made, plain)
    x, lengths = torch.randn(T, B, 5, dtype=torch.float64), torch.tensor([4, 2, 1])
    packed = nn.utils.rnn.pack_padded_sequence(x, lengths)
    torch.testing.assert_close(made(packed)[0].data, plain(packed)[0].data)
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2, 0] = reset[1, 1] = True
    given = {"lengths": lengths, "reset": reset, "return_states": True}
    torch.testing.assert_close(made(x, **given), plain(x, **given))


@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "fgr_lstm"])
def test_one_step_is_the_layer(cell):
    step = RecurrentCell(cell, 5, H, num_heads=2, dtype=torch.float64)
    layer = Recurrent(cell, 5, H, num_heads=2, dtype=torch.float64, backend="reference")
    layer.load_state_dict({f"{name}_l0": value for name, value in step.state_dict().items()})
    x = torch.randn(B, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(step(x), _squeezed(layer(x[None])[1]))
    assert "num_heads=2" in repr(step)


def _squeezed(states):
    return tuple(s[0] for s in states) if isinstance(states, tuple) else states[0]


def test_compiled_exported_and_mapped():
    made = fused_rnn.GRU(5, H, num_heads=3)
    x = torch.randn(T, B, 5)
    wanted = made(x)
    torch.testing.assert_close(torch.compile(made, backend="aot_eager", fullgraph=True)(x), wanted)
    torch.testing.assert_close(torch.export.export(made, (x,)).module()(x), wanted)
    rows = torch.func.vmap(lambda row: made(row)[0], in_dims=1, out_dims=1)(x)
    torch.testing.assert_close(rows, wanted[0])


def test_exported_to_onnx(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made, x = fused_rnn.LSTM(5, H, num_heads=3), torch.randn(T, B, 5)
    torch.onnx.export(made, (x,), tmp_path / "heads.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "heads.onnx"))
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got[0]), made(x)[0])


def test_each_stage_has_its_number():
    made = Recurrent("gru_reset_before", 5, H, num_heads=(2, 4), dtype=torch.float64)
    assert made.weight_hh0_l0.shape == (2 * H, H // 2)
    assert made.weight_hh1_l0.shape == (H, H // 4)
    weights = [made.weight_hh0_l0, made.weight_hh1_l0]
    x = torch.randn(T, B, 5, dtype=torch.float64)
    part = nn.functional.linear(x, made.weight_ih_l0, made.bias_ih_l0 + made.bias_hh_l0)
    states = torch.zeros(B, H, dtype=torch.float64)
    got, _ = fused_rnn.scan(made.cell, part, weights, states, num_heads=(2, 4))
    torch.testing.assert_close(got, made(x)[0])
    with pytest.raises(RuntimeError, match=r"recurrent_weights\[0\]: expected shape"):
        fused_rnn.scan(made.cell, part, weights, states)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"num_heads": 5}, ValueError, "num_heads: expected numbers that divide hidden_size 12"),
        ({"num_heads": 0}, ValueError, "num_heads: expected a number greater than zero, got 0"),
        ({"num_heads": 2.0}, TypeError, "num_heads: expected int, got float"),
        ({"num_heads": True}, TypeError, "num_heads: expected int, got bool"),
        ({"num_heads": (2, 2)}, ValueError, "one for each of its 1 recurrent matrices"),
        ({"num_heads": 2, "proj_size": 3}, ValueError, "num_heads: expected 1 with proj_size=3"),
        ({"num_heads": 2, "cell": "min_gru"}, ValueError, "no recurrent product to split"),
        ({"num_heads": 2, "cell": "antisymmetric_rnn"}, ValueError, "a function makes the matrix"),
    ],
)
def test_refused(options, kind, words):
    options = {"cell": "lstm", "input_size": 5, "hidden_size": H} | options
    with pytest.raises(kind, match=words):
        Recurrent(**options)


def test_torch_nn_has_no_heads():
    x = torch.randn(T, B, 5)
    layer = fused_rnn.LSTM(5, H, num_heads=2, backend="aten")
    with pytest.raises(RuntimeError, match='"aten" cannot run num_heads'):
        layer(x)
    with pytest.raises(RuntimeError, match='"aten" cannot run num_heads'):
        fused_rnn.LSTMCell(5, H, num_heads=2, backend="aten")(x[0])
    layer.backend = None
    with pytest.warns(UserWarning, match="torch.nn has no num_heads"):
        assert fused_rnn.revert(layer) is layer
    assert type(layer) is fused_rnn.LSTM
