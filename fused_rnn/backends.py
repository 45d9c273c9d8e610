"""Which code runs a recurrence: the names, the switch, and the choice that "auto" makes."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
import warnings

import torch
from torch.fx.experimental import proxy_tensor

from . import onnx_export
from .cells import Cell

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
      ``TRITON_INTERPRET=1`` the fused kernels on CPU tensors too. Layers of which ``bench/tune.py``
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


def choose(backend: str | None, cell: Cell, device: torch.device, dtype: torch.dtype) -> str:
    """What runs one layer that ATen does not: "onnx" while a model is exported to it, "reference",
    or what an op is told.

    That is "triton", "cpp", "sequence", or "auto" where the op decides, see ``engines``.

    Raises:
        RuntimeError: the backend asked for cannot serve this cell, device or dtype; says why.
    """
    if onnx_export.exporting():
        return "onnx"  # whatever was asked for: a backend that cannot serve here does not matter
    backend = requested(backend)
    if backend == "aten":
        raise RuntimeError(
            f'backend "aten" cannot run cell {cell.name!r} here: it runs whole modules of '
            "rnn_tanh, rnn_relu, lstm and gru; use another backend"
        )
    if backend == "reference" or (backend == "auto" and in_forward_mode()):
        return "reference"
    if in_forward_mode():
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
    if backend == "auto" and device.type == "cpu" and not interpreted():
        return backend  # the C++ loop, if it can be built
    reason = why_not_triton(cell, device, dtype)
    if backend == "triton" and reason:
        raise RuntimeError(f'backend "triton" cannot run cell {cell.name!r} here: {reason}')
    return "sequence" if reason else backend


def autocast_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The dtype to compute in: autocast's where it is on, which leaves float64 alone."""
    if tensor.dtype == torch.float64 or not autocasts(tensor.device):
        return tensor.dtype
    return torch.get_autocast_dtype(tensor.device.type)


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on there; PyTorch knows none of meta tensors."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def recording() -> bool:
    """Whether operations go into a graph that outlives this call: by ``torch.jit.trace``,
    ``torch.export`` or ``make_fx``. Neither the grad mode nor the sizes of the moment may decide
    what goes in. (``torch.compile`` guards both and compiles anew.)"""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return torch._C._is_tracing() or proxy_tensor.get_proxy_mode() is not None


# Tracing warns of each size that a check looks at; PyTorch silences its own modules likewise. What
# a graph computes from sizes it computes anew.
warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module="fused_rnn")


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def inside_transform() -> bool:
    """Whether a transform of torch.func or forward-mode AD is at work."""
    level = torch.autograd.forward_ad._current_level
    return level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


def in_forward_mode() -> bool:
    """Whether forward-mode AD is at work at any level, which only plain operations support."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Jvp for level in stack)


# Called by torch.compile when it traces them, as constants (it has guards of its own on what they
# tell): what torch.compiler.assume_constant_result does, without the seconds that its import takes.
inside_transform._dynamo_marked_constant = True
in_forward_mode._dynamo_marked_constant = True


# Found out here: torch.compile would trace the search, and warn of a cache around it.
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


def triton_installed() -> bool:
    return _TRITON_INSTALLED


def why_not_triton(cell: Cell, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why the fused kernels cannot serve, or None where they can."""
    if not triton_installed():
        return "Triton is not installed"
    if device.type != "cuda" and not (device.type == "cpu" and interpreted()):
        return f"the tensors are on {device}; it needs a CUDA device, or TRITON_INTERPRET=1"
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        return f"its kernels have no dtype {dtype}"
    if any(size > 1 for size in cell.source_sizes):
        return "its kernels do not concatenate source vectors yet"
    if callable(cell.stages[0].source):
        return "its kernels take the first stage's source from a state, not from a function, yet"
    return None
