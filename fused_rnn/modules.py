"""Layers shaped like torch.nn.RNN, LSTM and GRU, for every cell."""

from __future__ import annotations

import math
import numbers
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import backends, cells
from .cells import Cell
from .function import expect
from .recompute import run_layer


class Recurrent(nn.Module):
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
        proj_size: has its place among torch.nn's arguments; only 0 is supported yet.
        device, dtype: of the parameters.
        backend: what runs it, see ``fused_rnn.use_backend``; None follows that.
        recompute: keep the states but not the gates for the backward, which computes these anew by
            one product per recurrent product of the cell. No effect on backends "aten" (which
            "auto" then leaves alone) and "reference", and inside transforms of torch.func.

    Parameters (k the layer, ``_reverse`` appended for the second direction):
        weight_ih_l{k}: (X·H, I), for k > 0 (X·H, D·H).
        weight_hh_l{k}: (R·H, H); one for each stage (``weight_hh0_l{k}``, ...) where the stages of
            the cell concatenate different numbers of vectors.
        bias_ih_l{k}, bias_hh_l{k}: (X·H,), (R·H,).
        {name}_l{k}: (H,), for each name in ``cell.params``.
        All are drawn from U(-1/√H, 1/√H), in torch.nn's order.

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
        device=None,
        dtype=None,
        *,
        backend: str | None = None,
        recompute: bool = False,
    ):
        super().__init__()
        self.cell = cells.get(cell) if isinstance(cell, str) else cell
        if not isinstance(self.cell, Cell):
            raise TypeError(f"cell: expected a Cell or the name of one, got {cell!r}")
        if self.cell.streams:
            raise ValueError(
                f"cell: {self.cell.name!r} takes streams {self.cell.streams}; use fused_rnn.scan"
            )
        _check_arguments(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
        )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.backend = backend if backend is None else backends.check_name(backend)
        self.recompute = recompute
        directions = 2 if bidirectional else 1
        for layer in range(num_layers):
            features = input_size if layer == 0 else hidden_size * directions
            if self.cell.raw_gates and features != hidden_size:
                raise ValueError(
                    f"input_size: gates {self.cell.raw_gates} of cell {self.cell.name!r} take the "
                    f"input as it is: expected hidden_size = {hidden_size} features, "
                    f"got {features} in layer {layer}"
                )
            for direction in range(directions):
                for name, shape in self._shapes(features).items():
                    parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                    self.register_parameter(name + _suffix(layer, direction), parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def flatten_parameters(self) -> None:
        """Nothing to do: the weights are read where they are."""

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction."""
        return [
            [getattr(self, name + _suffix(layer, direction)) for name in self._shapes(1)]
            for layer in range(self.num_layers)
            for direction in range(2 if self.bidirectional else 1)
        ]

    def forward(
        self, input: Tensor, hx: Tensor | tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, Tensor | tuple[Tensor, ...]]:
        """Run the stack.

        Args:
            input: (T, B, I), (B, T, I) with ``batch_first``, or (T, I) without a batch. T ≥ 1.
            hx: the initial states (L·D, B, H), without a batch (L·D, H); a tuple of one per state
                where the cell has several. Default: zeros.

        Returns:
            output: (T, B, D·H) or its like, the first state of the last layer at every step.
            hn: the states after the last step, shaped as ``hx``.

        Raises:
            ValueError: ``input`` has neither 2 nor 3 dimensions, or another dtype than the weights.
            RuntimeError: wrong sizes or devices, a sequence of no steps, or a backend that cannot
                serve.
        """
        self._check_input(input)
        unbatched = input.dim() == 2
        if unbatched:
            input = input.unsqueeze(1)
        elif self.batch_first:
            input = input.transpose(0, 1)
        dtype = backends.autocast_dtype(input)
        input = input.to(dtype)
        states = self._initial_states(input, hx, unbatched)
        if self._runs_on_aten(input):
            output, states = self._forward_aten(input, states, dtype)
        else:
            output, states = self._forward_layers(input, states, dtype)
        if unbatched:
            output, states = output.squeeze(1), [state.squeeze(1) for state in states]
        elif self.batch_first:
            output = output.transpose(0, 1)
        return output, states[0] if len(states) == 1 else tuple(states)

    def extra_repr(self) -> str:
        parts = [f"{self.input_size}, {self.hidden_size}"]
        if type(self) is Recurrent:
            parts.insert(0, self.cell.name)
        for name, default in (
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0.0),
            ("bidirectional", False),
            ("backend", None),
            ("recompute", False),
        ):
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)}")
        return ", ".join(parts)

    def _shapes(self, features: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of each parameter of a layer in one direction, in torch.nn's order."""
        cell, hidden = self.cell, self.hidden_size
        shapes = {}
        if len(cell.x_gates) > len(cell.raw_gates):
            rows = (len(cell.x_gates) - len(cell.raw_gates)) * hidden
            shapes["weight_ih"] = (rows, features)
        if len(set(cell.source_sizes)) == 1:
            shapes["weight_hh"] = (
                len(cell.recurrent_gates) * hidden,
                cell.source_sizes[0] * hidden,
            )
        else:
            for s, (begin, end) in enumerate(cell.spans):
                shape = ((end - begin) * hidden, cell.source_sizes[s] * hidden)
                shapes[f"weight_hh{s}"] = shape
        if self.bias:
            shapes["bias_ih"] = (len(cell.x_gates) * hidden,)
            shapes["bias_hh"] = (len(cell.recurrent_gates) * hidden,)
        shapes.update((name, (hidden,)) for name in cell.params)
        return shapes

    def _check_input(self, input):
        name = type(self).__name__
        if not isinstance(input, Tensor):
            raise TypeError(f"{name}: input: expected a Tensor, got {type(input).__name__}")
        if input.dim() not in (2, 3):
            raise ValueError(f"{name}: input: expected 2 or 3 dimensions, got {input.dim()}")
        if input.shape[-1] != self.input_size:
            raise RuntimeError(
                f"{name}: input.size(-1): expected input_size {self.input_size}, "
                f"got {input.shape[-1]}"
            )
        weight = next(self.parameters(), None)
        if weight is None:
            weight = self.all_weights[0][0]
        if input.dtype != weight.dtype and not torch.is_autocast_enabled(input.device.type):
            raise ValueError(
                f"{name}: input: expected the dtype of the weights {weight.dtype}, "
                f"got {input.dtype}"
            )
        if input.device != weight.device:
            raise RuntimeError(
                f"{name}: input: expected the device of the weights {weight.device}, "
                f"got {input.device}"
            )
        if input.shape[1 if self.batch_first and input.dim() == 3 else 0] == 0:
            raise RuntimeError(f"{name}: input: expected a sequence length larger than 0, got 0")

    def _initial_states(self, input, hx, unbatched):
        """Per state (L·D, B, H); ``input`` is (T, B, I) here."""
        names = self.cell.states
        rows = self.num_layers * (2 if self.bidirectional else 1)
        shape = (rows, input.shape[1], self.hidden_size)
        if hx is None:
            return [input.new_zeros(shape) for _ in names]
        given = [hx] if isinstance(hx, Tensor) else list(hx)
        if len(given) != len(names):
            raise RuntimeError(f"hx: expected {len(names)} states {names}, got {len(given)}")
        states = []
        for name, state in zip(names, given, strict=True):
            wanted = (rows, self.hidden_size) if unbatched else shape
            if state.dtype != input.dtype and torch.is_autocast_enabled(input.device.type):
                state = state.to(input.dtype)
            if state.dtype != input.dtype:  # torch.nn's type, where scan has a ValueError
                raise RuntimeError(
                    f"hx: state {name}: expected dtype {input.dtype}, got {state.dtype}"
                )
            expect(state, f"hx: state {name}", wanted, input)
            states.append(state.unsqueeze(1) if unbatched else state)
        return states

    def _runs_on_aten(self, input) -> bool:
        backend = backends.requested(self.backend)
        if backend == "aten":
            if self.cell.name not in _ATEN or self.cell is not cells.get(self.cell.name):
                raise RuntimeError(
                    f'backend "aten" cannot run cell {self.cell.name!r}: torch.nn has kernels for '
                    f"{', '.join(_ATEN)} only"
                )
            return True
        if backend != "auto" or self.cell.name not in _ATEN or backends.inside_transform():
            return False
        if self.recompute:
            return False
        if torch.compiler.is_compiling():  # there these become graphs that grow with T
            return False
        builtin = self.cell is cells.get(self.cell.name)
        return builtin and input.device.type == "cpu" and not backends.interpreted()

    def _forward_aten(self, input, states, dtype):
        flat = [weight.to(dtype) for weights in self.all_weights for weight in weights]
        hx = tuple(states) if len(states) > 1 else states[0]
        output, *finals = _ATEN[self.cell.name](
            input,
            hx,
            flat,
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
            False,
        )
        return output, finals

    def _forward_layers(self, input, states, dtype):
        finals = []
        directions = 2 if self.bidirectional else 1
        for layer in range(self.num_layers):
            weights = [
                {
                    name: getattr(self, name + _suffix(layer, d)).to(dtype)
                    for name in self._shapes(1)
                }
                for d in range(directions)
            ]
            rows = slice(layer * directions, (layer + 1) * directions)
            sequences, last = run_layer(
                self.cell,
                input,
                _cat([w["weight_ih"] for w in weights]) if "weight_ih" in weights[0] else None,
                _cat([self._input_bias(w) for w in weights]) if self.bias else None,
                self._recurrent_weights(weights),
                self._recurrent_bias(weights),
                [state[rows] for state in states],
                [_stack([w[name] for w in weights]) for name in self.cell.params],
                [],
                recompute=self.recompute,
                backend=self.backend,
            )
            finals.append(last)
            input = sequences[0].flatten(2)
            if layer + 1 < self.num_layers:
                input = functional.dropout(input, self.dropout, self.training)
        return input, [torch.cat(group) for group in zip(*finals, strict=True)]

    def _input_bias(self, weights):
        """Both biases of each gate with an input part, (X·H,)."""
        cell = self.cell
        if cell.x_gates == cell.recurrent_gates:
            return weights["bias_ih"] + weights["bias_hh"]
        own = weights["bias_ih"].view(-1, self.hidden_size).unbind()
        recurrent = weights["bias_hh"].view(-1, self.hidden_size).unbind()
        both = dict(zip(cell.recurrent_gates, recurrent, strict=True))
        return torch.cat(
            [
                b + both[gate] if gate in both else b
                for gate, b in zip(cell.x_gates, own, strict=True)
            ]
        )

    def _recurrent_bias(self, weights):
        """The bias of each gate without an input part, (D, M, H), or None."""
        cell = self.cell
        if not self.bias or not cell.bias_gates:
            return None
        rows = [cell.recurrent_gates.index(gate) for gate in cell.bias_gates]
        return _stack([w["bias_hh"].view(-1, self.hidden_size)[rows] for w in weights])

    def _recurrent_weights(self, weights):
        """Per stage (D, R_s·H, V_s·H)."""
        spans = [
            (begin * self.hidden_size, end * self.hidden_size) for begin, end in self.cell.spans
        ]
        if "weight_hh" in weights[0]:
            return [_stack([w["weight_hh"][begin:end] for w in weights]) for begin, end in spans]
        return [_stack([w[f"weight_hh{s}"] for w in weights]) for s in range(len(spans))]


class RNN(Recurrent):
    """torch.nn.RNN: h = φ(W x + b_ih + R h_ + b_hh); the other arguments are ``Recurrent``'s.

    Args:
        nonlinearity: φ, "tanh" or "relu".
    """

    def __init__(self, input_size, hidden_size, num_layers=1, nonlinearity="tanh", *args, **kwargs):
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity: expected 'tanh' or 'relu', got {nonlinearity!r}")
        cell = f"rnn_{nonlinearity}"
        super().__init__(cell, input_size, hidden_size, num_layers, *args, **kwargs)
        self.nonlinearity = nonlinearity


class LSTM(Recurrent):
    """torch.nn.LSTM; the arguments are ``Recurrent``'s. ``hx`` is (h0, c0)."""

    def __init__(self, input_size, hidden_size, *args, **kwargs):
        super().__init__(cells.LSTM, input_size, hidden_size, *args, **kwargs)


class PeepholeLSTM(Recurrent):
    """The LSTM whose gates see the cell state, see ``cells.peephole_lstm``. ``hx`` is (h0, c0).

    Args:
        peepholes: which of the gates i, f, o have one: "ifo", "if", "io", "fo", "i", "f" or "o".
    """

    def __init__(self, input_size, hidden_size, *args, peepholes: str = "ifo", **kwargs):
        cell = cells.peephole_lstm(peepholes)
        super().__init__(cell, input_size, hidden_size, *args, **kwargs)


class CIFGLSTM(Recurrent):
    """The LSTM with coupled input and forget gates, i = 1 - f. ``hx`` is (h0, c0)."""

    def __init__(self, input_size, hidden_size, *args, **kwargs):
        super().__init__(cells.CIFG_LSTM, input_size, hidden_size, *args, **kwargs)


class GRU(Recurrent):
    """torch.nn.GRU; the other arguments are ``Recurrent``'s.

    Args:
        reset_after: whether the reset gate acts after the recurrent product, as in torch.nn and
            cuDNN, or before it, as in Cho et al. 2014. Weights have the same shapes either way.
    """

    def __init__(self, input_size, hidden_size, *args, reset_after: bool = True, **kwargs):
        cell = cells.GRU if reset_after else cells.GRU_RESET_BEFORE
        super().__init__(cell, input_size, hidden_size, *args, **kwargs)
        self.reset_after = reset_after


# The cells that torch.nn has kernels for: oneDNN or ATen's own on the CPU, cuDNN on a GPU.
_ATEN = {
    "rnn_tanh": torch._VF.rnn_tanh,
    "rnn_relu": torch._VF.rnn_relu,
    "lstm": torch._VF.lstm,
    "gru": torch._VF.gru,
}


def _suffix(layer: int, direction: int) -> str:
    return f"_l{layer}{'_reverse' if direction else ''}"


def _cat(tensors):
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _stack(tensors):
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)


def _check_arguments(
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size
):
    """The checks of torch.nn's modules, with their exception types."""
    for name, value, kind in (
        ("input_size", input_size, int),
        ("hidden_size", hidden_size, int),
        ("num_layers", num_layers, int),
        ("bias", bias, bool),
        ("batch_first", batch_first, bool),
        ("bidirectional", bidirectional, bool),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{name}: expected {kind.__name__}, got {type(value).__name__}")
        if kind is int and value <= 0:
            raise ValueError(f"{name}: expected a number greater than zero, got {value}")
    is_number = isinstance(dropout, numbers.Number) and not isinstance(dropout, bool)
    if not is_number or not 0 <= dropout <= 1:
        raise ValueError(f"dropout: expected a probability from 0 to 1, got {dropout!r}")
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            f"dropout={dropout} acts between layers, so it does nothing with num_layers=1",
            stacklevel=4,
        )
    if proj_size:
        raise NotImplementedError(f"proj_size: projections are not supported yet, got {proj_size}")
