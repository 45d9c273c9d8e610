"""The base of stacks whose layers pass on more than their output."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ..checks.arguments import check_arguments, check_flags, given_states
from . import given

if TYPE_CHECKING:
    from .signatures import StackCall


class Stack(nn.Module):
    """The arguments, first values and checks that such stacks have in common.

    Args:
        input_size, hidden_size, num_layers: I, H and L.
        bias: whether gates have biases.
        batch_first: input and output are (B, T, ...) instead of (T, B, ...).
        dropout: probability that a value of an output is dropped between layers, in training.
        bidirectional: False. Their papers have one direction.
        flags: further arguments that are to be bools.

    Raises:
        TypeError, ValueError: as ``Recurrent``; or a second direction.
    """

    _states: ClassVar[tuple[str, ...]]

    if TYPE_CHECKING:
        # torch.nn.Module's takes anything.
        __call__: StackCall  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        **flags: bool,
    ):
        super().__init__()
        check_flags(**flags)
        self.input_size, self.hidden_size, self.num_layers, self.dropout = check_arguments(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, False
        )
        if bidirectional:
            raise ValueError(
                f"bidirectional: expected False, got True: the layers of {type(self).__name__} "
                "pass on a memory of one direction; run a second module on the reversed sequences "
                "and join the outputs"
            )
        self.batch_first = batch_first

    def reset_parameters(self) -> None:
        """Draw all parameters from U(-1/√H, 1/√H), as torch.nn's recurrent layers do."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def extra_repr(self) -> str:
        text = f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
        text += ", batch_first=True" * self.batch_first
        return text + (f", dropout={self.dropout}" if self.dropout else "")

    def _forward_packed(
        self, packed: PackedSequence, hx: Any, lengths: Tensor | None, reset: Tensor | None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]:
        """Run the stack on a PackedSequence, padded."""
        if lengths is not None or reset is not None:
            raise RuntimeError(
                "lengths, reset: expected none with a PackedSequence, which has its lengths"
            )
        data, sizes, order, back = packed
        rows, own = pad_packed_sequence(PackedSequence(data, sizes), self.batch_first)
        if hx is not None and order is not None:
            hx = tuple(state.index_select(1, order) for state in given_states(hx, self._states))
        output, (h, m) = self.forward(rows, hx, own.to(data.device))
        joined = pack_padded_sequence(output, own, self.batch_first)
        if back is not None:
            h, m = h.index_select(1, back), m.index_select(1, back)
        return PackedSequence(joined.data, sizes, order, back), (h, m)

    def _between(self, output: Tensor, layer: int) -> Tensor:
        """The output of a layer as the input of the next: with dropout in training."""
        if layer + 1 == self.num_layers:
            return output
        return functional.dropout(output, self.dropout, self.training)

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
