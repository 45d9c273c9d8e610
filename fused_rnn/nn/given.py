"""What a call of a module takes besides its input: states, lengths, resets and streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from .. import context
from ..cells import Cell
from ..checks.arguments import check_key, expect, expect_dense, expect_rows, given_states, signed


def check_input(module: Any, input: Tensor, weights: Sequence[dict[str, Tensor]]) -> None:
    """Check the input of a ``Recurrent``, given by its own layout.

    Args:
        weights: the module's, per layer and direction.

    Raises:
        ValueError: neither 2 nor 3 dimensions, or another dtype than the weights.
        RuntimeError: no steps, or a wrong size or device.
    """
    name = type(module).__name__
    if input.layout is not torch.strided:
        expect_dense(input, "input")
    if input.dim() not in (2, 3):
        raise ValueError(f"{name}: input: expected 2 or 3 dimensions, got {input.dim()}")
    check_features(module, input, weights)
    if input.shape[1 if module.batch_first and input.dim() == 3 else 0] == 0:
        raise RuntimeError(f"{name}: input: expected a sequence length larger than 0, got 0")


def check_features(module: Any, input: Tensor, weights: Sequence[dict[str, Tensor]]) -> None:
    """Check the last size, the dtype and the device; see ``check_input``."""
    name = type(module).__name__
    if input.shape[-1] != module.input_size:
        raise RuntimeError(
            f"{name}: input.size(-1): expected input_size {module.input_size}, "
            f"got {input.shape[-1]}"
        )
    weight = next(iter(weights[0].values()), input)  # a cell may have none
    if input.dtype != weight.dtype and not context.autocasts(input.device):
        raise ValueError(
            f"{name}: input: expected the dtype of the weights {weight.dtype}, got {input.dtype}"
        )
    if input.device != weight.device:
        raise RuntimeError(
            f"{name}: input: expected the device of the weights {weight.device}, got {input.device}"
        )


def key_of(module: Any, key: Any, batch: int, like: Tensor, order: Tensor | None = None) -> Tensor:
    """Check the key of a call; returns it for the rows in another order.

    Args:
        order: the rows' numbers, or None.

    Raises:
        TypeError: no Tensor.
        RuntimeError: a wrong shape or device.
        ValueError: a wrong dtype, or a module that never draws in its steps.
    """
    if not module.cell.drawn and not any(module._regularizers):
        raise ValueError(f"key: expected None, since {module.cell.name!r} draws nothing here")
    if not isinstance(key, Tensor):
        raise TypeError(f"key: expected a Tensor, got {type(key).__name__}")
    check_key(key, "key", batch, like)
    return key if order is None else torch.cat([key[:2], key[2:][order]])


def rows(
    module: Any, input: Tensor, lengths: Tensor | None, reset: Tensor | None, unbatched: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Check ``lengths`` and ``reset`` of a ``Recurrent``; ``input`` is (T, B, I).

    Returns:
        ``lengths`` in a dtype that all operations support, and ``reset`` as (T, B).

    Raises:
        RuntimeError: a wrong shape or device, or lengths without a batch.
        TypeError: a wrong dtype.
    """
    steps, batch = input.shape[:2]
    if lengths is not None:
        if unbatched:
            raise RuntimeError("lengths: expected a batch of rows, got an input without one")
        whole = isinstance(lengths, Tensor) and not (
            lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool
        )
        expect_rows(lengths, "lengths", whole, "integers", (batch,), input)
        lengths = signed(lengths, steps)
    if reset is None:
        return lengths, None
    swapped = module.batch_first and not unbatched
    wanted = (steps,) if unbatched else (batch, steps) if swapped else (steps, batch)
    flags = isinstance(reset, Tensor) and reset.dtype == torch.bool
    expect_rows(reset, "reset", flags, "bool", wanted, input)
    reset = reset.unsqueeze(1) if unbatched else reset.t() if swapped else reset
    return lengths, reset


def initial_states(module: Any, input: Tensor, hx: Any, unbatched: bool) -> list[Tensor]:
    """Check ``hx`` of a ``Recurrent``; returns one (L·D, B, H) per state. ``input`` is (T, B, I).

    Raises:
        TypeError: not one tensor per state.
        RuntimeError: a wrong shape, dtype or device.
    """
    names = module.cell.states
    rows = module.num_layers * module._directions
    shapes = [(rows, input.shape[1], module.hidden_size)] * len(names)
    if module.proj_size:
        shapes[0] = (*shapes[0][:2], module.proj_size)
    if hx is None and not module.learn_h0:
        return [input.new_zeros(shape) for shape in shapes]
    if hx is None:
        learned = [[getattr(module, name) for name in names] for names in module._initial_names]
        return [
            torch.stack(first).to(input.dtype).unsqueeze(1).expand(shape)
            for first, shape in zip(learned, shapes, strict=True)
        ]
    states = []
    for name, shape, state in zip(names, shapes, given_states(hx, names), strict=True):
        wanted = (rows, shape[2]) if unbatched else shape
        if state.dtype != input.dtype and context.autocasts(input.device):
            state = state.to(input.dtype)
        if state.dtype != input.dtype:  # torch.nn's type, where scan has a ValueError
            raise RuntimeError(f"hx: state {name}: expected dtype {input.dtype}, got {state.dtype}")
        expect(state, f"hx: state {name}", wanted, input)
        states.append(state.unsqueeze(1) if unbatched else state)
    return states


