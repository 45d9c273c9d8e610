"""``scan``: a cell over a sequence, with weights of the caller's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from .. import cells, context
from ..cells import Cell
from ..checks import boundary
from ..checks.arguments import check_heads, check_key, expect
from ..engines import choose
from . import sharded
from .layer import run_layer
from .recurrence import run


@overload
def scan(
    cell: Cell | str,
    x_part: Tensor,
    recurrent_weights: Tensor | Sequence[Tensor],
    states: Tensor | Sequence[Tensor],
    *,
    input_weight: Tensor | None = None,
    input_bias: Tensor | None = None,
    bias: Tensor | None = None,
    params: Sequence[Tensor] = (),
    streams: Sequence[Tensor] = (),
    reverse: bool = False,
    return_states: Literal[False] = False,
    num_heads: int | Sequence[int] = 1,
    backend: str | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]: ...
@overload
def scan(
    cell: Cell | str,
    x_part: Tensor,
    recurrent_weights: Tensor | Sequence[Tensor],
    states: Tensor | Sequence[Tensor],
    *,
    input_weight: Tensor | None = None,
    input_bias: Tensor | None = None,
    bias: Tensor | None = None,
    params: Sequence[Tensor] = (),
    streams: Sequence[Tensor] = (),
    reverse: bool = False,
    return_states: Literal[True],
    num_heads: int | Sequence[int] = 1,
    backend: str | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]: ...
def scan(
    cell: Cell | str,
    x_part: Tensor,
    recurrent_weights: Tensor | Sequence[Tensor],
    states: Tensor | Sequence[Tensor],
    *,
    input_weight: Tensor | None = None,
    input_bias: Tensor | None = None,
    bias: Tensor | None = None,
    params: Sequence[Tensor] = (),
    streams: Sequence[Tensor] = (),
    reverse: bool = False,
    return_states: bool = False,
    num_heads: int | Sequence[int] = 1,
    backend: str | None = None,
) -> tuple[Tensor | tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Run a cell over a sequence with weights of your own; differentiable in every tensor.

    Args:
        cell: a ``Cell`` or the name of a built-in one.
        x_part: (T, B, X·H), the input parts of the gates in the order of ``cell.x_gates``, usually
            ``torch.nn.functional.linear(x, w_ih, b_ih)``; or with ``input_weight`` (T, B, I), what
            they are computed from. T ≥ 1. float32, bfloat16, float16 or float64; every other tensor
            has its dtype and device. Under autocast all are cast.
        recurrent_weights: per stage of the cell (R_s·H, V_s·H), as torch.nn's ``weight_hh``, but
            none of stages with a fixed matrix; the tensor itself where there is one, and () where
            there is none. These are the matrices that are multiplied: ``Stage.weight`` is not
            called. With N heads (R_s·H, V_s·H/N): row r·H + j belongs to unit j of gate r, and
            column v·H/N + k to unit k of its head, in vector v of the source.
        states: per state of the cell (B, H), before the first step; the tensor itself where there
            is one state.
        input_weight: (X·H, I), as torch.nn's ``weight_ih``. Gates that a cell takes raw
            (``cell.raw_gates``) are the input itself, I = H, and have no rows. The C++ loop then
            computes the input parts on its way, which are never in memory as a whole.
        input_bias: (X·H,), added to the input parts of every step; by the C++ loop without a copy
            of ``x_part``.
        bias: (M·H,), of the gates that have no input part (``cell.bias_gates``).
        params: per name in ``cell.params`` (H,).
        streams: per stream of the cell (T, B, H); then, if it draws, a key by ``cells.draw_key``.
        reverse: walk from the last step to the first.
        return_states: return the sequences of all states, not only of the first.
        num_heads: N, parts of the units that do not see each other; or one number per matrix.
        backend: see ``use_backend``; "aten" is not possible here.

    Returns:
        output: (T, B, H), the first state after every step; with ``return_states`` a tuple of
            such, one per state.
        finals: per state (B, H), after the last step.

    Raises:
        RuntimeError: a tensor of the wrong shape or device, or a backend that cannot serve.
        ValueError: a tensor of another dtype, an unknown cell or backend.
        TypeError: an argument of another type.
    """
    cell = cells.as_cell(cell)
    _expect_tensors("x_part", [x_part])
    for name, flag in (("reverse", reverse), ("return_states", return_states)):
        if not isinstance(flag, bool):
            raise TypeError(f"{name}: expected bool, got {type(flag).__name__}")
    if type(x_part) is not Tensor and sharded.is_distributed(x_part):
        tensors = {"x_part": x_part, "recurrent_weights": recurrent_weights, "states": states}
        tensors |= {"input_weight": input_weight, "input_bias": input_bias, "bias": bias}
        tensors |= {"params": params, "streams": streams}
        rest = {"reverse": reverse, "return_states": return_states, "backend": backend}
        rest["num_heads"] = num_heads
        return sharded.run_scan(scan, cell, tensors, rest)
    weights = _listed("recurrent_weights", recurrent_weights)
    states = _listed("states", states)
    params, streams = _given("params", params), _given("streams", streams)
    single = {"input_weight": input_weight, "input_bias": input_bias, "bias": bias}
    for name, tensor in single.items():
        _expect_tensors(name, [] if tensor is None else [tensor])
    if context.autocasts(x_part.device):
        dtype = context.autocast_dtype(x_part)
        x_part = x_part.to(dtype)
        input_weight, input_bias, bias = (
            tensor if tensor is None else tensor.to(dtype) for tensor in single.values()
        )
        weights, states, params, streams = (
            [tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in group]
            for group in (weights, states, params, streams)
        )
    given = (x_part, input_weight, input_bias)
    _check_scan(cell, *given, weights, states, bias, params, streams, num_heads)
    weights, states, params, streams = (
        [weight.unsqueeze(0) for weight in weights],
        [state.unsqueeze(0) for state in states],
        [param.unsqueeze(0) for param in params],
        [stream.unsqueeze(2) if stream.dim() == 3 else stream for stream in streams],
    )
    chosen = choose.layer(backend, cell, x_part.device, x_part.dtype).engine
    rest = {"reverse": reverse, "all_states": return_states, "chosen": chosen}
    if input_weight is not None:
        sequences, finals = run_layer(
            cell,
            x_part,
            [input_weight],
            [] if input_bias is None else [input_bias],
            [_with_zeros(cell, bias, states[0])] if bias is not None and cell.bias_gates else [],
            weights,
            states,
            params,
            streams,
            **rest,
        )
    else:
        x_shape = (1, len(cell.x_gates), states[0].shape[-1])
        sequences, finals = run(
            cell,
            x_part.unflatten(-1, x_shape),
            weights,
            None if bias is None else bias.view(1, -1, x_shape[-1]),
            states,
            params,
            streams,
            x_bias=None if input_bias is None else input_bias.view(x_shape),
            **rest,
        )
    outputs = tuple(s.squeeze(2) for s in sequences)
    finals = tuple(final.squeeze(0) for final in finals)
    return (outputs if return_states else outputs[0]), finals


