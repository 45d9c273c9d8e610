"""Checks of the tensors that reach an op or an engine, before an engine uses an address.

The modules and ``scan`` check the arguments that users pass, by their names. The custom ops can be
called with anything: they are nodes of graphs that are edited, saved and replayed. So each engine
checks the sizes and numbers of all tensors here, once per call, and each op first all the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor

from ..cells import Cell

# The backends that an op takes, see ``engines.choose``.
BACKENDS = ("auto", "triton", "cpp", "sequence")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_KEY = (torch.int64,)  # of ``cells.draws``


def forward(
    cell: Cell,
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    streams: Sequence[Tensor],
    x_bias: Tensor | None = None,
) -> None:
    """Check the arguments of a forward, see ``ops.recurrence``.

    Raises:
        RuntimeError: a shape or a number of tensors that does not fit.
    """
    steps, batch, directions, _, hidden = _sizes(x, "x", "T, B, D, X, H", len(cell.x_gates))
    _recurrent(cell, (steps, batch, directions, hidden), weights, states, params, streams)
    if bias is not None:
        _each("bias", (bias,), [(directions, len(cell.bias_gates), hidden)])
    if x_bias is not None:
        _each("x_bias", (x_bias,), [(directions, len(cell.x_gates), hidden)])


def layer(
    cell: Cell,
    input: Tensor,
    input_weight: Tensor,
    input_biases: Sequence[Tensor],
    recurrent_biases: Sequence[Tensor],
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    streams: Sequence[Tensor],
) -> None:
    """Check the arguments of a layer including its input (T, B, I), see ``ops.cpu_layer``.

    Raises:
        RuntimeError: see ``forward``.
    """
    shape = input.shape
    if len(shape) != 3 or not shape[0]:
        raise RuntimeError(f"input: expected (T, B, I) with at least one step, got {tuple(shape)}")
    if not states or states[0].dim() != 3 or not states[0].shape[0]:
        raise RuntimeError("states: expected one (D, B, H) per state of the cell")
    directions, _, hidden = states[0].shape
    sizes = (shape[0], shape[1], directions, hidden)
    width = len(cell.x_gates) * hidden
    _recurrent(cell, sizes, weights, states, params, streams)
    _each("input_weight", (input_weight,), [(directions * width, shape[2])])
    if input_biases:
        _each("input_biases", input_biases, [(width,)] * directions)
    if recurrent_biases:
        shapes = [(len(cell.recurrent_gates) * hidden,)] * directions
        _each("recurrent_biases", recurrent_biases, shapes)


def input(
    cell: Cell,
    input: Tensor,
    input_weight: Tensor | None,
    input_bias: Tensor | None,
    states: Sequence[Tensor],
) -> None:
    """Check what ``products.input_part`` takes.

    Raises:
        RuntimeError: see ``forward``.
    """
    if len(states) != len(cell.states) or states[0].dim() != 3:
        raise RuntimeError(f"states: expected {len(cell.states)} tensors (D, B, H)")
    directions, _, hidden = states[0].shape
    linear = directions * (len(cell.x_gates) - len(cell.raw_gates)) * hidden
    if (input_weight is None) == (len(cell.x_gates) > len(cell.raw_gates)):
        raise RuntimeError(f"input_weight: cell {cell.name!r} got {type(input_weight).__name__}")
    if cell.raw_gates and input.shape[2] != hidden:
        raise RuntimeError(f"input: expected (T, B, {hidden}), got {tuple(input.shape)}")
    if input_weight is not None:
        _each("input_weight", (input_weight,), [(linear, input.shape[2])])
    if input_bias is not None:
        width = directions * len(cell.x_gates) * hidden
        _each("input_bias", (input_bias,), [(width,)])


def backward(
    cell: Cell,
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    streams: Sequence[Tensor],
    sequences: Sequence[Tensor],
    pre: Tensor,
    dsequences: Sequence[Tensor | None],
    dpre: Tensor | None,
    dfinals: Sequence[Tensor | None],
    takes_dpre: bool = True,
) -> None:
    """Check the arguments of a backward, see ``engines.sequence``.

    Args:
        takes_dpre: whether the engine takes a gradient of the gates.

    Raises:
        RuntimeError: see ``forward``; or a gradient of the gates where none is taken.
    """
    if dpre is not None and not takes_dpre:
        raise RuntimeError('gradient of pre: expected None; engine "sequence" takes one')
    steps, batch, directions, _, hidden = _sizes(pre, "pre", "T, B, D, G, H", len(cell.gates))
    sizes = (steps, batch, directions, hidden)
    _recurrent(cell, sizes, weights, states, params, streams)
    count = len(cell.states)
    _each("sequences", sequences, [sizes] * count)
    for name, gradients, shape, number in (
        ("gradients of the sequences", dsequences, sizes, count),
        ("gradient of pre", (dpre,), pre.shape, 1),
        ("gradients of the finals", dfinals, (directions, batch, hidden), count),
    ):
        if len(gradients) != number:
            raise RuntimeError(f"{name}: expected {number}, got {len(gradients)}")
        given = [gradient for gradient in gradients if gradient is not None]
        if given:
            _each(name, given, [shape] * len(given))


def op(
    backend: str, like: Tensor, dims: int, cell: Cell | None = None, **others: Sequence[Tensor]
) -> None:
    """Check the arguments of an op, except the sizes, which the engines check.

    Args:
        like: the tensor whose shape gives the sizes; its number of dims is checked.
        cell: whose "streams" are among the others; the key of those that it draws is int64.
        others: all other tensors, by name. Gradients and the sequences of states may also have the
            dtype of the accumulator.

    Raises:
        ValueError: a backend that ops do not know, or a dtype that does not fit.
        RuntimeError: a number of dims or a device that does not fit.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if like.dim() != dims:
        raise RuntimeError(f"expected a tensor of {dims} dims, got {tuple(like.shape)}")
    if like.dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(map(str, DTYPES))}, got {like.dtype}")
    key = len(cell.streams) if cell is not None and cell.drawn else -1
    device, wide = like.device, (like.dtype, torch.promote_types(like.dtype, torch.float32))
    for name, tensors in others.items():
        dtypes = wide if name in ("sequences", "cotangents") else wide[:1]
        for i, tensor in enumerate(tensors):
            fit = _KEY if name == "streams" and i == key else dtypes
            if tensor.device == device and tensor.dtype in fit and tensor.layout is torch.strided:
                continue
            which = _which(name, i, tensors)
            if tensor.device != device:
                raise RuntimeError(f"{which}: expected device {device}, got {tensor.device}")
            if tensor.dtype not in fit:
                raise ValueError(f"{which}: expected dtype {fit[0]}, got {tensor.dtype}")
            raise RuntimeError(f"{which}: expected a dense tensor, got {tensor.layout}")


