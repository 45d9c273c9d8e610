"""The sLSTM, the LSTM with exponential gates of xLSTM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import cells
from ..checks.arguments import takes_all_arguments_of
from .recurrent import Recurrent
from .recurrent_cell import RecurrentCell

if TYPE_CHECKING:
    from torch import Tensor

    from .signatures import LayerCall, StepCall


class SLSTM(Recurrent):
    """The sLSTM, see ``cells.get("slstm")``; ``hx`` is (h0, c0, n0, m0).

    Beck et al. 2024 (arXiv 2405.04517), whose layers have ``num_heads=4``. The first values are
    those of ``Recurrent``, as torch.nn draws them. The authors' code begins with recurrent weights
    and biases of zero, but 5 - 12 (k / (K-1))^p as the bias of f of unit k of the K of a head,
    where p = 0.3 in the first block and 1.6 in the last.
    """

    if TYPE_CHECKING:
        __call__: LayerCall[tuple[Tensor, Tensor, Tensor, Tensor]]

    @takes_all_arguments_of(Recurrent)
    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any):
        super().__init__(cells.get("slstm"), input_size, hidden_size, *args, **kwargs)


class SLSTMCell(RecurrentCell):
    """One step of ``SLSTM``. ``hx`` is (h0, c0, n0, m0)."""

    if TYPE_CHECKING:
        __call__: StepCall[tuple[Tensor, Tensor, Tensor, Tensor]]

    @takes_all_arguments_of(RecurrentCell)
    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any):
        super().__init__(cells.get("slstm"), input_size, hidden_size, *args, **kwargs)
