"""What runs an op: found when it runs, so that the choice is no part of a compiled graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from . import backends, compiler, once, self_check, sequence
from .cells import Cell


def forward(backend: str, cell: Cell, x: Tensor, save: bool) -> Callable:
    """What takes the arguments of ``sequence.forward`` and returns what it does.

    Args:
        backend: as the op was given it: "triton", "cpp" or "sequence"; "auto" is the kernels where
            their self-check agrees, on the CPU the C++ loop where it can be built, and otherwise
            "sequence".
        save: whether a backward follows.

    Raises:
        RuntimeError: "cpp" cannot serve; says why.
    """
    if runs_in_cpp(backend, cell, x):
        return cpu().forward
    if not _on_cpu(backend, x) and self_check.admits(backend, cell, "forward", x, save):
        return _on_device_of(x, _kernels()[0].forward)
    return sequence.forward


def backward(backend: str, cell: Cell, pre: Tensor, dpre: Tensor | None) -> Callable:
    """The same for ``sequence.backward``.

    Args:
        dpre: the gradient of the gates; the kernels and the loop take none, which only the backward
            of a backward has.
    """
    if dpre is not None:
        return sequence.backward
    if runs_in_cpp(backend, cell, pre):
        return _without_dpre(cpu().backward)
    if not _on_cpu(backend, pre) and self_check.admits(backend, cell, "backward", pre):
        return _on_device_of(pre, _without_dpre(_kernels()[1].backward))
    return sequence.backward


def runs_in_cpp(backend: str, cell: Cell, like: Tensor) -> bool:
    """Whether an op that is given such tensors runs the C++ loop.

    Raises:
        RuntimeError: "cpp" cannot serve; says why.
    """
    if not _on_cpu(backend, like):
        return False
    reason = why_not_cpp(cell, like.device, like.dtype)
    if reason and backend == "cpp":
        raise RuntimeError(f'backend "cpp" cannot run cell {cell.name!r} here: {reason}')
    if reason:
        _say_once(reason)
    return reason is None


def why_not_cpp(cell: Cell, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why the C++ loop cannot serve, or None where it can, and then is built."""
    if device.type != "cpu":
        return f"the tensors are on {device}; it needs CPU tensors"
    return cpu().why_not(cell, dtype)


@once.once
def cpu():
    from .kernels import cpu

    return cpu


@once.once
def _kernels():
    from .kernels import backward, forward

    return forward, backward


def _on_cpu(backend, like):
    """Whether no kernels are meant, not even interpreted ones."""
    if backend == "auto":
        return like.device.type == "cpu" and not backends.interpreted()
    return backend == "cpp"


@once.once
def _say_once(reason):
    """A machine without a compiler is nothing to warn of; a compiler that fails is."""
    if isinstance(reason, compiler.Fault):
        warnings.warn(
            'fused_rnn: backend "auto" runs "sequence" where its C++ cannot be built. Please '
            f"report this: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )


def _on_device_of(like, function):
    def run(*arguments):
        with torch.cuda.device_of(like):  # Triton launches on the current device
            return function(*arguments)

    return run


def _without_dpre(function):
    def run(*arguments):
        *before, _, dfinals, reverse = arguments
        return function(*before, dfinals, reverse)

    return run
