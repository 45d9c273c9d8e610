"""Layers shaped like torch.nn.RNN, LSTM and GRU, for every cell."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .. import context
from ..cells import Cell
from ..cells.draws import of_layer
from ..checks.arguments import (
    check_arguments,
    check_flags,
    check_heads,
    check_projection,
    given_states,
    show,
)
from ..engines import aten, choose
from ..ops import sharded
from . import given, regularizers
from .bases import RNNBase, suffix
from .layer import Layer, cast
from .older_graphs import as_leaf
from .segments import Segments

if TYPE_CHECKING:
    from .signatures import LayerCall


class Recurrent(Layer, RNNBase):
    """A stack of recurrent layers of any cell, with the arguments of torch.nn.LSTM.

    Args:
        cell: a ``Cell``, or the name of a built-in one.
        input_size: I, features of the input.
        hidden_size: H, hidden units.
        num_layers: L, layers on top of each other.
        bias: whether the gates have biases.
        batch_first: input and output are (B, T, ...) instead of (T, B, ...).
        dropout: probability that a value is dropped between layers, in training.
        bidirectional: a second set of weights walks each sequence backward (D = 2).
        proj_size: P, the size of h where each layer projects it; 0 for none. For cells whose
            products alone read h, such as every LSTM here.
        device, dtype: of the parameters.
        num_heads: N, parts of the units that do not see each other: each recurrent matrix is
            block-diagonal, and has its N blocks only. Or a sequence of one number per matrix.
        learn_h0: whether the initial states, where a call gives none, are parameters that all rows
            share.
        zoneout: probability that a unit keeps its old value at a step, in training; in evaluation
            the expectation is taken. Or a sequence of one per state of the cell.
        state_dropout: probability that a unit of the first state is hidden from the recurrent
            products, in training, for all steps of a row alike; others are scaled by 1 / (1 - p).
        weight_drop: probability that a value of a recurrent matrix is zero, in training, for a call
            (DropConnect); others are scaled by 1 / (1 - p).
        recurrent_dropout: probability that a unit has no candidate at a step, in training: what its
            memory takes up, tanh(..) in an LSTM or a GRU; others are scaled by 1 / (1 - p). For
            cells whose step has a parameter ``candidate``.
        cell_clip: bound of the memory c, which is clamped to ± it before h is computed from it;
            None for none. For cells whose step has a parameter ``memory``.
        backend: what runs it, see ``fused_rnn.use_backend``; None follows that.
        recompute: keep the states but not the gates for the backward, which computes the gates
            again by one product per recurrent product of the cell. No effect on backends "aten"
            (which "auto" then does not take) and "reference", inside transforms of torch.func, and
            on a layer with a projection whose ``hx`` is given.

    Parameters (k the layer, ``_reverse`` appended for the second direction):
        weight_ih_l{k}: (X·H, I), for k > 0 (X·H, D·H).
        weight_hh_l{k}: (R·H, H), with a projection (R·H, P), with heads (R·H, H/N): row r·H + j
            belongs to unit j of gate r, and has the units of its head. One for each stage
            (``weight_hh0_l{k}``, ...) where the matrices of the cell's stages differ in width.
            Stages with a fixed matrix have none.
        bias_ih_l{k}, bias_hh_l{k}: (X·H,), (R·H,).
        weight_hr_l{k}: (P, H), with a projection.
        {name}_l{k}: (H,), for each name in ``cell.params``; as its ``Param`` says, () or a buffer.
        {state}0_l{k}: (H,), of h with a projection (P,), for each state with ``learn_h0``; zeros.
        A cell without matrices has neither weight_hh nor bias_hh.
        The others are drawn from U(-1/√H, 1/√H), in torch.nn's order, but for params with an
        ``init``.

    Raises:
        TypeError, ValueError: as torch.nn.LSTM does.
    """

    def __init__(
        self,
        cell: Cell | str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int | Sequence[int] = 1,
        learn_h0: bool = False,
        zoneout: float | Sequence[float] = 0.0,
        state_dropout: float = 0.0,
        weight_drop: float = 0.0,
        recurrent_dropout: float = 0.0,
        cell_clip: float | None = None,
        backend: str | None = None,
        recompute: bool = False,
    ):
        super().__init__(cell, backend)
        input_size, hidden_size, num_layers, dropout = check_arguments(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            recompute,
        )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = dropout
        self.bidirectional = bidirectional
        self.proj_size = check_projection(self.cell, proj_size, hidden_size)
        self.recompute = recompute
        self._heads = check_heads(self.cell, num_heads, hidden_size, proj_size)
        self.num_heads = num_heads
        check_flags(learn_h0=learn_h0)
        self.learn_h0 = learn_h0
        self._regularize(
            self.proj_size,
            zoneout=zoneout,
            state_dropout=state_dropout,
            weight_drop=weight_drop,
            recurrent_dropout=recurrent_dropout,
            cell_clip=cell_clip,
        )
        for place, end in enumerate(self._suffixes):
            first = place < self._directions
            features = input_size if first else self._width(0) * self._directions
            self._add_parameters(features, end, device, dtype)
        for number, names in enumerate(self._initial_names):
            for name in names:
                if hasattr(self, name):
                    raise ValueError(f"learn_h0: cell {self.cell.name!r} has a param {name!r} too")
                first = torch.empty(self._width(number), device=device, dtype=dtype)
                self.register_parameter(name, nn.Parameter(first))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for name in itertools.chain(*self._initial_names):
            nn.init.zeros_(getattr(self, name))

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _suffixes(self) -> list[str]:
        layers, directions = range(self.num_layers), range(self._directions)
        return [suffix(layer, direction) for layer in layers for direction in directions]

    @property
    def _initial_names(self) -> list[list[str]]:
        """Per state the names of its learned first values, if there are any."""
        if not self.learn_h0:
            return []
        return [[f"{state}0{end}" for end in self._suffixes] for state in self.cell.states]

    if TYPE_CHECKING:
        # torch.nn.Module's takes anything.
        __call__: LayerCall[Any]  # pyright: ignore[reportIncompatibleMethodOverride]

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | tuple[Tensor, ...] | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        return_states: bool = False,
        # Not by keyword only: the older exporter to ONNX passes all by position.
        streams: Tensor | PackedSequence | Sequence[Any] | None = None,
        reset_hx: Tensor | tuple[Tensor, ...] | None = None,
        key: Tensor | None = None,
    ) -> tuple[Any, Any]:
        """Run the stack.

        Args:
            input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) without a batch, or a
                PackedSequence. T ≥ 1.
            hx: the initial states (L·D, B, H), without a batch (L·D, H); a tuple of one per state
                where the cell has several. Default: zeros, or what is learned.
            lengths: (B,), integers of any dtype on the device of ``input``, in any order: row b has
                ``lengths[b]`` steps, 0 to T (other numbers are clamped). Values of ``input`` after
                them are ignored.
            reset: (T, B), (B, T) with ``batch_first``, (T,) without a batch; bool. Where it is
                true a new sequence begins in the row: the states before that step are ``hx`` again.
                The backward direction does not cross it either: it begins with ``hx`` at the last
                step before. Resets beyond a row's length do nothing.
            return_states: return every state at every step.
            streams: per stream of the cell (T, B, H), or in the layout of ``input``; 1 for a size
                in which it is constant; the tensor itself where there is one. All layers and
                directions take the same. PackedSequences for a PackedSequence.
            reset_hx: per state (T, L·D, B, H), without a batch (T, L·D, H): the states that a reset
                at a step sets, in place of ``hx``.
            key: of all that is drawn but ``dropout``, by ``cells.draw_key(B)``; each layer has its
                own bits.
                Default: another for each call.

        Returns:
            output: (T, B, D·H), or in the layout of ``input``: the first state of the last layer at
                every step, zero beyond a row's length. With ``return_states`` a tuple of these, one
                per state. A PackedSequence for a PackedSequence.
            hn: the states after the last step of each row (and of its last segment), shaped as
                ``hx``; those of ``hx`` for a row without steps. In the backward direction, the
                states after the first step.

        Raises:
            ValueError: ``input`` has neither 2 nor 3 dimensions, or another dtype than the weights.
            TypeError: ``input`` or a state is no Tensor, or ``lengths`` or ``reset`` of a wrong
                dtype.
            RuntimeError: wrong sizes or devices, sparse or nested tensors, a sequence of no steps,
                a backend that cannot serve, or ``lengths`` or ``reset`` with a PackedSequence or
                ``lengths`` without a batch.
        """
        if not isinstance(input, Tensor):
            if isinstance(input, PackedSequence):
                if reset_hx is not None:
                    raise RuntimeError("reset_hx: expected none with a PackedSequence")
                return self._forward_packed(input, hx, lengths, reset, return_states, streams, key)
            options = {"lengths": lengths, "reset": reset, "return_states": return_states}
            options |= {"streams": streams, "reset_hx": reset_hx, "key": key}
            return as_leaf(self, input, hx, **options)
        if type(input) is not Tensor and sharded.is_distributed(input):
            unbatched = input.dim() == 2
            batch = None if unbatched else 0 if self.batch_first else 1
            others = {
                "hx": (hx, None if unbatched else 1),
                "lengths": (lengths, 0),
                "reset": (reset, batch),
                "streams": (streams, batch),
                "reset_hx": (reset_hx, None if unbatched else 2),
            }
            rest = {"return_states": return_states, "key": key}
            return sharded.run_module(self, input, batch, others, rest)
        weights = self._all()
        given.check_input(self, input, weights)
        unbatched = input.dim() == 2
        if unbatched:
            input = input.unsqueeze(1)
        elif self.batch_first:
            input = input.transpose(0, 1)
        lengths, reset = given.rows(self, input, lengths, reset, unbatched)
        input = input.to(context.autocast_dtype(input))
        states = given.initial_states(self, input, hx, unbatched)
        flow, at_resets = [], None
        if streams is not None or self.cell.streams:
            swapped = self.batch_first and not unbatched
            shape = (*input.shape[:2], self.hidden_size)
            flow = given.streams_of(self.cell, streams, shape, input, swapped, unbatched)
        if reset_hx is not None:
            at_resets = given.states_at_resets(self, input, reset_hx, reset, states, unbatched)
        if key is not None:
            key = given.key_of(self, key, input.shape[1], input)
        self._drop_matrices(weights, key)
        plain = lengths is None and reset is None
        asked = self._asked(lengths, reset, return_states)
        flat = _flat(weights)
        chosen = choose.module(self, input, states, flat, asked).engine
        if chosen == "aten":
            output, states = aten.forward(self, input, states, flat)
            outputs = [output]
        else:
            rows = None if plain else Segments(input.shape[0], self._directions, lengths, reset)
            zeros = hx is None and not self.learn_h0
            call = (input, weights, states, rows, zeros, return_states, None, flow, at_resets, key)
            outputs, states = self._forward_layers(chosen, *call)
        if unbatched:
            outputs = [output.squeeze(1) for output in outputs]
            states = [state.squeeze(1) for state in states]
        elif self.batch_first:
            outputs = [output.transpose(0, 1) for output in outputs]
        hn = states[0] if len(states) == 1 else tuple(states)
        return (tuple(outputs) if return_states else outputs[0]), hn

    def _forward_packed(self, packed, hx, lengths, reset, return_states, streams, key):
        """Run the stack on a PackedSequence, whose rows are sorted and whose sizes are known."""
        if lengths is not None or reset is not None:
            raise RuntimeError(
                "lengths, reset: expected none with a PackedSequence, which has its lengths"
            )
        data, sizes, order, back = packed
        if data.dim() != 2:
            raise RuntimeError(f"input: expected packed data of 2 dimensions, got {data.dim()}")
        weights = self._all()
        given.check_features(self, data, weights)
        data = data.to(context.autocast_dtype(data))
        like = data[: int(sizes[0])].unsqueeze(0)
        if hx is not None and order is not None:
            hx = [state.index_select(1, order) for state in given_states(hx, self.cell.states)]
            hx = hx[0] if len(hx) == 1 else hx
        states = given.initial_states(self, like, hx, False)
        if key is not None:
            key = given.key_of(self, key, int(sizes[0]), data, order)
        self._drop_matrices(weights, key)
        flat = _flat(weights)
        asked = self._asked(None, None, return_states)
        chosen = choose.module(self, data, states, flat, asked, sizes).engine
        if chosen == "aten":
            output, states = aten.forward(self, data, states, flat, sizes)
            outputs = [output]
        else:
            padded, lengths = pad_packed_sequence(PackedSequence(data, sizes))
            rows = Segments(len(padded), self._directions, lengths.to(data.device), None)
            rows.descending, rows.order = lengths, order
            flow = given.unpacked(self.cell, streams, sizes)
            shape = (*padded.shape[:2], self.hidden_size)
            flow = given.streams_of(self.cell, flow, shape, padded)
            zeros = hx is None and not self.learn_h0
            call = (padded, weights, states, rows, zeros, return_states, lengths, flow, None, key)
            outputs, states = self._forward_layers(chosen, *call)
            outputs = [_pack(output, lengths) for output in outputs]
        if back is not None:
            states = [state.index_select(1, back) for state in states]
        outputs = [PackedSequence(output, sizes, order, back) for output in outputs]
        hn = states[0] if len(states) == 1 else tuple(states)
        return (tuple(outputs) if return_states else outputs[0]), hn

    def extra_repr(self) -> str:
        sizes = (str(self.input_size), str(self.hidden_size))
        name = (f'"{self.cell.name}"',) if type(self) is Recurrent else ()
        return show(
            self,
            *name,
            *sizes,
            proj_size=0,
            num_layers=1,
            **self._own_arguments,
            bias=True,
            batch_first=False,
            dropout=0.0,
            bidirectional=False,
            num_heads=1,
            learn_h0=False,
            zoneout=0.0,
            state_dropout=0.0,
            weight_drop=0.0,
            recurrent_dropout=0.0,
            cell_clip=None,
            backend=None,
            recompute=False,
        )

    _own_arguments: ClassVar[dict] = {}  # of a subclass, with their defaults

    def _all(self):
        """The parameters of each layer and direction, by name."""
        if self.num_layers == 1 and not self.bidirectional:
            return [self._weights("_l0")]
        return [self._weights(end) for end in self._suffixes]

    def _drop_matrices(self, weights, key):
        p = self._regularizers.weight_drop
        if p and self.training:
            regularizers.drop_matrices(p, weights, self._directions, key)

    def _asked(self, lengths, reset, return_states):
        """What a call asks for, of ``contract.OPTIONS``."""
        asked = {"lengths": lengths is not None, "reset": reset is not None}
        asked["return_states"] = return_states
        return self._own_options.union(name for name, is_asked in asked.items() if is_asked)

    def _forward_layers(
        self,
        chosen,
        input,
        weights,
        states,
        rows,
        zeros,
        return_states,
        packed,
        streams=(),
        at_resets=None,
        key=None,
    ):
        """Run the layers one after the other.

        Args:
            packed: lengths on the host, descending, or None. Dropout then acts on packed data, as
                in torch.nn, and so with its random numbers.
        """
        outputs, finals = [], []
        directions = self._directions
        if rows is not None and packed is None:  # where it is padded with zeros
            input = rows.hide(input)
        if rows is not None:
            streams = [rows.hide(stream) for stream in streams]
        for layer in range(self.num_layers):
            own = slice(layer * directions, (layer + 1) * directions)
            here = weights[own]
            here = [cast(group, input.dtype) for group in here]
            last = layer + 1 == self.num_layers
            before = states
            if self.num_layers > 1:
                before = [state[own] for state in states]
            anew = None if at_resets is None else [state[:, own] for state in at_resets]
            own_key = None if key is None else of_layer(key, layer)
            sequences, final = self._run_layer(
                chosen, input, here, before, rows, zeros, return_states and last, streams, anew,
                own_key,
            )  # fmt: skip
            finals.append(final)
            outputs = [sequence.flatten(2) for sequence in sequences]
            input = outputs[0]
            if not last and self.dropout and self.training and packed is not None:
                dropped = functional.dropout(_pack(input, packed), self.dropout)
                sizes = torch._VF._pack_padded_sequence(input, packed, False)[1]
                input = pad_packed_sequence(PackedSequence(dropped, sizes))[0]
            elif not last:
                input = functional.dropout(input, self.dropout, self.training)
        if self.num_layers == 1:
            return outputs, finals[0]
        return outputs, [torch.cat(group) for group in zip(*finals, strict=True)]


def _flat(weights):
    if len(weights) == 1:
        return list(weights[0].values())
    return [weight for group in weights for weight in group.values()]


def _pack(sequence, lengths):
    return torch._VF._pack_padded_sequence(sequence, lengths, False)[0]
