"""The GRU in blocks of DreamerV3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import cells
from ..checks.arguments import takes_all_arguments_of
from .recurrent import Recurrent
from .recurrent_cell import RecurrentCell

if TYPE_CHECKING:
    from torch import Tensor

    from .signatures import LayerCall, StepCall


class BlockGRU(Recurrent):
    """The GRU of DreamerV3, see ``cells.get("block_gru")``; ``hx`` is h0.

    Hafner et al. 2023 (arXiv 2301.04104), whose recurrent matrices have ``num_heads=8`` blocks. The
    norm spans the units of all of them.
    """

    if TYPE_CHECKING:
        __call__: LayerCall[Tensor]

    @takes_all_arguments_of(Recurrent)
    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any):
        super().__init__(cells.get("block_gru"), input_size, hidden_size, *args, **kwargs)


class BlockGRUCell(RecurrentCell):
    """One step of ``BlockGRU``. ``hx`` is h0."""

    if TYPE_CHECKING:
        __call__: StepCall[Tensor]

    @takes_all_arguments_of(RecurrentCell)
    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any):
        super().__init__(cells.get("block_gru"), input_size, hidden_size, *args, **kwargs)
