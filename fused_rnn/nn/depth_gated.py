"""The depth-gated LSTM, whose layers see the memory of the layer below."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..cells.highway import depth_gated_lstm
from .recurrent import Recurrent
from .stacks import Stack


class DepthGatedLSTM(Stack):
    """A stack of LSTMs with a gate from the memory of each layer to that of the next.

    Yao et al. 2015 (arXiv 1508.03790): layer k > 0 has the h of the layer below as its input, and
    its c after the same step as ``c_below`` of ``cells.get("depth_gated_lstm")``. The first layer
    has a projection of the input, without bias, as ``c_below``, which its depth gate does not see.

    Args:
        input_size: I, features of the input.
        hidden_size: H, hidden units.
        num_layers: L.
        bias: whether the gates have biases.
        batch_first: input and output are (B, T, ...) instead of (T, B, ...).
        dropout: probability that a value is dropped between layers, in training: of h, not c.
        bidirectional: False; the paper's layers have one direction.
        device, dtype: of the parameters.
        backend: what runs it, see ``fused_rnn.use_backend``.

    Attributes:
        project: the Linear from I to H.
        layers: a ``Recurrent`` per layer. All values are drawn from U(-1/√H, 1/√H).

    Raises:
        TypeError, ValueError: as ``Recurrent``; or a second direction.
    """

    _states = depth_gated_lstm().states

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str | None = None,
    ):
        shape = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__(*shape)
        self.layers = nn.ModuleList(
            Recurrent(
                depth_gated_lstm(first=not k),
                self.hidden_size if k else self.input_size,
                self.hidden_size,
                bias=bias,
                batch_first=batch_first,
                device=device,
                dtype=dtype,
                backend=backend,
            )
            for k in range(self.num_layers)
        )
        self.project = nn.Linear(
            self.input_size, self.hidden_size, bias=False, device=device, dtype=dtype
        )
        self.reset_parameters()

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Run the stack.

        Args:
            input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) without a batch, or a
                PackedSequence. T ≥ 1.
            hx: (h0, c0), each (L, B, H), or (L, H) without a batch. Default: zeros.
            lengths, reset: as those of ``Recurrent``.

        Returns:
            output: h of the last layer at every step, (T, B, H) or in the layout of ``input``; a
                PackedSequence for a PackedSequence.
            hn: (h_n, c_n) after the last step, shaped as ``hx``.

        Raises:
            TypeError, ValueError, RuntimeError: as ``Recurrent``.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths, reset)
        self._check_input(input)
        finals, output = [], self._hide(input, lengths)
        below = self.project(output)
        for k, before in enumerate(self._by_layer(hx)):
            (output, below), final = self.layers[k](
                output, before, lengths, reset, return_states=True, streams=below
            )
            output = self._between(output, k)
            finals.append(final)
        h_n, c_n = (torch.cat(states) for states in zip(*finals, strict=True))
        return output, (h_n, c_n)
