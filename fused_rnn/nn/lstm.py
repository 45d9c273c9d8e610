"""LSTMs: torch.nn's, with peepholes, and with coupled gates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from .. import cells
from ..checks.arguments import takes_all_arguments_of, takes_arguments_of
from .recurrent import Recurrent
from .recurrent_cell import RecurrentCell

if TYPE_CHECKING:
    from torch import Tensor

    from .signatures import LayerCall, StepCall


class LSTM(Recurrent):
    """torch.nn.LSTM; the arguments are ``Recurrent``'s. ``hx`` is (h0, c0)."""

    if TYPE_CHECKING:
        __call__: LayerCall[tuple[Tensor, Tensor]]

    @takes_all_arguments_of(Recurrent)
    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any):
        super().__init__(cells.LSTM, input_size, hidden_size, *args, **kwargs)


class LSTMCell(RecurrentCell):
    """torch.nn.LSTMCell, one step of ``LSTM``. ``hx`` is (h0, c0)."""

    if TYPE_CHECKING:
        __call__: StepCall[tuple[Tensor, Tensor]]

    @takes_all_arguments_of(RecurrentCell)
    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any):
        super().__init__(cells.LSTM, input_size, hidden_size, *args, **kwargs)


class PeepholeLSTM(Recurrent):
    """The LSTM whose gates see the cell state, see ``cells.peephole_lstm``. ``hx`` is (h0, c0).

    Args:
        peepholes: which of the gates i, f, o have one: "ifo", "if", "io", "fo", "i", "f" or "o".
    """

    _own_arguments: ClassVar[dict] = {"peepholes": "ifo"}

    if TYPE_CHECKING:
        __call__: LayerCall[tuple[Tensor, Tensor]]

    @takes_arguments_of(Recurrent)
    def __init__(
        self, input_size: int, hidden_size: int, *args: Any, peepholes: str = "ifo", **kwargs: Any
    ):
        cell = cells.peephole_lstm(peepholes)
        super().__init__(cell, input_size, hidden_size, *args, **kwargs)
        self.peepholes = peepholes


class PeepholeLSTMCell(RecurrentCell):
    """One step of ``PeepholeLSTM``. ``hx`` is (h0, c0)."""

    _own_arguments: ClassVar[dict] = {"peepholes": "ifo"}

    if TYPE_CHECKING:
        __call__: StepCall[tuple[Tensor, Tensor]]

    @takes_arguments_of(RecurrentCell)
    def __init__(
        self, input_size: int, hidden_size: int, *args: Any, peepholes: str = "ifo", **kwargs: Any
    ):
        cell = cells.peephole_lstm(peepholes)
        super().__init__(cell, input_size, hidden_size, *args, **kwargs)
        self.peepholes = peepholes


class CIFGLSTM(Recurrent):
    """The LSTM with coupled input and forget gates, i = 1 - f. ``hx`` is (h0, c0)."""

    if TYPE_CHECKING:
        __call__: LayerCall[tuple[Tensor, Tensor]]

    @takes_all_arguments_of(Recurrent)
    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any):
        super().__init__(cells.CIFG_LSTM, input_size, hidden_size, *args, **kwargs)


class CIFGLSTMCell(RecurrentCell):
    """One step of ``CIFGLSTM``. ``hx`` is (h0, c0)."""

    if TYPE_CHECKING:
        __call__: StepCall[tuple[Tensor, Tensor]]

    @takes_all_arguments_of(RecurrentCell)
    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any):
        super().__init__(cells.CIFG_LSTM, input_size, hidden_size, *args, **kwargs)
