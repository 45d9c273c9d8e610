"""What a cell may be, checked when it is made; and its functions as they were then.

A step and a source are pure pointwise functions of their arguments alone. They are recorded under
several circumstances, which must give one graph. Whatever runs the cell later runs that graph: a
number that the function closes over may change, but the cell does not.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import itertools
import linecache
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from .recorder import NEW, Recorder, is_of_user, is_tensor, line_of_user, record

aten = torch.ops.aten

# The arguments of a step or source; a vjp has the cotangents after them.
ARGUMENTS = ("pre", "state", "params", "streams", "t")

# Operations that are computed element by element though PyTorch does not tag them so.
_UNTAGGED = {
    aten._prelu_kernel.default,
    aten._to_copy.default,
    aten.copy_.default,
    aten.detach.default,
    aten.empty_like.default,
    aten.fill_.Scalar,
    aten.fill_.Tensor,
    aten.floor_divide.default,
    aten.full_like.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.log_sigmoid_forward.default,
    aten.masked_fill.Tensor,
    aten.ones_like.default,
    aten.rsub.Scalar,
    aten.rsub.Tensor,
    aten.zero_.default,
    aten.zeros_like.default,
}
_SAME_DTYPE = "write .to(pre[0].dtype), or compute in the dtype of the arguments throughout"


class _Refused(ValueError):
    """What is raised while a function is recorded."""


class Sizes(NamedTuple):
    """How many tensors a function has of each kind; ``results`` None where that is to be found."""

    pre: int
    state: int
    params: int
    streams: int
    results: int | None


def take(where: str, function: Callable, sizes: Sizes) -> Snapshot:
    """A ``Snapshot``, whatever mode, transform or inference a cell is made under."""
    if not (
        torch.is_inference_mode_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return Snapshot(where, function, sizes)
    # In a thread of its own none of these is on. (Only then: it could not import what the module
    # that makes the cell is still importing.)
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(Snapshot, where, function, sizes).result()


class Snapshot:
    """One function of a cell as it was when it was taken.

    Args:
        where: how messages begin.
        function: ``function(pre, state, params, streams, t)``, which returns a tensor or a
            sequence of tensors.
        sizes: of the function.

    Raises:
        ValueError: the function is none that a cell may have; names the line, the operation and
            the remedy.

    Attributes:
        sizes: with the number of results.
        text: the same for functions that compute the same.
    """

    def __init__(self, where: str, function: Callable, sizes: Sizes):
        self.where, self.sizes = where, sizes
        base, single = Circumstances(gradients=True), {"size": (2, 3), "dtype": torch.float32}
        # Without gradients first: there is a line to be named where an argument is written to.
        plain = self._record(function, Circumstances(device="cuda:7", **single))
        self._graphs = {
            (vjp, taken.dtype): self._record(function, taken, vjp)
            for vjp in (False, True)
            for taken in (base, base._replace(**single))
        }
        exact = self.graph(False, torch.float64)
        for other in (self.graph(False, torch.float32), plain):
            if _first_difference(exact, other):
                for what, remedy, change in _WHAT_MAY_DIFFER:
                    one = self._record(function, base._replace(**change))
                    self._expect_same(exact, one, what, remedy)
                self._expect_same(exact, other, "several circumstances", "compute the same in all")
        what = "the sizes of the tensors or the dtype, in the derivative"
        graphs = (self.graph(True, dtype) for dtype in (torch.float64, torch.float32))
        self._expect_same(*graphs, what, "do not read them")
        self.text = "\n".join(word for graph in self._graphs.values() for word, _ in _words(graph))
        self._compiled = {key: compiled(graph) for key, graph in self._graphs.items()}
        for vjp in (False, True):
            self._compiled[vjp, None] = compiled(_of_any_dtype(self.graph(vjp, torch.float32)))
        self._times = not _is_unused(exact, "t")
        self._check_values(function)

    def graph(self, vjp: bool, dtype: torch.dtype) -> fx.Graph:
        """The recorded function, of float64 or float32 arguments.

        Args:
            vjp: False for the function, over flat arguments: pre, state, params, streams and t.
                True for its derivative, over these and the cotangents of its results; returns
                those of pre, state, params and streams.
        """
        return self._graphs[vjp, dtype if dtype == torch.float64 else torch.float32]

    def __call__(self, pre, state, params, streams, t) -> tuple[Tensor, ...]:
        """Evaluate the function, of arguments of any one floating dtype."""
        if self._times or self._own_derivative:
            like = state[0]
            if is_tensor(t):
                t = t.to(like.dtype)
            else:
                t = torch.full((), t, dtype=like.dtype, device=like.device)
        flat = (*pre, *state, *params, *streams, t)
        if self._own_derivative and torch.is_grad_enabled():
            return _OwnDerivative.apply(self, *flat)
        return self.run(False, flat)

    def run(self, vjp: bool, flat: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Evaluate a graph."""
        dtype = flat[self.sizes.pre].dtype  # of a state
        run = self._compiled.get((vjp, dtype)) or self._compiled[vjp, None]
        return run(*flat)

    def _record(self, function, circumstances, vjp=False) -> fx.Graph:
        def checked(*groups):
            return self._results(function(*groups), groups[1][0])

        def make(arguments):
            return _Checking(self.where, arguments, vjp)

        try:
            return record_function(checked, self.sizes, circumstances, vjp, make)
        except _Refused as refused:
            raise ValueError(str(refused)) from None
        except Exception as error:
            what = "its derivative cannot be recorded: " if vjp else ""
            line = _line_of(error)
            raise self._error(f"{what}{type(error).__name__}: {error}", line) from error

    def _results(self, results, like):
        """The results of a function, checked to be tensors like a state."""
        if is_tensor(results):
            results = (results,)
        if not isinstance(results, list | tuple):
            kind = type(results).__name__
            raise _Refused(f"{self.where}: expected a tensor or a tuple of tensors, got {kind}")
        for result in results:
            if not is_tensor(result):
                got = type(result).__name__
            elif result.shape != like.shape:
                got = f"{tuple(result.shape)} where the gates are {tuple(like.shape)}"
            elif result.dtype != like.dtype:
                got = f"{result.dtype} where the gates are {like.dtype}; {_SAME_DTYPE}"
            else:
                continue
            raise _Refused(
                f"{self.where}: expected tensors of the shape and dtype of the gates, got {got}"
            )
        expected = self.sizes.results
        if len(results) != (len(results) or 1 if expected is None else expected):
            count = "at least 1" if expected is None else expected
            raise _Refused(f"{self.where}: expected {count} tensors, got {len(results)}")
        self.sizes = self.sizes._replace(results=len(results))
        return tuple(results)

    def _error(self, problem, line):
        return ValueError(f"{self.where}{describe(line)}: {problem}")

    def _expect_same(self, one, other, what, remedy):
        difference = _first_difference(one, other)
        if difference:
            (line,) = difference
            raise self._error(f"what is computed depends on {what}; {remedy}", line)

    def _check_values(self, function):
        """The graphs compute what the function computes, and unit by unit."""
        arguments = Circumstances(size=(4, 2), gradients=True, seed=1).arguments(self.sizes, True)
        *groups, cotangents = arguments
        flat = [tensor for group in groups[:4] for tensor in group]
        with torch.enable_grad():
            want = self._results(function(*groups), flat[self.sizes.pre])
            dwant = pull_back(want, flat, cotangents)
            got = self.run(False, (*flat, groups[4]))
            dgot = pull_back(got, flat, cotangents)
            own = self.run(True, (*flat, groups[4], *cotangents))
        if not _close(got, want) or not _close(own, dwant):
            raise self._error(
                "the same arguments do not always give the same results; a cell's functions are "
                "pure: they read no value that changes, and nothing but their arguments",
                None,
            )
        # Of an autograd.Function, what the graph alone would not give.
        self._own_derivative = not _close(dgot, dwant)
        with torch.no_grad():
            moved = [v if v.dim() < 2 else v.clone() for v in flat]
            for tensor in moved:
                if tensor.dim() == 2:
                    tensor[2, 1] += 0.5
            pairs = zip(self.run(False, (*moved, groups[4])), got, strict=True)
            for after, before in pairs:
                changed = ~torch.isclose(after, before, rtol=0, atol=0, equal_nan=True)
                changed[2, 1] = False
                if changed.any():
                    raise self._error("a unit of a row depends on other units or rows", None)


