"""Modules that take one step, shaped like torch.nn.LSTMCell: for decoders and streams."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import backends, cells
from .cells import Cell
from .function import expect
from .layer import Layer


class RecurrentCell(Layer, nn.RNNCellBase):
    """One step of any cell, with the arguments of torch.nn.LSTMCell.

    Args:
        cell: a ``Cell``, or the name of a built-in one.
        input_size: I, features of the input.
        hidden_size: H, hidden units.
        bias: whether the gates have biases.
        device, dtype: of the parameters.
        backend: what runs it, see ``fused_rnn.use_backend``; None follows that.

    Parameters: as those of one layer of ``Recurrent``, without the suffix ``_l0``.

    Raises:
        TypeError, ValueError: an unknown cell or backend, or sizes that do not fit the cell.
    """

    def __init__(
        self,
        cell: Cell | str,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device=None,
        dtype=None,
        *,
        backend: str | None = None,
    ):
        super().__init__(cell, backend)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self._add_parameters(input_size, "", device, dtype)
        if not bias:  # as in torch.nn, whose users ask whether these are None
            self.bias_ih = self.bias_hh = None
        self.reset_parameters()

    def forward(
        self, input: Tensor, hx: Tensor | tuple[Tensor, ...] | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Take a step.

        Args:
            input: (B, I) or (I,).
            hx: the states before the step, (B, H) or (H,); a tuple of one per state where the cell
                has several. Default: zeros.

        Returns:
            The states after the step, shaped as ``hx``.

        Raises:
            ValueError: ``input`` or a state has neither 1 nor 2 dimensions, or ``input`` another
                dtype than the weights.
            RuntimeError: wrong sizes, numbers or devices, or a backend that cannot serve.
        """
        name = type(self).__name__
        if input.dim() not in (1, 2):
            raise ValueError(f"{name}: input: expected 1 or 2 dimensions, got {input.dim()}")
        unbatched = input.dim() == 1
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"{name}: input: expected input_size {self.input_size} features, "
                f"got {input.shape[-1]}"
            )
        weight = getattr(self, next(iter(self._shapes(self.input_size))))
        autocast = torch.is_autocast_enabled(input.device.type)
        dtype = backends.autocast_dtype(input)
        if not autocast:
            # In ``expect``'s words: what torch.nn leaves to the product.
            expect(input, f"{name}: input", input.shape, weight)
        weights, input = self._weights("", dtype), input.to(dtype)
        rows = input.unsqueeze(0) if unbatched else input
        states = self._states(rows, hx, unbatched, autocast)
        _, finals = self._run_layer(rows.unsqueeze(0), [weights], states, zeros=hx is None)
        finals = [final[0, 0] if unbatched else final[0] for final in finals]
        return finals[0] if len(finals) == 1 else tuple(finals)

    def _states(self, rows, hx, unbatched, autocast):
        names = self.cell.states
        shape = (rows.shape[0], self.hidden_size)
        if hx is None:
            return [rows.new_zeros(1, *shape) for _ in names]
        given = [hx] if isinstance(hx, Tensor) else list(hx)
        if len(given) != len(names):
            raise RuntimeError(f"hx: expected {len(names)} states {names}, got {len(given)}")
        states = []
        for name, state in zip(names, given, strict=True):
            if state.dim() not in (1, 2):
                raise ValueError(f"hx: state {name}: expected 1 or 2 dimensions, got {state.dim()}")
            state = state.to(rows.dtype) if autocast else state
            expect(state, f"hx: state {name}", shape[1:] if unbatched else shape, rows)
            states.append(state.view(1, *shape) if unbatched else state.unsqueeze(0))
        return states

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        if type(self) is RecurrentCell:
            parts.insert(0, self.cell.name)
        if not self.bias:
            parts.append("bias=False")
        if getattr(self, "nonlinearity", "tanh") != "tanh":
            parts.append(f"nonlinearity={self.nonlinearity}")
        if self.backend is not None:
            parts.append(f"backend={self.backend}")
        return ", ".join(parts)


class RNNCell(RecurrentCell):
    """torch.nn.RNNCell, one step of ``RNN``; the other arguments are ``RecurrentCell``'s.

    Args:
        nonlinearity: "tanh" or "relu".
    """

    def __init__(self, input_size, hidden_size, bias=True, nonlinearity="tanh", *args, **kwargs):
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(f"rnn_{nonlinearity}", input_size, hidden_size, bias, *args, **kwargs)
        self.nonlinearity = nonlinearity


class LSTMCell(RecurrentCell):
    """torch.nn.LSTMCell, one step of ``LSTM``. ``hx`` is (h0, c0)."""

    def __init__(self, input_size, hidden_size, *args, **kwargs):
        super().__init__(cells.LSTM, input_size, hidden_size, *args, **kwargs)


class PeepholeLSTMCell(RecurrentCell):
    """One step of ``PeepholeLSTM``. ``hx`` is (h0, c0)."""

    def __init__(self, input_size, hidden_size, *args, peepholes: str = "ifo", **kwargs):
        cell = cells.peephole_lstm(peepholes)
        super().__init__(cell, input_size, hidden_size, *args, **kwargs)


class CIFGLSTMCell(RecurrentCell):
    """One step of ``CIFGLSTM``. ``hx`` is (h0, c0)."""

    def __init__(self, input_size, hidden_size, *args, **kwargs):
        super().__init__(cells.CIFG_LSTM, input_size, hidden_size, *args, **kwargs)


class GRUCell(RecurrentCell):
    """torch.nn.GRUCell, one step of ``GRU``; ``reset_after`` as there."""

    def __init__(self, input_size, hidden_size, *args, reset_after: bool = True, **kwargs):
        cell = cells.GRU if reset_after else cells.GRU_RESET_BEFORE
        super().__init__(cell, input_size, hidden_size, *args, **kwargs)
        self.reset_after = reset_after
