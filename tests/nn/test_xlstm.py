"""The sLSTM cells of xlstm and tirex-ts, converted: outputs, states and gradients stay.

Stand-ins have the layouts of the packages and their names; the packages themselves are taken where
they are installed.
"""

import copy
import pickle
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn.functional import logsigmoid

import fused_rnn
from tests.support.tolerances import assert_as_good_as_eager, assert_equal_in_float64

S, B, N, K = 5, 3, 2, 4
H = N * K


def _recurrence(parts, state, kernel, bias):
    """A plain loop: parts (S, B, gates i f z o, N, K), kernel (N, K from, 4, K to), bias (N, 4, K).

    Returns:
        (S, B, H), and the last h, c, n, m, (4, B, H).
    """
    h, c, n, m = state.unflatten(-1, (N, K)).unbind(0)
    output = []
    for step in parts:
        raw = step + torch.einsum("bnk,nkgj->bgnj", h, kernel) + bias.transpose(0, 1)
        i, f, z, o = raw.unbind(1)
        log_f = logsigmoid(f) + m
        m = i if bool((n == 0).all()) else torch.maximum(i, log_f)
        i, f = torch.exp(i - m).clamp(max=1), torch.exp(log_f - m).clamp(max=1)
        c, n = f * c + i * z.tanh(), f * n + i
        h = o.sigmoid() * c / n
        output.append(h.flatten(1))
    return torch.stack(output), torch.stack([t.flatten(1) for t in (h, c, n, m)])


class _StandIn(nn.Module):
    def __init__(self, kernel, bias, **config):
        super().__init__()
        self.config = types.SimpleNamespace(num_heads=N, head_dim=K, hidden_size=H, **config)
        self._recurrent_kernel_ = nn.Parameter(torch.randn(kernel) / K**0.5)
        self._bias_ = nn.Parameter(torch.randn(bias))

    def _get_state(self, parts, state):
        return parts.new_zeros(4, parts.shape[1], H) if state is None else state


class _XLSTM(_StandIn):
    """As xlstm's, whose backends have different parameters."""

    def __init__(self, kernel, bias, input_shape="BSGNH", output_shape="BNSH", **config):
        options = {
            "function": "slstm",
            "input_shape": input_shape,
            "output_shape": output_shape,
            "enable_automatic_mixed_precision": True,
            "torch_dtype_w": torch.bfloat16,
            **dict.fromkeys(("dtype_w", "dtype_r", "dtype_s"), "bfloat16"),
            "gradient_recurrent_cut": False,
            "gradient_recurrent_clipval": None,
            "forward_clipval": None,
        }
        super().__init__(kernel, bias, **(options | config))

    def _check_input(self, input):
        assert input.shape[-1] == 4 * H

    def _permute_output(self, output):
        if self.config.output_shape == "SBH":
            return output
        return output.unflatten(-1, (N, K)).permute(1, 2, 0, 3)

    def forward(self, input, state=None, lengths=None):
        self._check_input(input)
        parts = input.transpose(0, 1) if self.config.input_shape == "BSGNH" else input
        output, final = _recurrence(
            parts.unflatten(-1, (4, N, K)),
            self._get_state(parts, state),
            self._recurrent_kernel_int2ext(self._recurrent_kernel_),
            self._bias_int2ext(self._bias_),
        )
        return self._permute_output(output), final


class _Vanilla(_XLSTM):
    def __init__(self, **config):
        super().__init__((N, 4 * K, K), (4 * H,), **config)

    def _recurrent_kernel_int2ext(self, kernel):
        return kernel.view(N, 4, K, K).permute(0, 3, 1, 2)

    def _bias_int2ext(self, bias):
        return bias.view(4, N, K).transpose(0, 1)


class _Cuda(_XLSTM):
    def __init__(self, **config):
        super().__init__((N, K, 4 * K), (4 * H,), **config)

    def _recurrent_kernel_int2ext(self, kernel):
        return kernel.view(N, K, 4, K)

    def _bias_int2ext(self, bias):
        return bias.view(N, 4, K)


class _TiRex(_StandIn):
    """As tirex-ts's; it rounds to bfloat16 and back."""

    def __init__(self, backend="torch", dtype=torch.bfloat16):
        super().__init__((N, K, 4 * K), (4 * H,))
        self.backend, self.dtype = backend, dtype

    def forward(self, input, state):
        parts = input.unflatten(-1, (4, N, K)).transpose(0, 1)
        state = self._get_state(parts, state)
        run = self._impl_cuda if self.backend == "cuda" else self._impl_torch
        output, state = run(parts, state)
        output = output.unflatten(-1, (N, K)).permute(1, 2, 0, 3)
        return output.to(input.dtype), state.to(input.dtype)

    def _impl_torch(self, parts, state):
        weights = self._recurrent_kernel_.view(N, K, 4, K), self._bias_.view(N, 4, K)
        return _recurrence(*(t.to(self.dtype) for t in (parts, state, *weights)))

    _impl_cuda = _impl_torch


