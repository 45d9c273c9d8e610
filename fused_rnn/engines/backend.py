"""The names of backends, and the switch between them."""

from __future__ import annotations

import contextlib
import threading

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
