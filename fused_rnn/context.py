"""What surrounds a call: the backend asked for, autocast, transforms, recorded graphs, exports, the
interpreter."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import threading
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch._C._functorch import TransformType, get_interpreter_stack, peek_interpreter_stack
from torch.fx.experimental import proxy_tensor
from torch.jit._trace import TracerWarning

BACKENDS = ("auto", "triton", "cpp", "aten", "sequence", "reference")

# Of each thread; unlike a context variable, torch.compile can read and guard this.
_chosen = threading.local()


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make ``name`` the backend of every call inside the ``with`` that names none itself.

    - ``"auto"``: the fused kernels on CUDA tensors, if they pass the self-check of their first use
      (``check_kernels``), otherwise ``"sequence"``. On CPU tensors torch.nn's own ATen kernels
      where these are faster, as timed at the first use (not with ``FUSED_RNN_MEASURE=0``),
      otherwise ``"cpp"``, and ``"sequence"`` where there is no compiler; ``explain`` says which.
      Modules of one step take the C++ loop for up to four rows without gradients, otherwise
      torch.nn's function of one step, or PyTorch's operations. With ``TRITON_INTERPRET=1`` the
      fused kernels on CPU tensors too. Layers of which ``bench/tune`` measured on this machine
      that cuDNN is faster run there, without gradients of gradients; not with
      ``FUSED_RNN_TUNED=0``.
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
    """Return the name of a backend; refuse any other."""
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def requested(backend: str | None) -> str:
    """The backend asked for by argument or, for None, by the innermost ``use_backend``."""
    return getattr(_chosen, "name", "auto") if backend is None else check_name(backend)


_PLAIN = (Tensor, nn.Parameter)


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
warnings.filterwarnings("ignore", category=TracerWarning, module="fused_rnn")


def interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def inside_transform() -> bool:
    """Whether a transform of torch.func or forward-mode AD is at work."""
    level = torch.autograd.forward_ad._current_level
    return level >= 0 or peek_interpreter_stack() is not None


def in_forward_mode() -> bool:
    """Whether forward-mode AD is at work at any level, which only plain operations support."""
    if torch.autograd.forward_ad._current_level >= 0:
        return True
    stack = get_interpreter_stack()
    if stack is None:
        return False
    return any(level.key() == TransformType.Jvp for level in stack)


# Called by torch.compile when it traces them, as constants (it has guards of its own on what they
# tell): what torch.compiler.assume_constant_result does, without the seconds that its import takes.
inside_transform._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
in_forward_mode._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


# Found out here: torch.compile would trace the search, and warn of a cache around it.
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None


def triton_installed() -> bool:
    """Whether Triton is installed."""
    return _TRITON_INSTALLED


def possible(tensors: Iterable[Tensor]) -> bool:
    """Whether nothing but autograd is to see a call with these, outside transforms."""
    if torch.compiler.is_compiling():
        return False
    return (
        not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_tracing()
        and all(type(tensor) in _PLAIN and tensor.is_cpu for tensor in tensors)
    )


def runs_directly(tensors: list[Tensor]) -> bool:
    """Whether what is given such tensors in a backward may bypass PyTorch's dispatcher."""
    plain = not torch.is_grad_enabled() and not inside_transform()
    return plain and possible(tensors)


def are_plain(tensors: Iterable[Tensor]) -> bool:
    """Whether none of them is of a subclass, which may know only some operations."""
    return all(type(tensor) in _PLAIN for tensor in tensors)


def recorded() -> bool:
    """Whether an eager call may become a part of a graph: tracing, or a mode."""
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._len_torch_dispatch_stack()) or torch._C._is_tracing()


def exported_by() -> str | None:
    """The exporter that is recording a model for ONNX: "new" (``torch.onnx.export(...,
    dynamo=True)``), "old" (``dynamo=False``) or None."""
    if torch._C._get_tracing_state() is not None:
        return "old" if torch.onnx.is_in_onnx_export() else None
    return "new" if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export() else None


def expect_new_exporter(exported: str) -> None:
    """Refuse ``torch.onnx.export(dynamo=False)``, which knows none of our operators.

    Layers that torch.nn's kernels run do not come here.
    """
    if exported == "old":
        raise NotImplementedError(
            "torch.onnx.export(dynamo=False) cannot take a layer of fused_rnn as it is called "
            "here: use dynamo=True; or fused_rnn.revert(model) first, where torch.nn has the layer"
        )