class _OwnDerivative(torch.autograd.Function):
    """A function whose derivative is not that of its operations."""

    @staticmethod
    def forward(ctx, snapshot, *flat):
        ctx.snapshot = snapshot
        ctx.save_for_backward(*flat)
        return snapshot.run(False, flat)

    @staticmethod
    def backward(ctx, *cotangents):
        flat = ctx.saved_tensors
        shared = [None if v.dim() == cotangents[0].dim() else v.shape for v in flat[:-1]]
        grads = ctx.snapshot.run(True, (*flat, *cotangents))
        summed = [g if s is None else g.sum_to_size(s) for g, s in zip(grads, shared, strict=True)]
        return None, *summed, None


def pull_back(results: Sequence[Tensor], inputs: Sequence[Tensor], cotangents) -> list[Tensor]:
    """The vector-Jacobian product: one gradient per input, zeros where there is none."""
    pairs = zip(results, cotangents, strict=True)
    pairs = [(result, cotangent) for result, cotangent in pairs if result.requires_grad]
    if not pairs:
        return [torch.zeros_like(tensor) for tensor in inputs]
    outputs, cotangents = zip(*pairs, strict=True)
    # What torch.autograd.grad calls, which imports SymPy for seconds.
    grads = torch.autograd.Variable._execution_engine.run_backward(
        outputs,
        cotangents,
        keep_graph=True,
        create_graph=True,
        inputs=tuple(inputs),
        allow_unreachable=True,
        accumulate_grad=False,
    )
    return [
        torch.zeros_like(tensor) if grad is None else grad
        for grad, tensor in zip(grads, inputs, strict=True)
    ]


