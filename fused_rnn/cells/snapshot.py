"""The functions of a cell, checked when it is made and kept as graphs.

A function is recorded under several circumstances, which must give one graph. Every backend runs
that graph later: a number that the function closes over may change, but the cell does not.
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._C._functorch import peek_interpreter_stack

from . import rules
from .functions import Circumstances, Sizes, pull_back, record_function
from .recorder import is_tensor
from .rules import Checking, Refused

_SAME_DTYPE = "write .to(pre[0].dtype), or compute in the dtype of the arguments throughout"
# Dependencies to look for: the name, the remedy, and circumstances that reveal it.
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


def take(where: str, function: Callable, sizes: Sizes) -> Snapshot:
    """Take a ``Snapshot``, outside of any mode, transform or inference mode that is active."""
    if not (
        torch.is_inference_mode_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or peek_interpreter_stack() is not None
    ):
        return Snapshot(where, function, sizes)
    # None of these is active in a new thread. It is used only if needed: it would deadlock on an
    # import in progress in the module that makes the cell.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        return thread.submit(Snapshot, where, function, sizes).result()


class Snapshot:
    """One function of a cell, recorded when the cell is made.

    Args:
        where: the beginning of messages.
        function: ``function(pre, state, params, streams, t)``, which returns a tensor or a
            sequence of tensors.
        sizes: of the function.

    Raises:
        ValueError: a cell may not have this function; the message names the line, the operation
            and the remedy.

    Attributes:
        sizes: completed with the number of results.
        text: the graphs as text, equal for functions that compute the same.
    """

    def __init__(self, where: str, function: Callable, sizes: Sizes):
        self.where, self.sizes = where, sizes
        base, single = Circumstances(gradients=True), {"size": (2, 3), "dtype": torch.float32}
        # Without gradients first: then an error about a write to an argument can name its line.
        plain = self._record(function, Circumstances(device="cuda:7", **single))
        self._graphs = {
            (vjp, taken.dtype): self._record(function, taken, vjp)
            for vjp in (False, True)
            for taken in (base, base._replace(**single))
        }
        exact = self.graph(False, torch.float64)
        for other in (self.graph(False, torch.float32), plain):
            if rules.first_difference(exact, other):
                for what, remedy, change in _WHAT_MAY_DIFFER:
                    one = self._record(function, base._replace(**change))
                    self._expect_same(exact, one, what, remedy)
                self._expect_same(exact, other, "several circumstances", "compute the same in all")
        what = "the sizes of the tensors or the dtype, in the derivative"
        one, other = (self.graph(True, dtype) for dtype in (torch.float64, torch.float32))
        self._expect_same(one, other, what, "do not read them")
        self.text = "\n".join(
            word for graph in self._graphs.values() for word, _ in rules.words(graph)
        )
        self._compiled: dict[tuple[bool, torch.dtype | None], Callable] = {
            key: compiled(graph) for key, graph in self._graphs.items()
        }
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

    def __call__(
        self,
        pre: Sequence[Tensor],
        state: Sequence[Tensor],
        params: Sequence[Tensor],
        streams: Sequence[Tensor],
        t: int | Tensor,
    ) -> tuple[Tensor, ...]:
        """Evaluate the function for arguments of one floating dtype."""
        if self._times or self._own_derivative:
            like = state[0]
            if isinstance(t, Tensor):
                t = t.to(like.dtype)
            else:
                t = torch.full((), t, dtype=like.dtype, device=like.device)
        flat: tuple[Any, ...] = (*pre, *state, *params, *streams, t)
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
            return Checking(self.where, arguments, vjp)

        try:
            return record_function(checked, self.sizes, circumstances, vjp, make)
        except Refused as refused:
            raise ValueError(str(refused)) from None
        except Exception as error:
            what = "its derivative cannot be recorded: " if vjp else ""
            line = rules.line_of(error)
            raise self._error(f"{what}{type(error).__name__}: {error}", line) from error

    def _results(self, results, like):
        """Check that the results of a function are tensors like a state; returns them."""
        if is_tensor(results):
            results = (results,)
        if not isinstance(results, list | tuple):
            kind = type(results).__name__
            raise Refused(f"{self.where}: expected a tensor or a tuple of tensors, got {kind}")
        for result in results:
            if not is_tensor(result):
                got = type(result).__name__
            elif result.shape != like.shape:
                got = f"{tuple(result.shape)} where the gates are {tuple(like.shape)}"
            elif result.dtype != like.dtype:
                got = f"{result.dtype} where the gates are {like.dtype}; {_SAME_DTYPE}"
            else:
                continue
            raise Refused(
                f"{self.where}: expected tensors of the shape and dtype of the gates, got {got}"
            )
        expected = self.sizes.results
        if len(results) != (len(results) or 1 if expected is None else expected):
            count = "at least 1" if expected is None else expected
            raise Refused(f"{self.where}: expected {count} tensors, got {len(results)}")
        self.sizes = self.sizes._replace(results=len(results))
        return tuple(results)

    def _error(self, problem, line):
        return ValueError(f"{self.where}{rules.describe(line)}: {problem}")

    def _expect_same(self, one, other, what, remedy):
        difference = rules.first_difference(one, other)
        if difference:
            (line,) = difference
            raise self._error(f"what is computed depends on {what}; {remedy}", line)

    def _check_values(self, function):
        """Check that the graphs compute what the function does, each unit on its own."""
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
        # True for an autograd.Function, whose derivative is not that of the graph.
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


def compiled(graph: fx.Graph) -> Callable:
    """Compile a graph to a Python function of flat arguments, which returns a tuple."""
    code = graph.python_code("self")
    space = dict(code.globals)
    exec(compile(code.src, "<fused_rnn snapshot>", "exec"), space)
    forward = space["forward"]
    return lambda *flat: tuple(forward(None, *flat))


def _of_any_dtype(graph: fx.Graph) -> fx.Graph:
    """Convert a graph for float32 arguments to one for any floating dtype."""
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


def _close(some, others) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)
        for a, b in zip(some, others, strict=True)
    )
