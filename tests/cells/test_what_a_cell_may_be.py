"""What a cell may be: a pure pointwise function of its arguments, as it was when the cell was made.

What is accepted computes on every backend what an eager loop over the same function computes;
everything else is refused when the cell is made.
"""

import functools
import re
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn import functional as F

from fused_rnn import Cell, Recurrent, Stage, scan
from tests.cells.test_operations import CPP
from tests.support.tolerances import assert_equal_in_float64

BACKENDS = ["reference", "sequence", pytest.param("cpp", marks=CPP), "triton"]


@pytest.fixture(autouse=True)
def _interpret(request):
    if (
        getattr(request.node, "callspec", None)
        and "triton" in request.node.callspec.params.values()
    ):
        request.getfixturevalue("interpreter")


def cell_of(function, **wiring):
    return Cell("tried", lambda pre, state: function(pre[0], state[0]), gates=("a",), **wiring)


def _inputs(H=5, T=3, B=2):
    x, matrix = torch.randn(T, B, H), torch.randn(H, H) / H**0.5
    return [v.double().requires_grad_() for v in (x, matrix, torch.randn(B, H))]


def _with_gradients(run, inputs):
    outputs = run(*inputs)
    weights = torch.linspace(0.5, 1.5, outputs.numel(), dtype=outputs.dtype).view_as(outputs)
    named = {"output": outputs.detach()}
    if outputs.requires_grad:
        grads = torch.autograd.grad((outputs * weights).sum(), inputs, materialize_grads=True)
        named |= dict(zip(("dx", "dweight", "dstate"), grads, strict=True))
    return named


def eager(step):
    """The loop that a user would write; ``step(a, b, t)`` of the gate and the state before."""

    def run(x, matrix, state):
        rows = []
        for t in range(len(x)):
            state = step(x[t] + state @ matrix.T, state, t)
            rows.append(state)
        return torch.stack(rows)

    return run


def check(cell, step, backend):
    inputs = _inputs()
    want = _with_gradients(eager(step), inputs)
    got = _with_gradients(lambda x, R, h: scan(cell, x, R, h, backend=backend)[0], inputs)
    names = ("dx", "dweight", "dstate")
    zeros = {name: torch.zeros_like(v) for name, v in zip(names, inputs, strict=True)}
    assert_equal_in_float64(zeros | got, zeros | want)


class _Straight(torch.autograd.Function):
    """With PyTorch's older signature; its derivative is not that of its operations."""

    @staticmethod
    def forward(ctx, a):
        return torch.sign(a)

    @staticmethod
    def backward(ctx, gradient):
        return 0.5 * gradient


class _Mixing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a):
        return 2 * a

    @staticmethod
    def backward(ctx, gradient):
        return gradient + gradient.sum()


def _without_gradients(a, b):
    with torch.no_grad():
        gate = torch.sigmoid(a)
    return gate * b + (1 - gate) * a


def _in_place(a, b):
    y = a * 1
    y.mul_(b)
    y += 1.0
    return torch.tanh(y)


def _in_place_of_a_copy(a, b):
    y = torch.zeros_like(a)
    y.copy_(a * b)
    y.clamp_(-1, 1)
    return F.relu(y, inplace=True) + b


_TENTH, _HALF, _THREE = torch.tensor(0.1), torch.tensor(0.5).double(), torch.tensor(3)
_ONE_ELEMENT, _PARAMETER = torch.tensor([0.3]), torch.nn.Parameter(torch.tensor(0.3))

