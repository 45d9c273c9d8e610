"""Modules of one step: every cell, in every way that "auto" takes it, and what it refuses."""

import copy
import itertools

import pytest
import torch
from fused_rnn.kernels.cpu.step import Step
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

import fused_rnn
import tests.support.cells as ours
from fused_rnn import RecurrentCell, cells
from fused_rnn.engines import aten, choose_step, step
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

B, INPUTS, H = 3, 6, 5
CELLS = [cell for cell in (*ours.ALL, cells.peephole_lstm("io")) if not cell.streams]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.key)
PAIRS = {
    "RNN": (nn.RNNCell, fused_rnn.RNNCell, {}),
    "RNN relu": (nn.RNNCell, fused_rnn.RNNCell, {"nonlinearity": "relu"}),
    "LSTM": (nn.LSTMCell, fused_rnn.LSTMCell, {}),
    "GRU": (nn.GRUCell, fused_rnn.GRUCell, {}),
}
every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def _made(cell, backend=None, size=H, **options):
    """With all weights of its own, and a period that divides some steps."""
    torch.manual_seed(0)
    width = size if cell.raw_gates else INPUTS
    return RecurrentCell(cell, width, size, backend=backend, **options)


def _given(cell, dtype, *batch, size=H):
    generator = torch.Generator().manual_seed(1)

    def normal(width):
        return torch.randn(*batch, width, generator=generator).to(dtype)

    return normal(size if cell.raw_gates else INPUTS), [normal(size) for _ in cell.states]


def _listed(states):
    return [states] if isinstance(states, torch.Tensor) else list(states)


def _all_of(module, x, hx):
    """The states after the step, and the gradient of everything that went in."""
    leaves = {"x": x} | {f"{i}0": h for i, h in enumerate(hx or [])}
    leaves = {name: t.detach().clone().requires_grad_() for name, t in leaves.items()}
    x, *states = leaves.values()
    given = None if hx is None else states[0] if len(states) == 1 else tuple(states)
    outputs = _listed(module(x, given))
    inputs = leaves | dict(module.named_parameters())
    generator = torch.Generator().manual_seed(2)
    cotangents = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
    gradients = torch.autograd.grad(
        outputs, list(inputs.values()), cotangents, materialize_grads=True
    )
    named = {f"output.{i}": output for i, output in enumerate(outputs)}
    return named | {f"d{n}": g for n, g in zip(inputs, gradients, strict=True)}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("batch", [(B,), ()], ids=["batch", "no batch"])
