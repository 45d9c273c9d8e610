"""Record the functions of a cell, and their vector-Jacobian products, as FX graphs.

``recorder`` records any function of tensors. Here it records a step or a source of a cell, whose
arguments come in groups, or the vector-Jacobian product (vjp) of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from .recorder import Recorder, is_tensor, record

# The arguments of a step or source; those of a vjp are followed by the cotangents.
ARGUMENTS = ("pre", "state", "params", "streams", "t")


class Sizes(NamedTuple):
    """The number of tensors in each group of arguments and of results (None: not known yet)."""

    pre: int
    state: int
    params: int
    streams: int
    results: int | None


class Circumstances(NamedTuple):
    """The circumstances under which a function is recorded."""

    size: tuple[int, int] = (3, 5)
    dtype: torch.dtype = torch.float64
    gradients: bool = False
    device: str = "cpu"
    seed: int = 0

    def arguments(self, sizes: Sizes, vjp: bool = False) -> tuple[Any, ...]:
        """Random tensors for ARGUMENTS; with ``vjp``, followed by the cotangents."""
        generator = torch.Generator("cpu").manual_seed(self.seed)

        def some(count, size):
            return tuple(
                torch.randn(size, dtype=self.dtype, generator=generator, device="cpu")
                for _ in range(count)
            )

        # Params have no batch dim; in a vjp they do, since the sum over rows is not part of it.
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
    """Record a function of a cell, or its vector-Jacobian product.

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


def pull_back(
    results: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> list[Tensor]:
    """The vector-Jacobian product: one gradient per input, zeros where there is none."""
    pairs = zip(results, cotangents, strict=True)
    pairs = [(result, cotangent) for result, cotangent in pairs if result.requires_grad]
    if not pairs:
        return [torch.zeros_like(tensor) for tensor in inputs]
    outputs, cotangents = zip(*pairs, strict=True)
    # torch.autograd.grad calls this too, but first imports SymPy, which takes seconds.
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


def flatten(groups: Sequence) -> tuple[list[Tensor], list[str]]:
    """Flatten the groups of ARGUMENTS and of cotangents; returns the tensors and their names."""
    flat, names = [], []
    for name, group in zip((*ARGUMENTS, "cotangent"), groups, strict=False):
        if is_tensor(group):
            flat, names = [*flat, group], [*names, name]
        else:
            flat, names = [*flat, *group], [*names, *(f"{name}_{i}" for i in range(len(group)))]
    return flat, names


def unflatten(sizes: Sizes, flat: Sequence[Tensor]) -> tuple[Any, ...]:
    """Group flat tensors as ARGUMENTS; further tensors may follow them."""
    groups, begin = [], 0
    for size in sizes[:4]:
        groups.append(tuple(flat[begin : begin + size]))
        begin += size
    return (*groups, flat[begin])


class _Calls(TorchFunctionMode):
    """Intercepts the calls of a function while it is recorded.

    It pretends that tensors are on another device, to reveal a branch on the device. It tells the
    recorder when the function itself calls ``detach``, as opposed to autograd.
    """

    def __init__(self, recorder, device):
        super().__init__()
        self._recorder, self._device = recorder, torch.device(device)
        self._is = {
            _GETTERS.device.__get__: self._device,
            _GETTERS.is_cuda.__get__: self._device.type == "cuda",
            _GETTERS.is_cpu.__get__: self._device.type == "cpu",
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


# The attributes of tensors are declared as values; of the class they are descriptors.
_GETTERS: Any = torch.Tensor
_DETACH = {torch.detach, torch.Tensor.detach, _GETTERS.data.__get__}