def _as(kind, module, name):
    """The stand-in under the name by which ``convert`` knows the package's class."""
    return type(name, (kind,), {"__module__": module, "__qualname__": name})


XLSTM = "xlstm.blocks.slstm.cell"
VANILLA = _as(_Vanilla, XLSTM, "sLSTMCell_vanilla")
CUDA = _as(_Cuda, XLSTM, "sLSTMCell_cuda")
TIREX = _as(_TiRex, "tirex.models.slstm.cell", "sLSTMCell")


def _installed(**config):
    theirs = pytest.importorskip(XLSTM)
    made = theirs.sLSTMCell(
        theirs.sLSTMCellConfig(
            hidden_size=H,
            num_heads=N,
            backend="vanilla",
            bias_init="standard",
            recurrent_weight_init="standard",
            **config,
        )
    )
    return made


def _results(module, *given):
    """Outputs, the last states, and the gradients of all that is given and of the parameters."""
    given = [tensor.clone().requires_grad_() for tensor in given]
    output, final = module(*given, **({} if len(given) > 1 else {"state": None}))
    leaves = {"parts": given[0]} | ({"state": given[1]} if len(given) > 1 else {})
    leaves |= dict(module.named_parameters())
    generator = torch.Generator().manual_seed(1)
    wanted = [torch.randn(t.shape, generator=generator).to(t) for t in (output, final)]
    gradients = torch.autograd.grad([output, final], list(leaves.values()), wanted)
    gradients = {f"d{name}": d for name, d in zip(leaves, gradients, strict=True)}
    return {"output": output, "final": final} | gradients


def _state():
    h, c, n, m = torch.randn(4, B, H, dtype=torch.float64)
    return torch.stack([h, c, n.abs() + 1, m])


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [("BSGNH", "BNSH"), ("SBGNH", "SBH")])
@pytest.mark.parametrize("make", [VANILLA, CUDA, _installed], ids=["vanilla", "cuda", "xlstm"])
def test_xlstm(make, inputs, outputs, with_state):
    module = make(input_shape=inputs, output_shape=outputs).double()
    module.config.enable_automatic_mixed_precision = False
    x = torch.randn(B, S, 4 * H, dtype=torch.float64)
    given = [x if inputs == "BSGNH" else x.transpose(0, 1), *([_state()] if with_state else [])]
    want, kind = _results(module, *given), type(module)
    state_dict = dict(module.state_dict())
    assert fused_rnn.convert(module, backend="sequence") is module
    assert type(module) is not kind
    assert isinstance(module, kind)
    assert_equal_in_float64(_results(module, *given), want)
    assert all(torch.equal(state_dict[name], value) for name, value in module.state_dict().items())
    assert_equal_in_float64(_results(copy.deepcopy(module), *given), want)
    assert fused_rnn.revert(module) is module
    assert type(module) is kind
    assert_equal_in_float64(_results(module, *given), want)
    assert not any("fused" in name for name in vars(module))


def test_xlstm_for_cuda_computes_in_its_dtype():
    module, x = CUDA(), torch.randn(B, S, 4 * H)
    exact = _results(copy.deepcopy(module).double(), x.double())
    eager = _results(copy.deepcopy(module).bfloat16(), x.bfloat16())
    fused_rnn.convert(module)
    got = _results(module, x)
    assert got["output"].dtype == got["final"].dtype == torch.float32
    assert torch.equal(got["output"], got["output"].bfloat16().float())
    assert_as_good_as_eager({k: t.bfloat16() for k, t in got.items()}, eager, exact)


@pytest.mark.parametrize("backend", ["torch", "cuda"])
@pytest.mark.parametrize("with_state", [False, True])
def test_tirex(backend, with_state):
    module, x = TIREX(backend), torch.randn(B, S, 4 * H)
    given = [x, *([_state().float()] if with_state else [])]
    exact = copy.deepcopy(module).double()
    exact.dtype = torch.float64
    exact, eager = _results(exact, *(t.double() for t in given)), _results(module, *given)
    fused_rnn.convert(module)
    assert module.backend == backend
    got = _results(module, *given)
    assert got["output"].dtype == got["final"].dtype == torch.float32
    got, eager = ({k: t.bfloat16() for k, t in r.items()} for r in (got, eager))
    assert_as_good_as_eager(got, eager, exact)


def test_tirex_as_installed():
    theirs = pytest.importorskip("tirex.models.slstm.cell")
    module = theirs.sLSTMCell(theirs.sLSTMBlockConfig(embedding_dim=H, num_heads=N), "torch")
    stand_in, x = TIREX(), torch.randn(B, S, 4 * H)
    module.load_state_dict(stand_in.state_dict())
    stand_in.dtype = torch.float64
    exact = _results(stand_in.double(), x.double())
    eager = _results(module, x)
    got = _results(fused_rnn.convert(module), x)
    got, eager = ({k: t.bfloat16() for k, t in r.items()} for r in (got, eager))
    assert_as_good_as_eager(got, eager, exact)