@pytest.mark.parametrize("given", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@every_cell
def test_is_as_good_as_eager(cell, dtype, given, batch, bias):
    module = _made(cell, "auto", dtype=dtype, bias=bias)
    eager = _made(cell, "reference", dtype=dtype, bias=bias)
    eager.load_state_dict(module.state_dict())
    exact = copy.deepcopy(eager).double()
    x, hx = _given(cell, dtype, *batch)
    got = _all_of(module, x, hx if given else None)
    want = _all_of(exact, x.double(), [h.double() for h in hx] if given else None)
    if dtype == torch.float64:
        assert_equal_in_float64(got, want)
    else:
        assert_as_good_as_eager(got, _all_of(eager, x, hx if given else None), want)


@pytest.mark.parametrize("batch", [(B,), ()], ids=["batch", "no batch"])
@pytest.mark.parametrize("given", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("backend", ["auto", "aten"])
@every_pair
def test_has_the_bits_of_torch_nn(pair, backend, given, batch):
    theirs, _, options = pair
    for bias in (True, False):
        original = theirs(INPUTS, H, bias=bias, **options)
        converted = fused_rnn.convert(copy.deepcopy(original), backend=backend)
        assert type(converted) is not type(original)
        x, hx = _given(converted.cell, torch.float32, *batch)
        hx = hx if given else None
        got, want = _all_of(converted, x, hx), _all_of(original, x, hx)
        assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("size", [H, 37])  # less than a vector, and a few with a rest
@pytest.mark.parametrize("rows", range(1, choose_step.MOST_ROWS + 2))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@every_cell
def test_inference_is_as_good_as_eager(cell, dtype, rows, size, bias):
    module = _made(cell, "auto", size, dtype=dtype, bias=bias)
    eager = _made(cell, "reference", size, dtype=dtype, bias=bias)
    eager.load_state_dict(module.state_dict())
    x, hx = _given(cell, dtype, rows, size=size)

    @torch.no_grad()
    def run(module, dtype):
        found = module(x.to(dtype), aten.one_or_all([h.to(dtype) for h in hx]))
        return dict(enumerate(_listed(found)))

    before = [h.clone() for h in hx]
    exact = run(copy.deepcopy(eager).double(), torch.float64)
    if dtype == torch.float64:
        assert_equal_in_float64(run(module, dtype), exact)
    else:
        assert_as_good_as_eager(run(module, dtype), run(eager, dtype), exact)
    assert all(map(torch.equal, hx, before))


def test_backend_aten_refuses_what_torch_nn_has_not():
    with pytest.raises(RuntimeError, match="\"aten\" cannot run cell 'cifg_lstm'"):
        fused_rnn.CIFGLSTMCell(INPUTS, H, backend="aten")(torch.ones(B, INPUTS))


class _Marked(torch.Tensor):
    pass


def _taken(monkeypatch, call):
    """Which ways a call takes: torch.nn's function, the C++ loop, the operations, a layer."""
    found = []

    def watch(owner, name, way):
        run = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: found.append(way) or run(*a, **k))

    with monkeypatch.context() as patched:
        for name, theirs in aten.TORCH.items():

            def run_step(*arguments, function=theirs.run_step):
                found.append("aten")
                return function(*arguments)

            patched.setitem(aten.TORCH, name, theirs._replace(run_step=run_step))
            patched.setitem(aten.STEPS, cells.get(name), run_step)
        watch(step, "run", "step")
        watch(Step, "__call__", "loop")
        watch(RecurrentCell, "_run_layer", "layer")
        call()
    return found


no_grad = torch.no_grad()


def _repeated(*tensors):
    return [t.repeat(choose_step.MOST_ROWS, 1) for t in tensors]


def _negative(x):
    """A view whose values are read with the other sign."""
    return torch.complex(x, x).conj().imag


@no_grad
def _in_a_mode(module, x, h):
    with FlopCounterMode(display=False) as counter:
        module(x, h)
    assert counter.get_total_flops()


WAYS = {
    "plain": ("aten", {}, lambda m, x, h: m(x, h)),
    "no gradient": ("aten", {}, lambda m, x, h: m(x.detach(), h.detach())),
    "zeros": ("aten", {}, lambda m, x, h: m(x)),
    "a row": ("aten", {}, lambda m, x, h: m(x[0], h[0])),
    "no bias": ("aten", {"bias": False}, lambda m, x, h: m(x, h)),
    "aten": ("aten", {"backend": "aten"}, lambda m, x, h: m(x, h)),
    "float64": ("aten", {"dtype": torch.float64}, lambda m, x, h: m(x.double(), h.double())),
    "16 bits": ("step", {"dtype": torch.bfloat16}, lambda m, x, h: m(x.bfloat16(), h.bfloat16())),
    "inference": ("loop", {}, no_grad(lambda m, x, h: m(x, h))),
    "inference, another cell": ("loop", {"reset_after": False}, no_grad(lambda m, x, h: m(x, h))),
    "inference, no bias": ("loop", {"bias": False}, no_grad(lambda m, x, h: m(x, h))),
    "inference, more rows": (
        "aten",
        {},
        no_grad(lambda m, x, h: m(x.repeat(3, 1), h.repeat(3, 1))),
    ),
    "inference, columns": ("aten", {}, no_grad(lambda m, x, h: m(x.mT.contiguous().mT, h))),
    "inference, a view": ("aten", {}, no_grad(lambda m, x, h: m(_negative(x), h))),
    "inference, a mode": ("aten", {}, lambda m, x, h: _in_a_mode(m, x, h)),
    "another cell": ("step", {"reset_after": False}, lambda m, x, h: m(x, h)),
    "a subclass": ("step", {}, lambda m, x, h: m(x.detach().as_subclass(_Marked), h)),
    "a transform": ("step", {}, lambda m, x, h: torch.func.vmap(m)(x, h)),
    "reference": ("layer", {"backend": "reference"}, lambda m, x, h: m(x, h)),
    "sequence": ("layer", {"backend": "sequence"}, lambda m, x, h: m(x, h)),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways(way, monkeypatch):
    wanted, options, call = WAYS[way]
    module = fused_rnn.GRUCell(INPUTS, H, **options)
    x, h = torch.randn(B, INPUTS, requires_grad=True), torch.randn(B, H)
    assert _taken(monkeypatch, lambda: call(module, x, h)) == [wanted]


def test_ways_of_the_context(monkeypatch):
    module, x, h = fused_rnn.GRUCell(INPUTS, H), torch.randn(B, INPUTS), torch.randn(B, H)
    with fused_rnn.use_backend("reference"):
        assert _taken(monkeypatch, lambda: module(x, h)) == ["layer"]
    with torch.autocast("cpu", torch.bfloat16):
        assert _taken(monkeypatch, lambda: module(x, h)) == ["step"]
    nn.utils.parametrizations.weight_norm(module, "weight_hh")
    assert _taken(monkeypatch, lambda: module(x, h)) == ["aten"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=ours.name_of)
@every_cell
def test_autocast_is_a_module_of_that_dtype(cell, dtype):
    """Bit for bit; and the gradients are those of the parameters' dtype."""
    module = _made(cell)
    rounded = copy.deepcopy(module).to(dtype)
    x, hx = _given(cell, torch.float32, B)
    with torch.autocast("cpu", dtype):
        got = _all_of(module, x, hx)
    want = _all_of(rounded, x.to(dtype), [h.to(dtype) for h in hx])
    for name, tensor in want.items():
        assert got[name].dtype == (torch.float32 if name[0] == "d" else dtype)
        assert torch.equal(got[name], tensor.to(got[name].dtype)), name


@every_pair
def test_parametrized_weights(pair):
    theirs, _, options = pair
    original = theirs(INPUTS, H, dtype=torch.float64, **options)
    converted = fused_rnn.convert(copy.deepcopy(original))
    for module, name in itertools.product((original, converted), ("weight_ih", "weight_hh")):
        nn.utils.parametrizations.weight_norm(module, name)
    x, hx = _given(converted.cell, torch.float64, B)
    assert_equal_in_float64(_all_of(converted, x, hx), _all_of(original, x, hx))


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_relu", "peephole_lstm", "gru_reset_before"])
def test_derivatives(name):
    """Of the second order, and forward ones, against finite differences."""
    module = _made(cells.get(name), dtype=torch.float64)
    x, hx = _given(module.cell, torch.float64, B)
    leaves = [x, *hx, *module.parameters()]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    names = [name for name, _ in module.named_parameters()]

    def run(x, *tensors):
        states, weights = tensors[: len(hx)], tensors[len(hx) :]
        states = states[0] if len(states) == 1 else states
        weights = dict(zip(names, weights, strict=True))
        return tuple(_listed(functional_call(module, weights, (x, states))))

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, check_batched_grad=True)
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("mapped", ["rows", "rows, shared state", "weights"])
@every_cell
def test_vmap(cell, mapped):
    modules = [_made(cell, dtype=torch.float64) for _ in range(2)]
    for number, module in enumerate(modules):
        for p in module.parameters():
            p.data.add_(number)
    params, buffers = torch.func.stack_module_state(modules)
    x, hx = _given(cell, torch.float64, 2, B)
    given = tuple(hx) if len(hx) > 1 else hx[0]
    if mapped == "weights":

        def run(params, x, hx):
            return functional_call(modules[0], (params, buffers), (x, hx))

        got = torch.func.vmap(run)(params, x, given)
        own = modules
    else:
        shared = mapped == "rows, shared state"
        if shared:
            hx = [h[:1].expand_as(h) for h in hx]
            given = tuple(h[0] for h in hx) if len(hx) > 1 else hx[0][0]
        got = torch.func.vmap(modules[0], (0, None if shared else 0))(x, given)
        own = modules[:1] * 2
    want = [
        _listed(module(x[k], [h[k] for h in hx] if len(hx) > 1 else hx[0][k]))
        for k, module in enumerate(own)
    ]
    want = [torch.stack(states) for states in zip(*want, strict=True)]
    assert_equal_in_float64(
        {str(i): t for i, t in enumerate(_listed(got))}, {str(i): t for i, t in enumerate(want)}
    )


@pytest.mark.parametrize("name", ["lstm", "gru", "rnn_relu"])
def test_graphs_train_wherever_they_were_made(name):
    """Compiled as one graph; exported or traced without gradients."""
    module = _made(cells.get(name), dtype=torch.float64)
    x, hx = _given(module.cell, torch.float64, B)
    hx = tuple(hx) if len(hx) > 1 else hx[0]
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        exported = torch.export.export(module, (x, hx)).module()
        traced = torch.jit.trace(module, (x, hx))
    want = _all_of(module, x, _listed(hx))
    assert_equal_in_float64(_renamed(_all_of(compiled, x, _listed(hx))), want)
    for graph in (exported, traced):
        assert_equal_in_float64(_renamed(_all_of(graph, x, _listed(hx))), want)


def _renamed(results):
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in results.items()}


