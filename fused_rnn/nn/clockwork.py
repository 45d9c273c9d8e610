"""The clockwork RNN, whose units act now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..cells.clocks import clockwork_rnn
from ..checks.arguments import takes_arguments_of, whole_number
from .recurrent import Recurrent

if TYPE_CHECKING:
    from torch import Tensor

    from .signatures import LayerCall


class ClockworkRNN(Recurrent):
    """The RNN whose groups of units act at every 1st, 2nd, 4th, ... step. ``hx`` is h0.

    Koutnik et al. 2014 (arXiv 1402.3511); see ``cells.get("clockwork_rnn")``. Steps count from 0,
    so all units act at the first one. The backward direction counts from its own first step.

    Args:
        groups: the number of groups, as equal in size as can be, from the fastest to the slowest.

    Buffers:
        period_l{k}: (H,), of each unit. These may be changed; the zeros of ``weight_hh`` follow the
            groups.

    Raises:
        TypeError, ValueError: as ``Recurrent``; or fewer than one group.
    """

    _own_arguments: ClassVar[dict] = {"groups": 9}

    if TYPE_CHECKING:
        __call__: LayerCall[Tensor]

    @takes_arguments_of(Recurrent)
    def __init__(
        self, input_size: int, hidden_size: int, *args: Any, groups: int = 9, **kwargs: Any
    ):
        groups = whole_number("groups", groups)
        super().__init__(clockwork_rnn(groups), input_size, hidden_size, *args, **kwargs)
        self.groups = groups
