"""The C++ engine: ``loop.cpp`` with a cell's printed functions, on CPU tensors."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from ...cells import Cell, heads
from ...checks import boundary
from ...numerics import accumulator, state_dtypes
from . import compiler, emit, loop
from .products import gradient as gradient
from .products import product as product

_FIXED: dict[str | None, int] = {
    "mean": -1,
    "sum": -2,
    "cumsum": -3,
    "identity": -4,
}  # as in problem.h


class _Cell(ctypes.Structure):
    """As in problem.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("gates", "states", "params", "streams", "stages")),
        *((name, ctypes.c_int64) for name in ("x_gates", "bias_gates", "matrices")),
        *((name, ctypes.c_void_p) for name in ("x_index", "recurrent_index", "bias_index")),
        *((name, ctypes.c_void_p) for name in ("begins", "ends", "vectors", "matrix")),
        *((name, ctypes.c_void_p) for name in ("source_states", "step", "step_vjp")),
        *((name, ctypes.c_void_p) for name in ("source", "source_vjp")),
    ]


class _Problem(ctypes.Structure):
    """As in problem.h."""

    _fields_ = [
        ("cell", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("steps", "batch", "directions")),
        *((name, ctypes.c_int64) for name in ("hidden", "features", "reverse", "threads")),
        *((name, ctypes.c_void_p) for name in ("parallel_for", "heads")),
        *((name, ctypes.c_void_p) for name in ("weights", "params", "streams")),
        *((name, ctypes.c_void_p) for name in ("states", "sequences", "pre")),
        *((name, ctypes.c_void_p) for name in ("x", "bias", "x_bias", "input", "input_weights")),
        *((name, ctypes.c_void_p) for name in ("input_biases", "recurrent_biases")),
        *((name, ctypes.c_void_p) for name in ("dsequences", "dstates", "dpre", "dparams")),
        *((name, ctypes.c_void_p) for name in ("dstreams", "lengths", "key")),
    ]