def _with_zeros(cell, bias, state):
    """The biases of all recurrent gates (R·H,) from those of the gates without an input part."""
    of_gate = dict(zip(cell.bias_gates, bias.split(state.shape[-1]), strict=True))
    zeros = bias.new_zeros(state.shape[-1])
    return torch.cat([of_gate.get(gate, zeros) for gate in cell.recurrent_gates])


def _listed(name, tensors):
    """A list of tensors, of which one may be given by itself."""
    return [tensors] if isinstance(tensors, Tensor) else _given(name, tensors)


def _given(name, tensors):
    if not isinstance(tensors, Sequence) or isinstance(tensors, str):
        got = type(tensors).__name__
        raise TypeError(f"{name}: expected a sequence of tensors, got {got}")
    _expect_tensors(name, tensors)
    return list(tensors)


def _expect_tensors(name, tensors):
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")


def _check_scan(
    cell, x_part, input_weight, input_bias, weights, states, bias, params, streams, num_heads
):
    if x_part.dim() != 3:
        dims = "T, B, X·H" if input_weight is None else "T, B, I"
        raise RuntimeError(f"x_part: expected 3 dimensions ({dims}), got {tuple(x_part.shape)}")
    for name, tensors, wanted in (
        ("recurrent_weights", weights, cell.matrices),
        ("states", states, cell.states),
        ("params", params, cell.params),
        ("streams", streams, [*cell.streams, *["key"] * bool(cell.drawn)]),
    ):
        if len(tensors) != len(wanted):
            raise RuntimeError(
                f"{name}: cell {cell.name!r} expected {len(wanted)} tensors, got {len(tensors)}"
            )
    if x_part.dtype not in boundary.DTYPES:
        wanted = ", ".join(map(str, boundary.DTYPES))
        raise ValueError(f"x_part: expected one of the dtypes {wanted}, got {x_part.dtype}")
    steps, batch, features = x_part.shape
    hidden = states[0].shape[-1] if states[0].dim() else 0
    if steps == 0:
        raise RuntimeError("x_part: expected a sequence length larger than 0, got 0")
    width = len(cell.x_gates) * hidden
    if input_weight is None:
        features = width
    else:
        rows = width - len(cell.raw_gates) * hidden
        expect(input_weight, "input_weight", (rows, features), x_part)
        features = hidden if cell.raw_gates else features
    expect(x_part, "x_part", (steps, batch, features), x_part)
    heads = check_heads(cell, num_heads, hidden)
    for i, (gates, vectors) in enumerate(cell.matrices):
        shape = (gates * hidden, vectors * hidden // heads[i])
        expect(weights[i], f"recurrent_weights[{i}]", shape, x_part)
    for i, state in enumerate(states):
        expect(state, f"states[{i}]", (batch, hidden), x_part)
    for i, param in enumerate(params):
        expect(param, f"params[{i}]", (hidden,), x_part)
    for i in range(len(cell.streams)):
        expect(streams[i], f"streams[{i}]", (steps, batch, hidden), x_part)
    if cell.drawn:
        check_key(streams[-1], f"streams[{len(streams) - 1}]", batch, x_part)
    if input_bias is not None:
        expect(input_bias, "input_bias", (width,), x_part)
    if bias is not None:
        expect(bias, "bias", (len(cell.bias_gates) * hidden,), x_part)
