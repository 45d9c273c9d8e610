"""The tanh and the ReLU RNN: torch.nn's RNN and RNNCell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..checks.arguments import takes_arguments_of
from .recurrent import Recurrent
from .recurrent_cell import RecurrentCell

if TYPE_CHECKING:
    from torch import Tensor

    from .signatures import LayerCall, StepCall


class RNN(Recurrent):
    """torch.nn.RNN: h = φ(W x + b_ih + R h_ + b_hh); the other arguments are ``Recurrent``'s.

    Args:
        nonlinearity: φ, "tanh" or "relu".
    """

    _own_arguments: ClassVar[dict] = {"nonlinearity": "tanh"}

    if TYPE_CHECKING:
        __call__: LayerCall[Tensor]

    @takes_arguments_of(Recurrent)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        *args: Any,
        **kwargs: Any,
    ):
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
        cell = f"rnn_{nonlinearity}"
        super().__init__(cell, input_size, hidden_size, num_layers, *args, **kwargs)
        self.nonlinearity = nonlinearity


class RNNCell(RecurrentCell):
    """torch.nn.RNNCell, one step of ``RNN``; the other arguments are ``RecurrentCell``'s.

    Args:
        nonlinearity: "tanh" or "relu".
    """

    _own_arguments: ClassVar[dict] = {"nonlinearity": "tanh"}

    if TYPE_CHECKING:
        __call__: StepCall[Tensor]

    @takes_arguments_of(RecurrentCell)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *args: Any,
        **kwargs: Any,
    ):
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(f"rnn_{nonlinearity}", input_size, hidden_size, bias, *args, **kwargs)
        self.nonlinearity = nonlinearity
