"""Modules that take one step, shaped like torch.nn.LSTMCell: for decoders and streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .. import context
from ..cells import Cell
from ..cells.draws import draw_key, later
from ..checks.arguments import (
    check_flags,
    check_heads,
    expect,
    given_states,
    show,
    whole_number,
)
from ..engines import aten, choose_step
from ..engines import step as one_step
from ..ops import sharded
from . import regularizers
from .given import key_of, streams_of
from .layer import Layer
from .older_graphs import as_leaf

if TYPE_CHECKING:
    from .signatures import StepCall


class RecurrentCell(Layer, nn.RNNCellBase):
    """One step of any cell, with the arguments of torch.nn.LSTMCell.

    Args:
        cell: a ``Cell``, or the name of a built-in one.
        input_size: I, features of the input.
        hidden_size: H, hidden units.
        bias: whether the gates have biases.
        device, dtype: of the parameters.
        num_heads: N, see ``Recurrent``.
        zoneout, state_dropout, recurrent_dropout, cell_clip: see ``Recurrent``. In training every
            call draws anew, also what ``Recurrent`` draws once per sequence, unless it is given a
            ``key``.
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
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int | Sequence[int] = 1,
        zoneout: float | Sequence[float] = 0.0,
        state_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        cell_clip: float | None = None,
        backend: str | None = None,
    ):
        super().__init__(cell, backend)
        check_flags(bias=bias)
        self.input_size = input_size = whole_number("input_size", input_size, 0)
        self.hidden_size = whole_number("hidden_size", hidden_size, 0)
        self.bias = bias
        self._heads = check_heads(self.cell, num_heads, self.hidden_size)
        self.num_heads = num_heads
        self._regularize(
            zoneout=zoneout,
            state_dropout=state_dropout,
            recurrent_dropout=recurrent_dropout,
            cell_clip=cell_clip,
        )
        self._add_parameters(input_size, "", device, dtype)
        if not bias:  # as in torch.nn, whose users ask whether these are None
            self.bias_ih = self.bias_hh = None
        self.reset_parameters()

    if TYPE_CHECKING:
        # torch.nn.Module's takes anything.
        __call__: StepCall[Any]  # pyright: ignore[reportIncompatibleMethodOverride]

    def forward(
        self,
        input: Tensor,
        hx: Tensor | tuple[Tensor, ...] | None = None,
        streams: Tensor | Sequence[Tensor] | None = None,
        key: Tensor | None = None,
        step: int = 0,
    ) -> Any:
        """Take a step.

        Args:
            input: (B, I) or (I,).
            hx: the states before the step, (B, H) or (H,); a tuple of one per state where the cell
                has several. Default: zeros.
            streams: per stream of the cell (B, H) or (H,), or 1 for a size in which it is constant;
                the tensor itself where there is one.
            key: of what the cell draws, by ``cells.draw_key(B)``. Calls with one key and the steps
                0, 1, ... draw what a layer of one direction draws from it. Default: another for
                each call.
            step: the number of the step, with a key.

        Returns:
            The states after the step, shaped as ``hx``.

        Raises:
            TypeError: ``input`` or a state is no Tensor, or ``step`` no int.
            ValueError: a key for a cell that draws nothing, or a step without one; ``input`` or a
                state has neither 1 nor 2 dimensions, or ``input`` another dtype than the weights.
            RuntimeError: wrong sizes, numbers or devices, or a backend that cannot serve.
        """
        usual = choose_step.usual_step(self, input, hx)
        if usual is not None and key is None and step == 0:
            function, arguments = usual
            return function(*arguments)
        if not isinstance(input, Tensor):
            return as_leaf(self, input, hx, streams=streams, key=key, step=step)
        name = type(self).__name__
        dims = input.dim()
        if dims not in (1, 2):
            raise ValueError(f"{name}: input: expected 1 or 2 dimensions, got {dims}")
        if type(input) is not Tensor and sharded.is_distributed(input):
            batch = None if dims == 1 else 0
            given = {"hx": (hx, batch), "streams": (streams, batch)}
            return sharded.run_module(self, input, batch, given, {"key": key, "step": step})
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"{name}: input: expected input_size {self.input_size} features, "
                f"got {input.shape[-1]}"
            )
        rows = input.unsqueeze(0) if dims == 1 else input
        autocast = context.autocasts(input.device)
        if autocast:
            rows = rows.to(context.autocast_dtype(input))
        else:
            # torch.nn leaves these errors to the product; ``expect`` names the argument.
            weight = next(iter(self._parameters.values()), None)
            if weight is None:  # all are parametrized, or there are none
                weight = next(self.parameters(), None)
            if weight is None:
                weight = next(iter(self._weights("").values()), input)  # a cell may have none
            if input.dtype != weight.dtype or input.device != weight.device:
                expect(input, f"{name}: input", input.shape, weight)
        states = self._states(rows, hx, dims == 1, autocast)
        flow = []
        if streams is not None or self.cell.streams:
            shape = (rows.shape[0], self.hidden_size)
            flow = streams_of(self.cell, streams, shape, rows, unbatched=dims == 1)
        run = regularizers.disturbed(self._regularizers, self.training, self.cell)
        key = self._key(run, key, step, rows)
        way = choose_step.step(self, rows, states, autocast, key is not None).engine
        if way == "aten":
            finals = aten.step(self, rows, states)
        elif way == "step":
            flow += one_step.drawn(run, key, states[0])
            finals = one_step.run(run, rows, self._weights("", rows.dtype), states, flow)
        else:
            weights = [self._weights("", rows.dtype)]
            before = [state.unsqueeze(0) for state in states]
            flow = [stream.unsqueeze(0) for stream in flow]
            _, finals = self._run_layer(
                way, rows.unsqueeze(0), weights, before, zeros=hx is None, streams=flow, key=key
            )
            finals = [final[0] for final in finals]
        if dims == 1:
            finals = [final[0] for final in finals]
        return finals[0] if len(finals) == 1 else tuple(finals)

    def _key(self, run, key, step, rows):
        """The key of a step; None where ``run`` draws nothing. ``rows`` is (B, I)."""
        number = whole_number("step", step, 0)
        if key is None and number:
            raise ValueError(f"step: expected a key too, or 0, got {step}")
        if key is not None:
            key = later(key_of(self, key, len(rows), rows), number)
        elif run.drawn:
            key = draw_key(len(rows), rows.device)
        return key if run.drawn else None

    def _states(self, rows, hx, unbatched, autocast):
        """One (B, H) per state; ``rows`` is (B, I)."""
        names = self.cell.states
        shape = (rows.shape[0], self.hidden_size)
        if hx is None:
            return [rows.new_zeros(shape)] * len(names)
        wanted = shape[1:] if unbatched else shape
        states = []
        for name, state in zip(names, given_states(hx, names), strict=True):
            if autocast:
                state = state.to(rows.dtype)
            if state.shape != wanted or state.dtype != rows.dtype or state.device != rows.device:
                if state.dim() not in (1, 2):
                    raise ValueError(
                        f"hx: state {name}: expected 1 or 2 dimensions, got {state.dim()}"
                    )
                expect(state, f"hx: state {name}", wanted, rows)
            states.append(state.unsqueeze(0) if unbatched else state)
        return states

    def extra_repr(self) -> str:
        sizes = (str(self.input_size), str(self.hidden_size))
        name = (f'"{self.cell.name}"',) if type(self) is RecurrentCell else ()
        return show(
            self,
            *name,
            *sizes,
            bias=True,
            **self._own_arguments,
            num_heads=1,
            zoneout=0.0,
            state_dropout=0.0,
            recurrent_dropout=0.0,
            cell_clip=None,
            backend=None,
        )

    _own_arguments: ClassVar[dict] = {}  # of a subclass, with their defaults