def why_not(cell: Cell, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why this engine cannot run a cell, or None; builds what is not built yet."""
    if dtype not in boundary.DTYPES:
        return f"it has no dtype {dtype}"
    if compiler.find() is None:
        return compiler.why_not()
    try:
        loop.library(accumulator(dtype))
        cell.made[_wiring, accumulator(dtype)]
    except compiler.BuildError as error:
        return compiler.Fault(error)
    except (RuntimeError, NotImplementedError, OSError) as error:
        return str(error)
    return None


def forward(
    cell: Cell,
    x: Tensor,
    weights: list[Tensor],
    bias: Tensor | None,
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    reverse: bool,
    save: bool,
    x_bias: Tensor | None = None,
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Compute what ``sequence.forward`` returns. 16-bit tensors are computed in float32.

    Args:
        save: keep the gates and the sequences of all states; otherwise only the first sequence and
            the finals are defined.
        x_bias: (D, X, H), added to x.
    """
    boundary.forward(cell, x, weights, bias, states, params, streams, x_bias)
    dtype = accumulator(x.dtype)
    steps, batch, directions, _, hidden = x.shape
    carry = [state.to(dtype, copy=True, memory_format=torch.contiguous_format) for state in states]
    sequences, pre, carry = _forward(
        cell,
        (steps, batch, directions, hidden, 0, reverse),
        x,
        carry,
        save,
        heads=_heads(cell, weights, hidden),
        weights=_by_direction(weights, directions),
        params=_by_direction(params, directions),
        streams=streams,
        x=x,
        bias=bias,
        x_bias=x_bias,
    )
    pre = x.new_empty(0, dtype=dtype) if pre is None else pre
    if dtype == x.dtype:
        return sequences, pre, carry
    finals = [state.to(x.dtype) for state in carry]
    kinds = state_dtypes(cell, x.dtype)
    sequences = [s.to(kind) for s, kind in zip(sequences, kinds, strict=False)]
    return sequences, pre.to(x.dtype), finals


def layer(
    cell: Cell,
    input: Tensor,
    input_weight: Tensor,
    input_biases: list[Tensor],
    recurrent_biases: list[Tensor],
    weights: list[Tensor],
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    save: bool,
    lengths: Tensor | None = None,
    reverse: bool = False,
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Compute a layer: the input projection and ``forward``; all are float32 or float64.

    Args:
        input: (T, B, I).
        input_weight: (D·X·H, I).
        input_biases, recurrent_biases: per direction (X·H,) and (R·H,), or nothing.
        lengths: (B,), int64, descending from at most T, of rows that end early; None for T. Values
            beyond a length are finite and otherwise unspecified.
    """
    groups = (weights, states, params, streams)
    boundary.layer(cell, input, input_weight, input_biases, recurrent_biases, *groups)
    steps, batch, features = input.shape
    directions, _, hidden = states[0].shape
    cut = [input_weight] if directions == 1 else list(input_weight.chunk(directions))
    return _forward(
        cell,
        (steps, batch, directions, hidden, features, reverse),
        input,
        [state.clone(memory_format=torch.contiguous_format) for state in states],
        save,
        heads=_heads(cell, weights, hidden),
        weights=_by_direction(weights, directions),
        params=_by_direction(params, directions),
        streams=streams,
        input=input,
        input_weights=cut,
        input_biases=input_biases or None,
        recurrent_biases=recurrent_biases or None,
        lengths=lengths,
    )


def _forward(
    cell, sizes, like, carry, save, lengths=None, **given
) -> tuple[list[Tensor], Any, list[Tensor]]:
    """The sequences, pre and finals, all in the dtype of ``carry``, which become the finals."""
    steps, batch, directions, hidden, *_ = sizes
    dtype = carry[0].dtype
    # Steps that no row reaches are multiplied by gradients that are zero: they must be finite.
    made = like.new_empty if lengths is None else like.new_zeros
    kept = range(len(carry) if save else 1)
    sequences = [made((steps, batch, directions, hidden), dtype=dtype) for _ in kept]
    pre = None
    if save:
        pre = made((steps, batch, directions, len(cell.gates), hidden), dtype=dtype)
    given["lengths"] = lengths
    places = [*sequences, *[None] * (len(carry) - len(sequences))]
    _run("forward", cell, sizes, dtype, states=carry, sequences=places, pre=pre, **given)
    return sequences, pre, carry


def backward(
    cell: Cell,
    weights: list[Tensor],
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    sequences: list[Tensor],
    pre: Tensor,
    dsequences: list[Tensor | None],
    dgates: None,
    dfinals: list[Tensor | None],
    reverse: bool,
    lengths: Tensor | None = None,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Compute what ``sequence.backward`` returns.

    Args:
        dgates: None, since this engine takes no gradient of the gates.
        lengths: as in ``layer``.
    """
    groups = (weights, states, params, streams)
    boundary.backward(cell, *groups, sequences, pre, dsequences, dgates, dfinals, takes_dpre=False)
    dtype = accumulator(pre.dtype)
    steps, batch, directions, _, hidden = pre.shape

    def zeros(state):
        return torch.zeros(state.shape, dtype=dtype)

    dstates = [
        zeros(state) if d is None else d.to(dtype, copy=True).contiguous()
        for d, state in zip(dfinals, states, strict=True)
    ]
    dpre = (torch.empty if lengths is None else torch.zeros)(pre.shape, dtype=dtype)
    dparams = [zeros(states[0]) for _ in params]
    given = streams[: len(cell.streams)]  # without the key of those that are drawn
    dstreams = [torch.empty(stream.shape, dtype=dtype) for stream in given]
    _run(
        "backward",
        cell,
        (steps, batch, directions, hidden, 0, reverse),
        dtype,
        heads=_heads(cell, weights, hidden),
        weights=_by_direction(weights, directions),
        params=_by_direction(params, directions),
        streams=streams,
        states=states,
        sequences=sequences,
        pre=pre,
        dsequences=dsequences,
        dstates=dstates,
        dpre=dpre,
        dparams=dparams,
        dstreams=dstreams,
        lengths=lengths,
    )

    def narrow(tensors, likes):
        pairs = zip(tensors, likes, strict=True)
        return [t if t.dtype == like.dtype else t.to(like.dtype) for t, like in pairs]

    sums = [dparam.sum(1) for dparam in dparams]
    (dpre,) = narrow([dpre], [pre])
    dstates, dparams = narrow(dstates, states), narrow(sums, params)
    return dpre, dstates, dparams, narrow(dstreams, given)


def _heads(cell, weights, hidden) -> list[int]:
    """Per matrix its number of heads; empty where each has one."""
    if not heads.several(cell, weights, hidden):
        return []
    pairs = zip(weights, cell.matrices, strict=True)
    return [heads.count(weight, vectors * hidden) for weight, (_, vectors) in pairs]


def _run(kind, cell, sizes, dtype, heads=(), lengths=None, **tensors):
    """Call the loop; tensors, lists of them and None are given by their names in problem.h."""
    key = None
    if cell.drawn:
        *tensors["streams"], key = tensors["streams"]
        key = key.contiguous()
    # All lists share one array, since making an array takes time.
    flat, alive, addresses = [], [], []
    for value in tensors.values():
        flat += value if isinstance(value, list) else (value,)
    for tensor in flat:
        if tensor is None:
            addresses.append(None)
            continue
        # The checks take less time than a ``to`` or ``contiguous`` that does nothing.
        if tensor.dtype != dtype or not tensor.is_contiguous() or tensor.is_neg():
            tensor = tensor.to(dtype).resolve_neg().contiguous()
            alive.append(tensor)
        addresses.append(tensor.data_ptr() or _some_address(tensor, alive))
    array = (ctypes.c_void_p * len(flat))(*addresses)
    start, place = ctypes.addressof(array), 0
    wiring = cell.made[_wiring, dtype]
    threads = (torch.get_num_threads(), loop.parallel_for())
    problem = _Problem(ctypes.addressof(wiring), *sizes, *threads)
    for name, value in tensors.items():
        if isinstance(value, list):
            setattr(problem, name, start + place * _POINTER)
            place += len(value)
        else:
            setattr(problem, name, addresses[place])
            place += 1
    counts = (ctypes.c_int64 * len(heads))(*heads)
    if heads:
        problem.heads = ctypes.addressof(counts)
    if lengths is not None:
        problem.lengths = lengths.data_ptr()
    if key is not None:
        problem.key = key.data_ptr()
    loop.function(kind, dtype)(ctypes.byref(problem))


_POINTER = ctypes.sizeof(ctypes.c_void_p)
# The address used for empty tensors, which may have none: null means that there is no tensor.
_NOTHING = ctypes.create_string_buffer(64)


def _some_address(tensor, alive) -> int:
    """The address for a tensor without one: empty, or zeros that autograd did not materialize."""
    if not tensor.numel():
        return ctypes.addressof(_NOTHING)
    tensor = tensor.clone()
    if not tensor.data_ptr():
        raise RuntimeError(f"expected tensors with memory, got one {tuple(tensor.shape)} without")
    alive.append(tensor)
    return tensor.data_ptr()


def _by_direction(tensors, directions):
    """From tensors (D, ...), per direction a list of the slices of all."""
    return tensors if directions == 1 else [t[d] for d in range(directions) for t in tensors]


def _wiring(cell: Cell, dtype: torch.dtype) -> _Cell:
    """A cell's structure for the loop, with its functions built."""
    name = f"{cell.name}-{loop.REAL[dtype]}"
    library = compiler.library(name, emit.emit(cell, dtype), loop.FOLDER)

    def numbers(values):
        return (ctypes.c_int64 * len(values))(*values)

    def functions(part):
        addresses = [
            loop.address(library, f"{part}_{s}") if callable(stage.source) else None
            for s, stage in enumerate(cell.stages)
        ]
        return (ctypes.c_void_p * len(addresses))(*addresses)

    states = [
        None if callable(stage.source) else numbers([cell.states.index(n) for n in stage.source])
        for stage in cell.stages
    ]
    lists = {
        "x_index": numbers(cell.x_index),
        "recurrent_index": numbers(cell.recurrent_index),
        "bias_index": numbers(cell.bias_index),
        "begins": numbers([begin for begin, _ in cell.spans]),
        "ends": numbers([end for _, end in cell.spans]),
        "vectors": numbers(cell.source_sizes),
        "matrix": numbers(
            [_FIXED.get(stage.fixed, cell.weight_index[s]) for s, stage in enumerate(cell.stages)]
        ),
        "source_states": (ctypes.c_void_p * len(states))(
            *(None if s is None else ctypes.addressof(s) for s in states)
        ),
        "source": functions("source"),
        "source_vjp": functions("source_vjp"),
    }
    counts = (cell.gates, cell.states, cell.params, cell.streams, cell.stages)
    made = _Cell(
        *map(len, (*counts, cell.x_gates, cell.bias_gates, cell.matrices)),
        step=loop.address(library, "step"),
        step_vjp=loop.address(library, "step_vjp"),
        **{name: ctypes.addressof(values) for name, values in lists.items()},
    )
    made.alive = (library, lists, states)  # the structure has their addresses
    return made
