"""What runs an op: found when it runs, so that the choice is no part of a compiled graph."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from .. import context, once
from ..cells import Cell
from ..plan import plans
from ..self_check import admission
from . import sequence

BACKENDS = ("auto", "triton", "cpp", "aten", "sequence", "reference")

# Of each thread; unlike a context variable, torch.compile can read and guard this.
_chosen = threading.local()


@contextlib.contextmanager
def use_backend(name: str):
    """Make ``name`` the backend of every call inside the ``with`` that names none itself.

    - ``"auto"``: the fused kernels on CUDA tensors, if they pass the self-check of their first use
      (``check_kernels``), otherwise ``"sequence"``. On CPU tensors torch.nn's own ATen kernels
      where these are faster, as timed at the first use (not with ``FUSED_RNN_MEASURE=0``),
      otherwise ``"cpp"``, and ``"sequence"`` where there is no compiler; ``explain`` says which.
      Modules of one step take torch.nn's function of one step, or PyTorch's operations. With
      ``TRITON_INTERPRET=1`` the fused kernels on CPU tensors too. Layers of which ``bench/tune``
      measured on this machine that cuDNN is faster run there, without gradients of gradients; not
      with ``FUSED_RNN_TUNED=0``.
    - ``"triton"``: the fused kernels.
    - ``"cpp"``: on CPU tensors a loop in C++, built by this machine's compiler at the first use of
      a cell and kept in ``$FUSED_RNN_CACHE`` or ``~/.cache/fused_rnn``.
    - ``"aten"``: torch.nn's kernels (cuDNN on a GPU); only modules of tanh and relu RNN, LSTM and
      GRU (reset after), of one step too.
    - ``"sequence"``: PyTorch operations, on whole sequences where possible.
    - ``"reference"``: a plain differentiable loop over time.

    Raises:
        ValueError: another name.
    """
    before, _chosen.name = requested(None), check_name(name)
    try:
        yield
    finally:
        _chosen.name = before


def check_name(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def requested(backend: str | None) -> str:
    """The backend asked for by argument or, for None, by the innermost ``use_backend``."""
    return getattr(_chosen, "name", "auto") if backend is None else check_name(backend)


def for_layer(backend: str | None, cell: Cell, device: torch.device, dtype: torch.dtype) -> str:
    """What runs one layer that ATen does not: "onnx" while a model is exported to it, "reference",
    or what an op is told.

    That is "triton", "cpp", "sequence", or "auto" where the op decides, see ``engines``.

    Raises:
        RuntimeError: the backend asked for cannot serve this cell, device or dtype; says why.
    """
    if context.exporting():
        return "onnx"  # whatever was asked for: a backend that cannot serve here does not matter
    backend = requested(backend)
    if backend == "aten":
        raise RuntimeError(
            f'backend "aten" cannot run cell {cell.name!r} here: it runs whole modules of '
            "rnn_tanh, rnn_relu, lstm and gru; use another backend"
        )
    if backend == "reference" or (backend == "auto" and context.in_forward_mode()):
        return "reference"
    if context.in_forward_mode():
        raise RuntimeError(
            f'backend "{backend}" cannot run cell {cell.name!r} here: inside forward-mode '
            'differentiation (jvp, jacfwd, hessian); use "auto" or "reference"'
        )
    if device.type == "meta":
        return "sequence"  # nothing runs: any backend has these shapes
    if backend == "cpp" and device.type != "cpu":
        raise RuntimeError(
            f'backend "cpp" cannot run cell {cell.name!r} here: the tensors are on {device}'
        )
    if backend in ("cpp", "sequence"):
        return backend
    if backend == "auto" and device.type == "cpu" and not context.interpreted():
        return backend  # the C++ loop, if it can be built
    reason = plans.why_not_triton(cell, device, dtype)
    if backend == "triton" and reason:
        raise RuntimeError(f'backend "triton" cannot run cell {cell.name!r} here: {reason}')
    return "sequence" if reason else backend


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
    if not _on_cpu(backend, x) and admission.admits(backend, cell, "forward", x, save):
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
    if not _on_cpu(backend, pre) and admission.admits(backend, cell, "backward", pre):
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
    from ..kernels.cpu import engine

    return engine


@once.once
def _kernels():
    from ..kernels.gpu import backward, forward

    return forward, backward


def _on_cpu(backend, like):
    """Whether no kernels are meant, not even interpreted ones."""
    if backend == "auto":
        return like.device.type == "cpu" and not context.interpreted()
    return backend == "cpp"


@once.once
def _say_once(reason):
    """A machine without a compiler is nothing to warn of; a compiler that fails is."""
    if isinstance(reason, cpu().compiler.Fault):
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
