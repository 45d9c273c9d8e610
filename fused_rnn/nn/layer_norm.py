"""The LSTM and the GRU with layer norm."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from .. import cells
from ..cells import Cell
from ..checks.arguments import takes_arguments_of
from .recurrent import Recurrent

if TYPE_CHECKING:
    from torch import Tensor

    from .signatures import LayerCall


class _LayerNorm(Recurrent):
    """A layer of a cell with layer norm."""

    _own_arguments: ClassVar[dict] = {"eps": 1e-5}
    _cell: ClassVar[staticmethod[[float], Cell]]

    @takes_arguments_of(Recurrent)
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = False,
        *args: Any,
        eps: float = 1e-5,
        **kwargs: Any,
    ):
        cell = self._cell(eps)
        super().__init__(cell, input_size, hidden_size, num_layers, bias, *args, **kwargs)
        self.eps = eps


class LayerNormLSTM(_LayerNorm):
    """The LSTM with layer norm, see ``cells.layer_norm_lstm``; ``hx`` is (h0, c0).

    Args:
        bias: whether the products have biases too, inside the norms. The paper has none there, so
            the default is False; the gates' own biases, after the norms, are there in any case.
        eps: added to the variances.

    Parameters, besides the weights: ``gain_{gate}_x_l{k}``, ``gain_{gate}_h_l{k}``, from 1, and
    ``bias_{gate}_l{k}``, from 0, for the gates i, f, g, o; ``gain_c_l{k}`` and ``bias_c_l{k}``.

    Raises:
        TypeError, ValueError: as ``Recurrent``; or an ``eps`` that is no positive number.
    """

    if TYPE_CHECKING:
        __call__: LayerCall[tuple[Tensor, Tensor]]

    _cell = staticmethod(cells.layer_norm_lstm)


class LayerNormGRU(_LayerNorm):
    """The GRU with layer norm, see ``cells.layer_norm_gru``; ``hx`` is h0.

    Args:
        bias, eps: as in ``LayerNormLSTM``.

    Parameters, besides the weights: ``gain_{gate}_x_l{k}`` and ``gain_{gate}_h_l{k}``, from 1, for
    the gates r, z, n; ``bias_r_l{k}``, ``bias_z_l{k}``, ``bias_n_x_l{k}`` and ``bias_n_h_l{k}``,
    from 0.

    Raises:
        TypeError, ValueError: as ``LayerNormLSTM``.
    """

    if TYPE_CHECKING:
        __call__: LayerCall[Tensor]

    _cell = staticmethod(cells.layer_norm_gru)
