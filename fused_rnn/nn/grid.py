"""Grid LSTM in two dimensions, time and depth."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..cells.grid import GRID_LSTM
from .recurrent import Recurrent
from .stacks import Stack


class GridLSTM(Stack):
    """A 2-D Grid LSTM: LSTM blocks along time and along depth, with a memory in each dimension.

    Kalchbrenner et al. 2015 (arXiv 1507.01526), with depth as the priority dimension. The block of
    each step and layer has from below (h_d, m_d) and from the step before (h_t, m_t):

        h_t, m_t = LSTM_t([h_d, h_t], m_t)         LSTM: the equations of cells.get("grid_lstm")
        h_d, m_d = LSTM_d([h_t, h_d], m_d)         of the new h_t

    At the bottom h_d and m_d are projections of the input. Since only LSTM_t is a recurrence, a
    layer is one run of the cell ``grid_lstm`` and operations on all steps at once. The biases and
    those of the projections are an addition.

    Args:
        input_size: I, features of the input.
        hidden_size: H, units in each dimension.
        num_layers: L, the depth.
        bias: whether gates and projections have biases.
        batch_first: input and output are (B, T, ...) instead of (T, B, ...).
        dropout: probability that a value is dropped between layers, in training: of h_d, not m_d.
        bidirectional: False; the paper's layers have one direction.
        device, dtype: of the parameters.
        tied: whether all layers share the weights.
        backend: what runs the recurrences, see ``fused_rnn.use_backend``.

    Attributes:
        project: a Linear from I to 2·H: h_d, then m_d.
        time, depth: LSTM_t, a ``Recurrent``, and LSTM_d, a Linear from 2·H to 4·H (i, f, g, o),
            per layer; one of each if tied. All values are drawn from U(-1/√H, 1/√H).

    Raises:
        TypeError, ValueError: as ``Recurrent``; or a second direction.
    """

    _states = GRID_LSTM.states

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
        tied: bool = False,
        backend: str | None = None,
    ):
        shape = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__(*shape, tied=tied)
        self.tied, width = tied, self.hidden_size
        own, of_all = 1 if tied else self.num_layers, {"device": device, "dtype": dtype}
        of_time = {"bias": bias, "batch_first": batch_first, "backend": backend, **of_all}
        self.project = nn.Linear(self.input_size, 2 * width, bias, **of_all)
        self.time = nn.ModuleList(Recurrent(GRID_LSTM, width, width, **of_time) for _ in range(own))
        self.depth = nn.ModuleList(
            nn.Linear(2 * width, 4 * width, bias, **of_all) for _ in range(own)
        )
        self.reset_parameters()

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Run the grid.

        Args:
            input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) without a batch, or a
                PackedSequence. T ≥ 1.
            hx: (h_t, m_t) before the first step, each (L, B, H), or (L, H). Default: zeros.
            lengths, reset: as those of ``Recurrent``. A reset acts along time alone.

        Returns:
            output: h_d of the last layer at every step, (T, B, H) or in the layout of ``input``; a
                PackedSequence for a PackedSequence.
            hn: (h_t, m_t) after the last step, shaped as ``hx``.

        Raises:
            TypeError, ValueError, RuntimeError: as ``Recurrent``.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths, reset)
        self._check_input(input)
        input, finals = self._hide(input, lengths), []
        h_d, m_d = self.project(input).chunk(2, -1)
        for k, before in enumerate(self._by_layer(hx)):
            place = 0 if self.tied else k
            h_t, final = self.time[place](h_d, before, lengths, reset)
            i, f, g, o = self.depth[place](torch.cat([h_t, h_d], -1)).chunk(4, -1)
            m_d = f.sigmoid() * m_d + i.sigmoid() * g.tanh()
            h_d = self._between((o.sigmoid() * m_d).tanh(), k)
            finals.append(final)
        h_n, m_n = (torch.cat(states) for states in zip(*finals, strict=True))
        return self._hide(h_d, lengths), (h_n, m_n)

    def extra_repr(self) -> str:
        return super().extra_repr() + ", tied=True" * self.tied
