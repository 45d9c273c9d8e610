"""The functions of a cell as FX graphs: their arguments, what they are recorded under, their vjp.

``recorder`` records any function of tensors. Here it is given those of a cell: a step or a source,
whose arguments come in groups, or the vector-Jacobian product of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from .recorder import Recorder, is_tensor, record

# The arguments of a step or source; those of a vjp are followed by the cotangents.
ARGUMENTS = ("pre", "state", "params", "streams", "t")


class Sizes(NamedTuple):
    """How many tensors a function has of each kind; ``results`` None where that is to be found."""

    pre: int
    state: int
    params: int
    streams: int
    results: int | None


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
