"""The sLSTM cells of the packages xlstm and tirex-ts, run by this package: what ``convert`` does.

Both packages call the recurrence of a block a cell. It takes the gates' input parts of a whole
sequence and has the recurrent kernel and the bias. Such a module keeps its parameters, its
``state_dict`` and its call, and changes its class to a subclass of its own. Neither package is
imported here.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from .. import context
from ..ops.scan import scan


class Fused:
    """The base of the classes that ``convert`` makes of a package's sLSTM cells.

    In both packages the gates are i, f, z, o, with z the g of ``cells.get("slstm")``. The input
    parts are (S, B, 4·H), their columns in the order of gate, head and unit. The state is
    (4, B, H) of h, c, n, m. Their first step is that of a state whose n is 0 everywhere; here it
    is decided by unit.
    """

    _original: type  # the package's own class
    _fused_backend: str | None  # not ``backend``, which TiRex's cell has

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class was made at run time, so it is made again.
        _, _, *rest = super().__reduce_ex__(max(protocol, 2))
        return (_blank, (self._original,), *rest)

    def _run(
        self, parts: Tensor, state: Tensor, kernel: Tensor, bias: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Run the recurrence.

        Args:
            parts: (S, B, 4·H), the input parts.
            state: (4, B, H).
            kernel: (N, K, 4, K) of N heads: the last dim is that of the gates' units.
            bias: (N, 4, K).
            dtype: of the computation. The states of a step are kept in at least float32.

        Returns:
            (S, B, H) and the last state (4, B, H), in ``dtype``, or that of autocast.
        """
        heads, size = kernel.shape[:2]
        matrix = kernel.permute(2, 0, 3, 1).reshape(4 * heads * size, size)
        input_bias = bias.transpose(0, 1).reshape(-1)
        if parts.dtype != dtype or context.autocasts(parts.device):
            # Only the sum is rounded, as in the packages.
            parts, input_bias = (parts + input_bias).to(dtype), None
        output, finals = scan(
            "slstm",
            parts,
            matrix.to(dtype),
            list(state.to(dtype).unbind(0)),
            input_bias=input_bias,
            num_heads=heads,
            backend=self._fused_backend,
        )
        return output, torch.stack(finals)


class _XLSTM(Fused):
    """The cells of xlstm: one for each of its backends, which lay out their parameters differently.

    That of CUDA computes in ``config.dtype`` if it has mixed precision. Their method ``step``,
    which none of their layers calls, stays as it is.
    """

    def forward(
        self: Any, input: Tensor, state: Tensor | None = None, lengths: object = None
    ) -> tuple[Tensor, Tensor]:
        """Run the recurrence: see the package. ``lengths`` does nothing there either."""
        self._check_input(input)
        config = self.config
        parts = input.transpose(0, 1) if config.input_shape == "BSGNH" else input
        mixed = _is_for_cuda(self) and config.enable_automatic_mixed_precision
        output, final = self._run(
            parts,
            self._get_state(parts, state),
            self._recurrent_kernel_int2ext(self._recurrent_kernel_),
            self._bias_int2ext(self._bias_),
            config.torch_dtype_w if mixed else input.dtype,
        )
        return self._permute_output(output).to(input.dtype), final.to(input.dtype)


class _TiRex(Fused):
    """The cell of tirex-ts, which computes in bfloat16 on both of its backends.

    It takes sigmoid's argument of the forget gate as at most 15; log f is then 3e-7 less than 0.
    """

    def _impl_torch(self: Any, input: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self.config.num_heads, self.config.head_dim, 4, self.config.head_dim)
        bias = self._bias_.view(shape[0], 4, shape[1])
        kernel = self._recurrent_kernel_.view(shape)
        return self._run(input.flatten(2), state, kernel, bias, torch.bfloat16)

    _impl_cuda = _impl_torch


_CLASSES = {
    ("xlstm.blocks.slstm.cell", "sLSTMCell_vanilla"): _XLSTM,
    ("xlstm.blocks.slstm.cell", "sLSTMCell_cuda"): _XLSTM,
    ("tirex.models.slstm.cell", "sLSTMCell"): _TiRex,
}


def is_known(kind: type) -> bool:
    """Whether a class is an sLSTM cell of one of the packages."""
    return (kind.__module__, kind.__qualname__) in _CLASSES


def why_not(module: nn.Module) -> str:
    """Why such a cell cannot run here; "" if it can."""
    config: Any = module.config
    if issubclass(fused(type(module)), _TiRex):
        return ""
    if config.function != "slstm":
        return f"its config has function={config.function!r}; only 'slstm' is known here"
    if not _is_for_cuda(module):
        return ""  # the other backend ignores the options below
    for name in ("gradient_recurrent_cut", "gradient_recurrent_clipval", "forward_clipval"):
        value = getattr(config, name)
        if not (value is None or value is False):
            return f"its config has {name}={value}; no kernel here does that"
    dtypes = {name: getattr(config, name) for name in ("dtype_w", "dtype_r", "dtype_s")}
    if len(set(dtypes.values())) > 1:
        return f"its config has several dtypes, {dtypes}; expected one"
    return ""


@functools.cache
def fused(kind: type) -> type[nn.Module]:
    """The subclass of a class that ``is_known``, which runs here."""
    base = _CLASSES[kind.__module__, kind.__qualname__]
    name = f"Fused{kind.__name__}"
    own = {"__module__": __name__, "__doc__": base.__doc__, "_original": kind}
    return type(name, (base, kind), own)


def original(kind: type) -> type[nn.Module]:
    """The package's class of which ``fused`` made this one."""
    found: Any = kind
    return found._original


def _is_for_cuda(module):
    return any(base.__name__ == "sLSTMCell_cuda" for base in type(module).__mro__)


def _blank(kind):
    new: Any = fused(kind)
    return new.__new__(new)