@every_cell
def test_meta_tensors(cell):
    module = _made(cell, device="meta")
    x, hx = (t.to("meta") if isinstance(t, torch.Tensor) else [h.to("meta") for h in t]
             for t in _given(cell, torch.float32, B))  # fmt: skip
    for output in _listed(module(x, hx if len(hx) > 1 else hx[0])):
        assert output.shape == (B, H)
        assert output.is_meta


@every_pair
def test_no_rows(pair):
    theirs, mine, options = pair
    x = torch.randn(0, INPUTS)
    for got, want in zip(
        _listed(mine(INPUTS, H, **options)(x)),
        _listed(theirs(INPUTS, H, **options)(x)),
        strict=True,
    ):
        assert got.shape == want.shape == (0, H)


@pytest.mark.parametrize(
    ("error", "message", "x", "hx"),
    [
        (ValueError, "input: expected 1 or 2 dimensions, got 3", (1, 2, INPUTS), None),
        (RuntimeError, f"expected input_size {INPUTS} features, got 7", (2, 7), None),
        (RuntimeError, "hx: expected 2 states .* got 1", (2, INPUTS), [(2, H)]),
        (
            ValueError,
            "state c: expected 1 or 2 dimensions, got 3",
            (2, INPUTS),
            [(2, H), (1, 2, H)],
        ),
        (
            RuntimeError,
            r"state c: expected shape \(2, 5\), got \(1, 5\)",
            (2, INPUTS),
            [(2, H), (1, H)],
        ),
        (RuntimeError, r"state h: expected shape \(5,\), got \(1, 5\)", (INPUTS,), [(1, H), (H,)]),
    ],
)
def test_bad_arguments(error, message, x, hx):
    hx = hx if hx is None else [torch.ones(shape) for shape in hx]
    with pytest.raises(error, match=message):
        fused_rnn.LSTMCell(INPUTS, H)(torch.ones(x), hx)


@torch.no_grad()
def test_weights_of_another_shape_are_refused_as_by_torch_nn():
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        module = fused_rnn.LSTMCell(INPUTS, H)
        setattr(module, name, nn.Parameter(getattr(module, name)[:-1].clone()))
        with pytest.raises(RuntimeError):
            module(torch.ones(1, INPUTS), (torch.ones(1, H), torch.ones(1, H)))


def test_bad_dtypes_and_devices():
    module, x, h = fused_rnn.LSTMCell(INPUTS, H), torch.ones(2, INPUTS), torch.ones(2, H)
    with pytest.raises(ValueError, match="input: expected dtype torch.float32, got torch.float64"):
        module(x.double(), (h, h))
    with pytest.raises(
        ValueError, match="state c: expected dtype torch.float32, got torch.float64"
    ):
        module(x, (h, h.double()))
    with pytest.raises(RuntimeError, match="state c: expected device cpu, got meta"):
        module(x, (h, h.to("meta")))
    with pytest.raises(RuntimeError, match="input: expected device cpu, got meta"):
        module(x.to("meta"), (h, h))