class Circumstances(NamedTuple):
    """What a function is recorded under."""

    size: tuple[int, int] = (3, 5)
    dtype: torch.dtype = torch.float64
    gradients: bool = False
    device: str = "cpu"
    seed: int = 0

    def arguments(self, sizes: Sizes, vjp: bool = False):
        """The groups of ARGUMENTS; with ``vjp``, the cotangents after them."""
        generator = torch.Generator("cpu").manual_seed(self.seed)

        def some(count, size):
            return tuple(
                torch.randn(size, dtype=self.dtype, generator=generator, device="cpu")
                for _ in range(count)
            )

        # Params have no batch; in a derivative they do, for its sum is not part of it.
        kinds = (self.size, self.size, self.size if vjp else self.size[1:], self.size)
        groups = [some(*pair) for pair in zip(sizes[:4], kinds, strict=True)]
        for tensor in (tensor for group in groups for tensor in group):
            tensor.requires_grad_(self.gradients)
        t = torch.full((), 3, dtype=self.dtype, device="cpu")
        return (*groups, t, some(sizes.results, self.size)) if vjp else (*groups, t)


def record_function(
    function: Callable,
    sizes: Sizes,
    circumstances: Circumstances,
    vjp: bool,
    make: Callable = Recorder,
) -> fx.Graph:
    """The graph of a function of a cell, or of its vector-Jacobian product.

    Args:
        function: ``function(pre, state, params, streams, t)``, which returns a tuple of tensors.
        make: makes the recorder of the named arguments.
    """
    flat, names = flatten(circumstances.arguments(sizes, vjp))
    count = sum(sizes[:4]) + 1

    def run(*tensors):
        results = function(*unflatten(sizes, tensors))
        return pull_back(results, tensors[: count - 1], tensors[count:]) if vjp else results

    grads = torch.enable_grad() if circumstances.gradients else torch.no_grad()
    recorder = make(dict(zip(names, flat, strict=True)))
    with grads, _Calls(recorder, circumstances.device):
        return record(run, recorder, flat)