ACCEPTED = {
    "autograd.Function": lambda a, b: _Straight.apply(a) * b,
    "straight through by detach": lambda a, b: (torch.sign(a) - a).detach() + a + 0.1 * b,
    "detach": lambda a, b: a * b.detach() + a.data,
    "no_grad": _without_gradients,
    "in place": _in_place,
    "in place of a copy": _in_place_of_a_copy,
    "numbers as tensors": lambda a, b: a * _TENTH + b * _HALF + a * _ONE_ELEMENT,
    "numbers as tensors first": lambda a, b: _HALF - a + _HALF / (2 + b * b),
    "numbers of the dtype": lambda a, b: a * torch.full((), 0.1, dtype=a.dtype) + 0.1 * b,
    "numbers by new_tensor": lambda a, b: a * a.new_tensor(0.1) + b * b.new_ones(()),
    "a detached parameter": lambda a, b: a * _PARAMETER.detach() + b,
    "dropout in evaluation": lambda a, b: F.dropout(a, 0.5, training=False) * b,
    "vmap": lambda a, b: torch.vmap(torch.tanh)(a) * b,
    "a cast to its own dtype": lambda a, b: a.to(b.dtype) * b.type_as(a),
    "constant": lambda a, b: torch.full_like(a, 0.5),
    "no gate": lambda a, b: 0.9 * b,
    "activations": lambda a, b: F.hardswish(a) * b + F.logsigmoid(b),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_is_right(name, backend):
    function = ACCEPTED[name]
    check(cell_of(function), lambda a, b, t: function(a, b), backend)


# The number of steps in arithmetic, comparisons and choices: right for an int and for a tensor.
TIMED = {
    "a quotient": lambda a, b, t: torch.tanh(a) * (1 / (1 + t)) + b / (t + 2),
    "whole quotients": lambda a, b, t: torch.tanh(a) * (t // 2) + b * (t % 3),
    "a power": lambda a, b, t: torch.tanh(a) + b * 0.5**t,
    "a choice": lambda a, b, t: torch.where(torch.as_tensor(t == 0), torch.tanh(a), b * 0.9),
    "a comparison": lambda a, b, t: torch.where(b > 0.1 * t, a, t - b) + (a > t).to(a.dtype),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TIMED)
def test_number_of_steps(name, backend):
    function = TIMED[name]
    cell = Cell("timed", lambda pre, state, t: function(pre[0], state[0], t), gates=("a",))
    check(cell, function, backend)


def _counting(a, b, calls=[0]):  # noqa: B006
    calls[0] += 1
    return a * calls[0] + b


def _masked(a, b):
    y = a.clone()
    y[b > 0] = 0.5
    return y


def _in_place_twice(a, b):
    y = a + b
    z = y.detach()
    y.mul_(2)
    return y + z


_PRELU, _VECTOR, _BUFFER = torch.nn.PReLU(), torch.randn(3), torch.zeros(())

REFUSED = {
    # what moves or mixes values
    "flip": (lambda a, b: a + b.flip(-1), "flip.default is not pointwise"),
    "roll": (lambda a, b: a + b.roll(1, -1), "roll.default is not pointwise"),
    "cumsum": (lambda a, b: a + b.cumsum(-1), "cumsum.default is not pointwise"),
    "amax": (lambda a, b: a - b.amax(-1, keepdim=True), "amax.default is not pointwise"),
    "norm": (lambda a, b: a / (1 + b.norm()), "norm.* is not pointwise"),
    "sum": (lambda a, b: a + b.sum(-1, keepdim=True), "sum.dim_IntList is not pointwise"),
    "mean over rows": (lambda a, b: a + b.mean(0), "mean.dim is not pointwise"),
    "softmax": (lambda a, b: a.softmax(-1) + b, "_softmax.default is not pointwise"),
    "layer_norm": (lambda a, b: F.layer_norm(a, a.shape[-1:]) + b, "layer_norm.* is not pointw"),
    "sort": (lambda a, b: a + b.sort(-1).values, "sort.default is not pointwise"),
    "matmul": (lambda a, b: a @ b.T @ b, "a product goes into a stage"),
    "slice": (lambda a, b: a + b[..., :1], "slice.Tensor is not pointwise"),
    "index": (lambda a, b: a + b[:, [0] * b.shape[1]], "index.Tensor is not pointwise"),
    "masked assignment": (_masked, "index_put_.default is not pointwise"),
    "stack": (lambda a, b: torch.stack([a, b]).sum(0), "stack.default is not pointwise"),
    "reshape": (lambda a, b: a.reshape(-1).reshape(a.shape) + b, "view.default is not pointw"),
    "transposed": (lambda a, b: (a.T * b.T).T, "is not pointwise"),
    "autograd.Function that mixes": (lambda a, b: _Mixing.apply(a) * b, "sum.default is not poin"),
    # what it reads besides values
    "shape": (lambda a, b: a / a.shape[-1] ** 0.5 + b, "the sizes of the tensors"),
    "numel": (lambda a, b: a / b.numel(), "the sizes of the tensors; .* functools.partial"),
    "len": (lambda a, b: a * len(b), "the sizes of the tensors"),
    "zeros of a shape": (lambda a, b: a + b + torch.zeros(a.shape), "shape .2, 3. is no argument"),
    "dtype": (lambda a, b: a if a.dtype == torch.float64 else b, "depends on the dtype"),
    "eps": (lambda a, b: a + b * torch.finfo(a.dtype).eps, "depends on the dtype"),
    "grad mode": (lambda a, b: a if torch.is_grad_enabled() else b, "whether gradients are rec"),
    "requires_grad": (lambda a, b: a if a.requires_grad else b, "whether gradients are recorded"),
    "device": (lambda a, b: a if a.device.type == "cpu" else b, "depends on the device"),
    "is_cuda": (lambda a, b: b if a.is_cuda else a, "depends on the device"),
    # values that it takes out, or that are none of its arguments
    "if": (lambda a, b: a if bool((a > 0)[0, 0]) else b, "is not pointwise|takes a number"),
    "item": (lambda a, b: a * b.flatten()[0].item(), "is not pointwise|takes a number"),
    "equal": (lambda a, b: a if torch.equal(a, b) else b, "takes a number out of a tensor"),
    "tolist": (lambda a, b: a * b.tolist()[0][0], "values that change and are none of its ten"),
    "counter": (_counting, "values that change and are none of its tensors"),
    "parameter": (lambda a, b: a * _PARAMETER + b, "requires a gradient, .* one of the cell's par"),
    "module": (lambda a, b, m=_PRELU: m(a) * b, "requires a gradient"),
    "vector": (lambda a, b: a * _VECTOR + b, r"a tensor of shape \(3,\) is no argument"),
    # random numbers
    "rand_like": (lambda a, b: a + torch.rand_like(b), "rand_like.default draws random numbers"),
    "dropout": (lambda a, b: F.dropout(a) + b, "draws random numbers, .* be a Bernoulli"),
    "bernoulli": (lambda a, b: torch.bernoulli(torch.sigmoid(a)) * b, "draws random numbers"),
    "normal_": (lambda a, b: a + torch.empty_like(b).normal_(), "normal_.* draws random numbers"),
    # in place, on tensors that others see
    "argument": (lambda a, b: a.mul_(0.5) + b, "mul_.Tensor writes to an argument; write y = "),
    "state": (lambda a, b: b.add_(a), "add_.Tensor writes to an argument"),
    "buffer": (lambda a, b: a * _BUFFER.add_(1) + b, "writes to a tensor that is no argument"),
    "memory of another": (_in_place_twice, "writes to the memory of another tensor"),
    "out": (lambda a, b: torch.mul(a, b, out=torch.empty_like(a)), "mul.out writes to out"),
    # dtypes
    "float": (lambda a, b: a.float() * b, "a cast to torch.float32, where the gates are torch.fl"),
    "double": (lambda a, b: a.double() * b, "a cast to torch.float64, where the gates are torch"),
    "half": (lambda a, b: a.half().to(a.dtype) * b, "a cast to torch.float16"),
    "complex": (lambda a, b: torch.polar(a, b).real, "is not pointwise|complex"),
    "default dtype": (lambda a, b: (a > b) * 0.35, "got torch.float32 where the gates are torch.f"),
    "no derivative": (lambda a, b: a // 0.3 + b, "floor_divide.* write torch.floor"),
    # results
    "None": (lambda a, b: None, "expected a tensor or a tuple of tensors, got NoneType"),
    "number": (lambda a, b: 1.0, "expected a tensor or a tuple of tensors, got float"),
    "numbers": (lambda a, b: [1.0], "of the shape and dtype of the gates, got float"),
    "two": (lambda a, b: (a, b), "expected 1 tensors, got 2"),
    "none": (lambda a, b: (), "expected 1 tensors, got 0"),
    "boolean": (lambda a, b: a > b, "got torch.bool where the gates are torch.float"),
    "scalar": (lambda a, b: torch.tensor(0.5), r"got \(\) where the gates are \(2, 3\)"),
    "an error of its own": (lambda a, b: a + {}["key"], "KeyError: 'key'"),
}


@pytest.mark.parametrize("where", ["step", "source of stage 1"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, where):
    function, message = REFUSED[name]
    if where != "step" and name in ("two", "none"):
        pytest.skip("a source may have several results")
    arguments = {"step": lambda pre, state: function(pre[0], state[0])}
    if where != "step":
        source = arguments["step"]
        arguments = {
            "step": lambda pre, state: pre[0],
            "stages": (Stage(("a",)), Stage(("b",), source)),
            "gates": ("a", "b"),
        }
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=message) as refused:
        Cell(**({"name": "tried", "gates": ("a",)} | arguments))
    assert str(refused.value).startswith(f"cell 'tried', {where}")
    assert torch.equal(torch.get_rng_state(), before)


def test_message_names_the_line():
    line = test_message_names_the_line.__code__.co_firstlineno + 3
    with pytest.raises(ValueError, match="flip") as refused:
        cell_of(lambda a, b: a + b.flip(-1))
    assert f"{__file__}:{line} `cell_of(lambda a, b: a + b.flip(-1))`" in str(refused.value)


def test_a_result_that_is_a_param_alone_is_refused():
    with pytest.raises(ValueError, match=r"got \(3,\) where the gates are \(2, 3\)"):
        Cell("tried", lambda pre, state, params: params[0], gates=("a",), params=("p",))


# Values that a function closes over and that change afterwards.


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_cell_stays_what_it_was_when_it_was_made(backend, recompute):
    kept = {"rate": 0.5}

    def leaky(pre, state):
        return (1 - kept["rate"]) * state[0] + kept["rate"] * torch.tanh(pre[0])

    cell = Cell("leaky", leaky, gates=("n",))
    layer = Recurrent(cell, 3, 4, dtype=torch.float64, backend=backend, recompute=recompute)
    inputs = [torch.randn(5, 2, 3, dtype=torch.float64), *layer.parameters()]

    def run():
        output, _ = layer(inputs[0])
        return output, *torch.autograd.grad(output.square().sum(), inputs[1:])

    first = [tensor.detach().clone() for tensor in run()]
    kept["rate"] = 0.9
    for got, want in zip(run(), first, strict=True):
        assert torch.equal(got, want)
    lengths = torch.tensor([5, 5])  # by a cell that is derived only now
    torch.testing.assert_close(layer(inputs[0], lengths=lengths)[0], first[0])
    again = Cell("leaky", leaky, gates=("n",))
    assert again.key != cell.key  # one function, but another cell
    layer.cell = again
    assert not torch.allclose(run()[0], first[0])


@CPP
@pytest.mark.usefixtures("interpreter")
def test_value_that_changes_before_the_first_use_is_in_no_printed_kernel():
    kept = {"rate": 0.25}
    cell = cell_of(lambda a, b: kept["rate"] * a + b)
    kept["rate"] = 0.75
    assert "0.25" in cell.triton_source()
    assert "0.75" not in cell.triton_source()
    for backend in ("reference", "sequence", "cpp", "triton"):
        check(cell, lambda a, b, t: 0.25 * a + b, backend)


# Functions of other kinds.


class _Callable:
    def __call__(self, pre, state):
        return self.method(pre, state)

    def method(self, pre, state):
        return torch.tanh(pre[0]) * state[0]


class _Module(torch.nn.Module):
    def forward(self, pre, state):
        return torch.nn.Tanh()(pre[0]) * state[0]


def _scaled(pre, state, scale):
    def nested(value):
        return torch.tanh(value)

    return scale * nested(pre[0]) * state[0]


@pytest.mark.parametrize(
    "step",
    [_Callable(), _Callable().method, _Module(), functools.partial(_scaled, scale=1.0)],
    ids=["object", "method", "module", "partial"],
)
def test_kinds_of_functions(step):
    check(Cell("kinds", step, gates=("a",)), lambda a, b, t: torch.tanh(a) * b, "sequence")


@pytest.mark.parametrize(
    "mode",
    [
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.device("meta"),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["inference_mode", "no_grad", "default device", "autocast"],
)
def test_cell_that_is_made_under_a_mode(mode):
    with mode():
        cell = cell_of(lambda a, b: torch.tanh(a) * b)
    check(cell, lambda a, b, t: torch.tanh(a) * b, "sequence")


# Names and other arguments.


def _keep(pre, state):
    return pre[0] + state[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": None}, "name: expected a Python identifier, got None"),
        ({"gates": "ifgo"}, r"gates: .* got 'ifgo'; write \('i', 'f', 'g', 'o'\)"),
        ({"gates": None}, "gates: expected a sequence of names, got None"),
        ({"gates": [1, 2]}, "gates: expected a Python identifier, got 1"),
        ({"states": "hc"}, "states: expected a sequence of names, got 'hc'"),
        ({"step": 3}, "step: expected a function, got 3"),
        ({"step": torch.add}, "expected the parameters pre, state"),
        ({"stages": [("n",)]}, "stages: expected a sequence of Stage"),
        ({"stages": Stage(("n",))}, "stages: expected a sequence of Stage"),
    ],
)
def test_argument_of_another_type_is_a_type_error(arguments, message):
    with pytest.raises(TypeError, match=message):
        Cell(**({"name": "bad", "step": _keep, "gates": ("n",)} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "class"}, "name: expected a Python identifier, got 'class'"),
        ({"gates": ("if",)}, "gates: expected a Python identifier, got 'if'"),
        ({"gates": ("a'",)}, "gates: expected a Python identifier"),
        ({"params": ("a.b",)}, "params: expected a Python identifier, got 'a.b'"),
        ({"params": ("",)}, "params: expected a Python identifier, got ''"),
        *(
            ({"params": (name,)}, f"params: '{name}' is the name of an attribute of the modules")
            for name in ("weight_hh", "weight_ih", "weight_hh1", "bias_hh", "weight_hr", "bias")
        ),
        ({"params": ("forward",)}, "params: 'forward' is the name of an attribute"),
        ({"stages": (Stage(("n",), ()),)}, "stage 0: expected gates and a source"),
        ({"stages": (Stage(("n",)), Stage(()))}, "stage 1: expected gates and a source"),
    ],
)
def test_name_that_does_not_fit_is_a_value_error(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message) if "(" in message else message):
        Cell(**({"name": "bad", "step": _keep, "gates": ("n",)} | arguments))


def test_making_a_cell_imports_neither_dynamo_nor_sympy():
    code = """
        import sys, torch, fused_rnn
        before = set(sys.modules)
        fused_rnn.Cell("x", lambda pre, state: torch.tanh(pre[0]) * state[0], gates=("n",))
        print(*(set(sys.modules) - before))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    loaded = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert not {"sympy", "torch._dynamo", "triton"} & set(loaded)
