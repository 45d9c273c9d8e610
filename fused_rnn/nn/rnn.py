"""The tanh and the ReLU RNN: torch.nn's RNN and RNNCell."""

from __future__ import annotations

from typing import ClassVar

from ..checks.arguments import takes_arguments_of
from .recurrent import Recurrent
from .recurrent_cell import RecurrentCell


class RNN(Recurrent):
    """torch.nn.RNN: h = φ(W x + b_ih + R h_ + b_hh); the other arguments are ``Recurrent``'s.

    Args:
        nonlinearity: φ, "tanh" or "relu".
    """

    _own_arguments: ClassVar[dict] = {"nonlinearity": "tanh"}

    @takes_arguments_of(Recurrent)
    def __init__(self, input_size, hidden_size, num_layers=1, nonlinearity="tanh", *args, **kwargs):
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

    @takes_arguments_of(RecurrentCell)
    def __init__(self, input_size, hidden_size, bias=True, nonlinearity="tanh", *args, **kwargs):
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(f"rnn_{nonlinearity}", input_size, hidden_size, bias, *args, **kwargs)
        self.nonlinearity = nonlinearity