def flatten(groups: Sequence) -> tuple[list[Tensor], list[str]]:
    """The tensors of the groups of ARGUMENTS and of cotangents, and what each is called."""
    flat, names = [], []
    for name, group in zip((*ARGUMENTS, "cotangent"), groups, strict=False):
        if is_tensor(group):
            flat, names = [*flat, group], [*names, name]
        else:
            flat, names = [*flat, *group], [*names, *(f"{name}_{i}" for i in range(len(group)))]
    return flat, names


def unflatten(sizes: Sizes, flat: Sequence[Tensor]):
    """The groups of ARGUMENTS from their tensors, which may go on."""
    groups, begin = [], 0
    for size in sizes[:4]:
        groups.append(tuple(flat[begin : begin + size]))
        begin += size
    return (*groups, flat[begin])


_WHAT_MAY_DIFFER = (
    (
        "values that change and are none of its tensors",
        "compute with the arguments as tensors, and with nothing that changes",
        {"seed": 1},
    ),
    (
        "the sizes of the tensors",
        "a cell does not know how many units or rows there are: give a number by functools.partial",
        {"size": (2, 3)},
    ),
    ("the dtype", "compute the same in every dtype", {"dtype": torch.float32}),
    (
        "whether gradients are recorded",
        "compute the same in training and inference",
        {"gradients": False},
    ),
    ("the device", "compute the same on every device", {"device": "cuda:7"}),
)


class _Checking(Recorder):
    """Refuses what has no place in a cell."""

    def __init__(self, where, arguments, vjp):
        super().__init__(arguments)
        self._where, self._vjp = where, vjp

    def refuse(self, problem):
        raise _Refused(f"{self._where}{describe(line_of_user())}: {problem}")

    def check_call(self, func, args, kwargs):
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.refuse(
                f"{func} draws random numbers, and the backward would draw others; draw them "
                "outside and pass them as one of the cell's streams"
            )
        if torch.Tag.data_dependent_output in func.tags and self._find(args[0]) is not None:
            self.refuse(
                f"{func} takes a number out of a tensor, as if, int(), float() and .item() do; it "
                "would be the same at every step from then on; use torch.where"
            )
        if func is aten.floor_divide.default and any(
            is_tensor(v) and v.requires_grad for v in args
        ):
            self.refuse(f"{func} has no derivative in PyTorch; write torch.floor(a / b)")
        if self._vjp and line_of_user() is None:
            return  # a formula of autograd's
        if func in NEW:
            return
        tensors = [v for v in (*args, *kwargs.values()) if is_tensor(v)]
        lists = [v for v in args if isinstance(v, list | tuple) and any(map(is_tensor, v))]
        if not lists and all(self._find(v) is None for v in tensors):
            return
        if func._schema.is_mutable and "out" in kwargs:
            self.refuse(f"{func} writes to out; write y = ... instead")
        if func is aten._to_copy.default and args[0].is_floating_point():
            to = kwargs.get("dtype", self.dtype)
            if to.is_floating_point and to != self.dtype:
                self.refuse(
                    f"a cast to {to}, where the gates are {self.dtype}: a cell has one floating "
                    "dtype, that of its arguments; leave the cast out"
                )
        if torch.Tag.pointwise not in func.tags and func not in _UNTAGGED and func not in _SAME:
            self.refuse(
                f"{func} is not pointwise: each unit of each row is computed on its own, from the "
                "same unit of the arguments; a product goes into a stage of the cell, anything "
                "else that moves or mixes values outside of it"
            )

    def check_value(self, func, value):
        if value.is_complex():
            self.refuse(f"{func} gives {value.dtype}; a cell has real numbers")

    def check_constant(self, tensor):
        if self._vjp and line_of_user() is None:
            return
        shape = tuple(tensor.shape)
        if tensor.requires_grad:
            self.refuse(
                f"a tensor of shape {shape} that is no argument requires a gradient, which it "
                "would not get; make it one of the cell's params, or .detach() it"
            )
        if tensor.numel() != 1:
            self.refuse(
                f"a tensor of shape {shape} is no argument of the function; make it one of the "
                "cell's params or streams, or, where it holds one number, torch.full_like(pre[0], "
                "number)"
            )


