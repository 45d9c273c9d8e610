"""The GRU, with the reset gate after the recurrent product or before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from .. import cells
from ..checks.arguments import takes_arguments_of
from .recurrent import Recurrent
from .recurrent_cell import RecurrentCell

if TYPE_CHECKING:
    from torch import Tensor

    from .signatures import LayerCall, StepCall


class GRU(Recurrent):
    """torch.nn.GRU; the other arguments are ``Recurrent``'s.

    Args:
        reset_after: whether the reset gate acts after the recurrent product, as in torch.nn and
            cuDNN, or before it, as in Cho et al. 2014. Weights have the same shapes either way.
    """

    _own_arguments: ClassVar[dict] = {"reset_after": True}

    if TYPE_CHECKING:
        __call__: LayerCall[Tensor]

    @takes_arguments_of(Recurrent)
    def __init__(
        self, input_size: int, hidden_size: int, *args: Any, reset_after: bool = True, **kwargs: Any
    ):
        cell = cells.GRU if reset_after else cells.GRU_RESET_BEFORE
        super().__init__(cell, input_size, hidden_size, *args, **kwargs)
        self.reset_after = reset_after


class GRUCell(RecurrentCell):
    """torch.nn.GRUCell, one step of ``GRU``; ``reset_after`` as there."""

    _own_arguments: ClassVar[dict] = {"reset_after": True}

    if TYPE_CHECKING:
        __call__: StepCall[Tensor]

    @takes_arguments_of(RecurrentCell)
    def __init__(
        self, input_size: int, hidden_size: int, *args: Any, reset_after: bool = True, **kwargs: Any
    ):
        cell = cells.GRU if reset_after else cells.GRU_RESET_BEFORE
        super().__init__(cell, input_size, hidden_size, *args, **kwargs)
        self.reset_after = reset_after