def _tirex_layer():
    """The state_dict of a layer."""
    gates = {f"{gate}gate.weight": torch.randn(N, K, K) / K**0.5 for gate in "fizo"}
    cell = {f"slstm_cell.{name}": value for name, value in TIREX().state_dict().items()}
    weights = gates | cell | {"group_norm.weight": torch.zeros(H)}
    return {name: value.double() for name, value in weights.items()}


def test_weights_of_tirex():
    weights, x = _tirex_layer(), torch.randn(B, S, H, dtype=torch.float64)
    by_head = x.unflatten(-1, (N, K))
    parts = [torch.einsum("bsnk,njk->sbnj", by_head, weights[f"{g}gate.weight"]) for g in "fizo"]
    kernel, bias = weights["slstm_cell._recurrent_kernel_"], weights["slstm_cell._bias_"]
    want, state = _recurrence(
        torch.stack(parts, 2),
        torch.zeros(4, B, H).double(),
        kernel.view(N, K, 4, K),
        bias.view(N, 4, K),
    )
    module = fused_rnn.importers.from_tirex(weights, backend="sequence")
    output, final = module(x)
    assert (module.backend, module.num_heads) == ("sequence", N)
    got = {"output": output.transpose(0, 1), "state": torch.cat(final)}
    assert_equal_in_float64(got, {"output": want, "state": state})


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"igate.weight": torch.ones(N, K)},
            ValueError,
            r"igate.weight: expected shape \(2, 4, 4\)",
        ),
        ({"slstm_cell._bias_": torch.ones(3)}, ValueError, r"_bias_: expected shape \(32,\)"),
        ({"slstm_cell._recurrent_kernel_": torch.ones(3)}, ValueError, "expected shape"),
        ({"ogate.weight": "ones"}, TypeError, "ogate.weight: expected an array, got str"),
    ],
)
def test_bad_weights_of_tirex(changed, error, message):
    with pytest.raises(error, match=message):
        fused_rnn.importers.from_tirex(_tirex_layer() | changed)
    with pytest.raises(ValueError, match=r"weights: expected fgate.weight, .*_bias_, got a"):
        fused_rnn.importers.from_tirex({"a": torch.ones(1)})


def test_a_whole_model_of_xlstm():
    theirs = pytest.importorskip("xlstm")
    layer = theirs.sLSTMLayerConfig(backend="vanilla", num_heads=N, conv1d_kernel_size=3)
    config = theirs.xLSTMBlockStackConfig(
        slstm_block=theirs.sLSTMBlockConfig(slstm=layer),
        mlstm_block=None,
        context_length=S,
        num_blocks=2,
        embedding_dim=32,
        slstm_at=[0, 1],
    )
    model, x, report = theirs.xLSTMBlockStack(config).double(), torch.randn(B, S, 32).double(), []
    want = model(x)
    fused_rnn.convert(model, report=report)
    assert [entry.name for entry in report] == [f"blocks.{n}.xlstm.slstm_cell" for n in (0, 1)]
    assert_equal_in_float64({"output": model(x)}, {"output": want})
    state, outputs = {}, []
    for step in x.split(1, 1):
        output, state = model.step(step, state)
        outputs.append(output)
    assert_equal_in_float64({"output": torch.cat(outputs, 1)}, {"output": want})
    model.reset_parameters()


def test_pickles(monkeypatch):
    names = TIREX.__module__.split(".")
    for count in range(len(names)):  # where pickle looks for the class
        package = types.ModuleType(".".join(names[: count + 1]))
        package.sLSTMCell = TIREX
        monkeypatch.setitem(sys.modules, package.__name__, package)
    module, x = fused_rnn.convert(TIREX(), backend="sequence"), torch.randn(B, S, 4 * H)
    other = pickle.loads(pickle.dumps(module))
    assert type(other) is type(module)
    assert torch.equal(other(x, None)[0], module(x, None)[0])


@pytest.mark.parametrize(
    ("make", "config", "reason"),
    [
        (VANILLA, {"function": "lstm"}, "function='lstm'; only 'slstm' is known"),
        (CUDA, {"gradient_recurrent_cut": True}, "gradient_recurrent_cut=True; no kernel here"),
        (CUDA, {"forward_clipval": 2.0}, "forward_clipval=2.0; no kernel here"),
        (CUDA, {"dtype_r": "float32"}, "several dtypes, {'dtype_w': 'bfloat16', 'dtype_r'"),
    ],
)
def test_what_is_left_says_why(make, config, reason):
    module, report = make(**config), []
    with pytest.warns(UserWarning, match="not everything was turned"):
        fused_rnn.convert(module, report=report)
    assert type(module) is make
    assert report[0].after is None
    assert reason in report[0].reason


def test_options_that_xlstm_ignores_too():
    module = fused_rnn.convert(VANILLA(gradient_recurrent_cut=True))
    assert type(module) is not VANILLA
    report = []
    fused_rnn.convert(module, report=report)
    assert [(entry.after, entry.reason) for entry in report] == [(None, "")]