def _line_of(error):
    """The innermost line of a user's code in a traceback."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if is_of_user(trace.tb_frame.f_code.co_filename):
            line = (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return line


_SAME = {aten.alias.default, aten.clone.default, aten.lift_fresh_copy.default}


class _Calls(TorchFunctionMode):
    """Watches what a function calls.

    It says that tensors lie on another device, so that a branch on it is found, and tells the
    recorder when ``detach`` is the function's own.
    """

    def __init__(self, recorder, device):
        super().__init__()
        self._recorder, self._device = recorder, torch.device(device)
        self._is = {
            torch.Tensor.device.__get__: self._device,
            torch.Tensor.is_cuda.__get__: self._device.type == "cuda",
            torch.Tensor.is_cpu.__get__: self._device.type == "cpu",
        }

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self._is:
            return self._is[func]
        if self._device.type != "cpu":
            args = [self._real(value) for value in args]
            kwargs = {key: self._real(value) for key, value in (kwargs or {}).items()}
        self._recorder.detaching = func in _DETACH
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._recorder.detaching = False

    def _real(self, value):
        return torch.device("cpu") if value == self._device else value


_DETACH = {torch.detach, torch.Tensor.detach, torch.Tensor.data.__get__}


def describe(line) -> str:
    """A line of code in a message."""
    if line is None:
        return ""
    file, number = line
    text = textwrap.shorten(linecache.getline(file, number), 80)
    return f", {file}:{number}" + (f" `{text}`" if text else "")


def _first_difference(one, other):
    """None for graphs that are one, but for ``detach``; else the line where they differ, in a list.

    (A graph under no_grad is all detached.)
    """
    for a, b in itertools.zip_longest(_words(one, True), _words(other, True)):
        if a is None or b is None or a[0] != b[0]:
            nodes = [pair[1] for pair in (a, b) if pair is not None]
            return [next(filter(None, (node.meta.get("line") for node in nodes)), None)]
    return None


def _words(graph, rounded=False):
    """What a graph consists of, node by node, but for ``detach``.

    Args:
        rounded: as far as it is one for all dtypes: without casts among floating dtypes, and with
            numbers rounded to float32, which a function may have made them in.
    """
    numbers, count = {}, 0
    for node in graph.nodes:
        cast = rounded and node.target is aten._to_copy.default
        if node.target is aten.detach.default or (cast and _is_float(node)):
            numbers[node] = numbers[node.args[0]]
            continue
        numbers[node], count = count, count + 1

        def word(value):
            if isinstance(value, fx.Node):
                return f"%{numbers[value]}"
            if rounded and isinstance(value, torch.dtype):
                return ""
            return ctypes.c_float(value).value if rounded and isinstance(value, float) else value

        parts = fx.node.map_aggregate((node.args, node.kwargs), word)
        yield f"{node.op} {node.target} {parts}", node


def _is_float(cast):
    values = (cast.meta["val"], cast.args[0].meta["val"])
    return all(value.is_floating_point() for value in values)


def _of_any_dtype(graph: fx.Graph) -> fx.Graph:
    """A graph of float32 arguments for those of any floating dtype."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    first = next(iter(copy.nodes))
    nodes = [n for n in copy.nodes if n.kwargs.get("dtype") == torch.float32]
    if nodes:
        with copy.inserting_before(next(n for n in copy.nodes if n.op != "placeholder")):
            dtype = copy.call_function(getattr, (first, "dtype"))
        for node in nodes:
            node.update_kwarg("dtype", dtype)
    return copy


def _is_unused(graph, name):
    (node,) = [n for n in graph.find_nodes(op="placeholder") if n.target == name]
    return not node.users


def compiled(graph: fx.Graph) -> Callable:
    """A graph as a Python function of flat arguments, which returns a tuple."""
    code = graph.python_code("self")
    space = dict(code.globals)
    exec(compile(code.src, "<fused_rnn snapshot>", "exec"), space)
    forward = space["forward"]
    return lambda *flat: tuple(forward(None, *flat))


def _close(some, others) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)
        for a, b in zip(some, others, strict=True)
    )