def streams_of(
    cell: Cell,
    streams: Any,
    shape: tuple[int, ...],
    like: Tensor,
    swapped: bool = False,
    unbatched: bool = False,
) -> list[Tensor]:
    """Check the streams of a call; returns each expanded to ``shape``.

    Args:
        streams: a tensor, or a tuple of one per name in ``cell.streams``, each of ``shape`` or of
            size 1 in some dims. None for a cell without streams.
        shape: (T, B, H), or of one step (B, H).
        like: of the dtype and device.
        swapped: whether the first two dims are given the other way round.
        unbatched: whether the batch of one is not given.

    Raises:
        TypeError: not one tensor per stream of the cell.
        RuntimeError: a wrong shape or device.
        ValueError: a wrong dtype.
    """
    found = []
    for name, stream in zip(cell.streams, _listed(cell, streams), strict=True):
        where = f"streams: {name}"
        if not isinstance(stream, Tensor):
            raise TypeError(f"{where}: expected a Tensor, got {type(stream).__name__}")
        expect_dense(stream, where)
        got = tuple(stream.shape)
        if unbatched:
            stream = stream.unsqueeze(-2)
        if swapped and stream.dim() == len(shape):
            stream = stream.transpose(0, 1)
        if stream.dtype != like.dtype and context.autocasts(like.device):
            stream = stream.to(like.dtype)
        sizes = [1 if own == 1 else size for own, size in zip(stream.shape, shape, strict=False)]
        if stream.dim() != len(shape) or [*stream.shape] != sizes:
            wanted = (shape[1], shape[0], *shape[2:]) if swapped else shape
            wanted = (*shape[:-2], shape[-1]) if unbatched else wanted
            raise RuntimeError(
                f"{where}: expected shape {tuple(wanted)}, or 1 for a size in which it is "
                f"constant, got {got}"
            )
        expect(stream, where, stream.shape, like)
        found.append(stream.expand(shape))
    return found


def unpacked(cell: Cell, streams: Any, sizes: Tensor) -> list[Tensor]:
    """The streams of a call with a PackedSequence, which are packed as the input is, padded.

    Raises:
        TypeError: not one PackedSequence per stream of the cell.
        RuntimeError: one is of other lengths.
    """
    found = []
    for name, stream in zip(cell.streams, _listed(cell, streams), strict=True):
        if not isinstance(stream, PackedSequence):
            raise TypeError(
                f"streams: {name}: expected a PackedSequence, as the input is, got "
                f"{type(stream).__name__}"
            )
        if stream.batch_sizes.tolist() != sizes.tolist():
            raise RuntimeError(f"streams: {name}: expected the lengths of the input")
        found.append(pad_packed_sequence(PackedSequence(stream.data, stream.batch_sizes))[0])
    return found


def states_at_resets(
    module: Any,
    input: Tensor,
    reset_hx: Any,
    reset: Tensor | None,
    states: Sequence[Tensor],
    unbatched: bool,
) -> list[Tensor]:
    """Check ``reset_hx`` of a ``Recurrent``; returns per state (T, L·D, B, H).

    Args:
        input: (T, B, I).
        states: the initial ones, (L·D, B, H) each.

    Raises:
        TypeError: not one tensor per state.
        RuntimeError: no resets, a projection, or a wrong shape or device.
        ValueError: a wrong dtype.
    """
    if reset is None:
        raise RuntimeError("reset_hx: expected reset too, which says where")
    if module.proj_size:
        raise RuntimeError(f"reset_hx: expected none with proj_size={module.proj_size}; use hx")
    names, found = module.cell.states, []
    given = [reset_hx] if isinstance(reset_hx, Tensor) else reset_hx
    if not isinstance(given, tuple | list) or len(given) != len(names):
        got = len(given) if isinstance(given, tuple | list) else type(reset_hx).__name__
        raise TypeError(f"reset_hx: expected {_count(names)}, got {got}")
    for name, state, like in zip(names, given, states, strict=True):
        where = f"reset_hx: state {name}"
        if not isinstance(state, Tensor):
            raise TypeError(f"{where}: expected a Tensor, got {type(state).__name__}")
        expect_dense(state, where)
        if context.autocasts(input.device):
            state = state.to(input.dtype)
        wanted = (len(input), *like.shape)
        expect(state, where, (*wanted[:2], *wanted[3:]) if unbatched else wanted, input)
        found.append(state.unsqueeze(2) if unbatched else state)
    return found


def _listed(cell, streams):
    names = cell.streams
    given = [streams] if isinstance(streams, Tensor | PackedSequence) else streams
    if given is None and not names:
        return []
    # A PackedSequence is a tuple, too.
    if not isinstance(given, tuple | list) or len(given) != len(names):
        got = len(given) if isinstance(given, tuple | list) else type(given).__name__
        raise TypeError(
            f"streams: cell {cell.name!r} takes {_count(names)}, got {got}"
            if names
            else f"streams: cell {cell.name!r} takes none, got {got}"
        )
    return given


def _count(names):
    return f"a tuple of {len(names)} tensors {names}" if len(names) > 1 else f"a Tensor {names[0]}"
