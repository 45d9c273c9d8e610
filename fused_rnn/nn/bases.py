"""A subclass of ``torch.nn.RNNBase`` for our layers, with nothing cached.

Initialisers, exporters and wrappers look for its attributes: ``mode``, ``_all_weights``,
``_flat_weights``, ``check_forward_args``, ``permute_hidden`` and so on. torch.nn keeps the weights
twice, as parameters and as a list for cuDNN that must follow every move. Here these attributes are
computed when they are read, so they are never stale and hold nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .. import cells

_MODULE: Any = nn.Module  # its methods return a Module, and torch.nn.RNNBase's itself

_OF_TORCH = (cells.RNN_TANH, cells.RNN_RELU, cells.LSTM, cells.GRU)


class RNNBase(nn.RNNBase):
    """The attributes of ``torch.nn.RNNBase`` for a layer of any cell.

    A subclass sets ``input_size``, ``hidden_size``, ``num_layers``, ``bias``, ``batch_first``,
    ``dropout``, ``bidirectional`` and ``proj_size``, has a ``cell`` and the method ``_shapes``.
    """

    if TYPE_CHECKING:
        cell: cells.Cell

        @property
        def _directions(self) -> int: ...
        def _shapes(self, features: int) -> dict[str, tuple[int, ...]]: ...

    # torch.nn overrides these for its list of weights only.
    __setattr__ = _MODULE.__setattr__
    __setstate__ = _MODULE.__setstate__
    _apply = _MODULE._apply
    _replicate_for_data_parallel = _MODULE._replicate_for_data_parallel

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    @property
    def mode(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride] computed
        """torch.nn's name of the cell, such as "LSTM" or "RNN_TANH".

        A cell that torch.nn does not have has its own name in lower case, so that no tool takes it
        for one of torch.nn's.
        """
        return self.cell.name.upper() if self.cell in _OF_TORCH else self.cell.name.lower()

    @property
    def _all_weights(self) -> list[list[str]]:
        given = self.cell.given
        names = [n for n in self._shapes(1) if n not in given or given[n].learned]
        return [
            [name + suffix(layer, direction) for name in names]
            for layer in range(self.num_layers)
            for direction in range(self._directions)
        ]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: Sequence[Tensor | None]) -> None:
        names = self._flat_weights_names
        now = [getattr(self, name, None) for name in names]
        if len(weights) != len(now) or any(a is not b for a, b in zip(weights, now, strict=True)):
            raise AttributeError(
                "_flat_weights: expected the weights that the module has, got others; it is "
                f"computed from the attributes {', '.join(names)}: set these"
            )

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def flatten_parameters(self) -> None:
        """Do nothing: the weights are read in place."""

    def _init_flat_weights(self) -> None:
        """Nothing to do: ``_flat_weights`` is computed."""

    def _update_flat_weights(self) -> None:
        """Nothing to do: ``_flat_weights`` is computed."""

    def get_expected_cell_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """The shape (L·D, B, H) of every state but the first, as in torch.nn.LSTM."""
        rows, batch, _ = self.get_expected_hidden_size(input, batch_sizes)
        return rows, batch, self.hidden_size

    def check_forward_args(
        self, input: Tensor, hidden: Tensor | tuple[Tensor, ...], batch_sizes: Tensor | None
    ) -> None:
        """Check input and states as torch.nn does; ``hidden`` is a tuple for several states.

        Raises:
            ValueError, RuntimeError: another dtype than the weights; wrong sizes or numbers.
        """
        self.check_input(input, batch_sizes)
        given, names = _as_tuple(hidden), self.cell.states
        if len(given) != len(names):
            raise RuntimeError(f"hidden: expected {len(names)} states {names}, got {len(given)}")
        for number, (name, state) in enumerate(zip(names, given, strict=True)):
            size = self.get_expected_cell_size if number else self.get_expected_hidden_size
            message = f"hidden: state {name}: expected {{}}, got {{}}"
            self.check_hidden_size(state, size(input, batch_sizes), message)

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        """Reorder the rows of the batch in the states; None keeps their order.

        Args:
            hx: a tensor, or a tuple of one per state; the result is of the same kind.
        """
        if permutation is None:
            return hx
        if isinstance(hx, Tensor):
            return hx.index_select(1, permutation)
        return tuple(state.index_select(1, permutation) for state in hx)


def suffix(layer: int, direction: int) -> str:
    """The suffix of the names of the parameters of a layer and direction."""
    return f"_l{layer}{'_reverse' if direction else ''}"


def _as_tuple(hidden):
    return (hidden,) if isinstance(hidden, Tensor) else tuple(hidden)
