"""Our modules as subclasses of torch.nn's own, for code that asks ``isinstance(m, nn.LSTM)``.

The plain ``fused_rnn.LSTM``, ``GRU`` and ``RNN`` are subclasses of ``torch.nn.RNNBase`` only:
``torch.compile`` breaks the graph at every instance of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``
unless ``torch._dynamo.config.allow_rnn`` is set. ``convert(model, torch_classes=True)`` makes
modules of the classes here. They differ from the plain ones by their bases alone.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..checks.arguments import takes_arguments_of
from . import gru, lstm, recurrent, rnn

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

if TYPE_CHECKING:
    _Base = recurrent.Recurrent
else:
    _Base = object


_as_forward: Any = functools.wraps(recurrent.Recurrent.forward)  # it keeps the signature


class _Outside(_Base):
    """Runs a whole layer eagerly where ``torch.compile`` has broken the graph at it.

    Otherwise Dynamo would compile each function that the layer calls.
    """

    @_as_forward
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # Only if Dynamo is imported: the import takes seconds. With allow_rnn it traces this.
        if torch.compiler.is_compiling() or "torch._dynamo" not in sys.modules:
            return super().forward(*args, **kwargs)
        return _eagerly()(self, *args, **kwargs)


@functools.cache
def _eagerly() -> Callable[..., Any]:
    return torch.compiler.disable(recurrent.Recurrent.forward)


# The ignored lines: ``mode`` is an attribute in torch.nn, and computed in ``bases.RNNBase``.
class RNN(_Outside, rnn.RNN, nn.RNN):  # pyright: ignore[reportIncompatibleVariableOverride]
    """``fused_rnn.RNN`` that is a ``torch.nn.RNN``."""


class LSTM(_Outside, lstm.LSTM, nn.LSTM):  # pyright: ignore[reportIncompatibleVariableOverride]
    """``fused_rnn.LSTM`` that is a ``torch.nn.LSTM``."""


class GRU(_Outside, gru.GRU, nn.GRU):  # pyright: ignore[reportIncompatibleVariableOverride]
    """``fused_rnn.GRU`` that is a ``torch.nn.GRU``, so it resets after the product."""

    @takes_arguments_of(gru.GRU)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *args: Any,
        reset_after: bool = True,
        **kwargs: Any,
    ):
        _expect_reset_after(reset_after)
        super().__init__(input_size, hidden_size, *args, **kwargs)


class RNNCell(rnn.RNNCell, nn.RNNCell):
    """``fused_rnn.RNNCell`` that is a ``torch.nn.RNNCell``."""


class LSTMCell(lstm.LSTMCell, nn.LSTMCell):
    """``fused_rnn.LSTMCell`` that is a ``torch.nn.LSTMCell``."""


class GRUCell(gru.GRUCell, nn.GRUCell):
    """``fused_rnn.GRUCell`` that is a ``torch.nn.GRUCell``, so it resets after the product."""

    @takes_arguments_of(gru.GRUCell)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *args: Any,
        reset_after: bool = True,
        **kwargs: Any,
    ):
        _expect_reset_after(reset_after)
        super().__init__(input_size, hidden_size, *args, **kwargs)


def _expect_reset_after(reset_after):
    if not reset_after:
        raise ValueError(
            "reset_after: expected True, since torch.nn's GRU resets after the product, "
            f"got {reset_after!r}"
        )


def __dir__() -> list[str]:
    return sorted(__all__)
