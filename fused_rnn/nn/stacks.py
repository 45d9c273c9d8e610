"""The base of stacks whose layers pass on more than their output."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks.arguments import check_flags, given_states, whole_number
from . import given


class Stack(nn.Module):
    """The arguments, first values and checks that such stacks have in common.

    Args:
        input_size, hidden_size, num_layers: I, H and L.
        batch_first: input and output are (B, T, ...) instead of (T, B, ...).
        flags: further arguments that are to be bools.

    Raises:
        TypeError, ValueError: as ``Recurrent``.
    """

    _states: ClassVar[tuple[str, ...]]

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, batch_first: bool, **flags: bool
    ):
        super().__init__()
        check_flags(batch_first=batch_first, **flags)
        self.input_size = whole_number("input_size", input_size, 1)
        self.hidden_size = whole_number("hidden_size", hidden_size, 1)
        self.num_layers = whole_number("num_layers", num_layers, 1)
        self.batch_first = batch_first

    def reset_parameters(self) -> None:
        """Draw all parameters from U(-1/√H, 1/√H), as torch.nn's recurrent layers do."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"

    def _check_input(self, input: object) -> None:
        """Check the input before something else than a ``Recurrent`` takes it."""
        name, size = type(self).__name__, self.input_size
        if not isinstance(input, Tensor):
            raise TypeError(f"{name}: input: expected a Tensor, got {type(input).__name__}")
        if input.dim() not in (2, 3) or input.shape[-1] != size:
            raise RuntimeError(
                f"{name}: input: expected 2 or 3 dimensions, of which the last has input_size = "
                f"{size} features, got {tuple(input.shape)}"
            )

    def _hide(self, sequence: Tensor, lengths: Tensor | None) -> Tensor:
        """Set the steps of a sequence beyond the lengths to zero, so that they are in no gradient.

        Args:
            sequence: in the layout of the input.
        """
        if lengths is None:
            return sequence
        by_step = sequence.transpose(0, 1) if self.batch_first else sequence
        checked, _ = given.rows(self, by_step, lengths, None, sequence.dim() == 2)
        assert checked is not None  # since lengths is not
        valid = torch.arange(len(by_step), device=sequence.device).unsqueeze(1) < checked
        valid = valid.t() if self.batch_first else valid
        return torch.where(valid.unsqueeze(-1), sequence, torch.zeros_like(sequence))

    def _by_layer(self, hx: Any) -> list[tuple[Tensor, ...] | None]:
        """Split the states (L, B, H); returns those of each layer (1, B, H), or Nones."""
        layers = self.num_layers
        if hx is None:
            return [None] * layers
        states = given_states(hx, self._states)
        for name, state in zip(self._states, states, strict=True):
            if not state.dim() or len(state) != layers:
                got = tuple(state.shape)
                raise RuntimeError(
                    f"hx: state {name}: expected size(0) = {layers} layers, got {got}"
                )
        return [tuple(state[k : k + 1] for state in states) for k in range(layers)]