def aten(
    cell: Cell,
    input: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: bool,
    num_layers: int,
    bidirectional: bool,
) -> None:
    """Check the arguments of torch.nn's kernels, see ``engines.aten``.

    With a projection the first state is narrower than the others.

    Raises:
        RuntimeError, ValueError: see ``forward`` and ``op``.
    """
    op("auto", input, 3, states=states, weights=weights)
    if len(states) != len(cell.states) or states[0].dim() != 3 or num_layers < 1:
        count = len(cell.states)
        raise RuntimeError(f"states: expected {count} tensors (L·D, B, H), and at least one layer")
    directions, width, hidden = 1 + bidirectional, states[0].shape[2], states[-1].shape[-1]
    gates, shapes = len(cell.recurrent_gates) * hidden, []
    projection = [(width, hidden)] if width < hidden else []
    for layer in range(num_layers):
        features = directions * width if layer else input.shape[2]
        of_each = [(gates, features), (gates, width), *[(gates,)] * (2 * bias), *projection]
        shapes += of_each * directions
    rows = (num_layers * directions, input.shape[1])
    _each("states", states, [(*rows, width), *[(*rows, hidden)] * (len(states) - 1)])
    _each("weights", weights, shapes)


def cotangents(cell: Cell, cotangents: Sequence[Tensor], given: Sequence[int]) -> None:
    """Check the places of the cotangents among the results of the forward.

    Raises:
        RuntimeError: their number differs, or the places are not increasing or out of range.
    """
    last = 2 * len(cell.states)
    right = all(a < b for a, b in zip((-1, *given), (*given, last + 1), strict=True))
    if len(given) != len(cotangents) or not right:
        raise RuntimeError(
            f"given: expected the places of the {len(cotangents)} cotangents among the results of "
            f"the forward, from 0 to {last} and increasing, got {list(given)}"
        )


def _sizes(tensor, name, dims, gates):
    """The five sizes of x or pre, on which all others depend."""
    shape = tensor.shape
    if len(shape) != 5 or shape[3] != gates or not shape[0] or not shape[2]:
        raise RuntimeError(
            f"{name}: expected ({dims}) with {gates} gates, and at least one step and direction, "
            f"got {tuple(shape)}"
        )
    return shape


def _recurrent(cell, sizes, weights, states, params, streams):
    steps, batch, directions, hidden = sizes
    shapes = [(directions, rows * hidden, width * hidden) for rows, width in cell.matrices]
    if [*map(_shape_of, weights)] != shapes:
        _each("weights", weights, _with_heads(cell, shapes, weights, hidden))
    _each("states", states, [(directions, batch, hidden)] * len(cell.states))
    if cell.params or params:
        _each("params", params, [(directions, hidden)] * len(cell.params))
    if cell.streams or cell.drawn or streams:
        shapes = [(steps, batch, directions, hidden)] * len(cell.streams)
        _each("streams", streams, shapes + [(2 + batch,)] * bool(cell.drawn))


def _with_heads(cell, shapes, weights, hidden):
    """The shapes of the matrices where these are given by heads, see ``cells.heads``."""
    fitting = []
    for shape, weight, (_, vectors) in zip(shapes, weights, cell.matrices, strict=False):
        columns = weight.shape[-1] if weight.dim() else 0
        size = columns // vectors
        by_heads = size and columns == vectors * size and hidden % size == 0
        fitting.append((*shape[:2], columns) if by_heads else shape)
    return fitting + shapes[len(fitting) :]


_shape_of = attrgetter("shape")


def _each(name, tensors, shapes):
    if [*map(_shape_of, tensors)] == shapes:
        return
    if len(tensors) != len(shapes):
        raise RuntimeError(f"{name}: expected {len(shapes)} tensors, got {len(tensors)}")
    for i, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        if tensor.shape != shape:
            which, got = _which(name, i, tensors), tuple(tensor.shape)
            raise RuntimeError(f"{which}: expected shape {tuple(shape)}, got {got}")


def _which(name, i, tensors):
    return name if len(tensors) == 1 else f"{name}[{i}]"
