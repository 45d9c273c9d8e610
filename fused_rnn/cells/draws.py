"""The random numbers of cells that draw: a counter-based generator, in PyTorch operations.

A drawn stream is a function of a key and of its place, so it has the same bits on every engine,
forward and backward, however a kernel cuts the batch and the units. This is the oracle of what the
kernels compute, and what the engines made of PyTorch operations run.

The generator is Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
Its key is the 64 bits of a seed. Its counter has the unit in its layer (of all heads), the number
of the row, the step as an index of the sequence (0 for streams that are the same at all steps), and
2 * block + direction. The four words of a block serve up to four neighbours in ``cell.drawn`` of
one kind. A stream is 1 where the upper 24 bits of its word are below its ``threshold``: that is an
exact comparison of integers, which no dtype rounds. Matrices are drawn alike, see ``of_matrix``.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from .. import once
from .cell import Cell, DerivedCell
from .parts import Stage

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORDS = 4
# The block of what is drawn of matrices: beyond all of a cell's own.
_OF_MATRICES = 1 << 30
# Of a matrix on a CPU: as many counters at a time as the caches hold.
_AT_ONCE = 1 << 16


class Block(NamedTuple):
    """Up to four drawn streams that share a block of words, a word each.

    Attributes:
        number: in the counter, without the direction.
        of_sequence: whether the values are those of all steps.
        thresholds: of the streams, see ``Bernoulli``.
    """

    number: int
    of_sequence: bool
    thresholds: tuple[int, ...]


def philox(
    key: tuple[Tensor, Tensor], counter: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four random words of 32 bits per counter, as int64.

    Args:
        key: two words as int64, each (1,).
        counter: four words, as int64 tensors of shapes that broadcast.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    # Both halves of a round at once, which takes half as many operations.
    even, odd = torch.stack([c2, c0]), torch.stack([c1, c3])
    shape = (2, *[1] * c0.dim())
    less = torch.stack([torch.full_like(key[0], m - 2**32) for m in reversed(_MULTIPLIERS)])
    less = less.view(shape)
    rounds = torch.arange(_ROUNDS, device=c0.device)
    keys = torch.stack([k + w * rounds for k, w in zip(key, _WEYL, strict=True)]) & _MASK
    for k in keys.unbind(1):
        product = even * less  # within 63 bits and a sign
        high = ((product >> 32) + even) & _MASK
        even, odd = (high ^ odd ^ k.view(shape)).flip(0), product & _MASK
    return even[1], odd[0], even[0], odd[1]


def draw_key(
    rows: int,
    device: torch.types.Device = None,
    generator: torch.Generator | None = None,
    order: Tensor | None = None,
) -> Tensor:
    """Draw the key of a call, from which its drawn streams follow.

    It has a seed, the number of the first step (0, see ``later``), and the numbers of the rows.

    The seed is drawn by PyTorch's generator on the device, so ``torch.manual_seed`` repeats it, and
    each replay of a captured CUDA graph draws another.

    Args:
        rows: B.
        generator: instead of PyTorch's own.
        order: (B,), int64, the rows' numbers; default: 0 to B - 1.

    Returns:
        (2 + B,), int64.
    """
    kind: dict[str, Any] = {"dtype": torch.int64, "device": device}
    # Exporters know the operator without a generator.
    own = {} if generator is None else {"generator": generator}
    seed = torch.randint(2**63 - 1, (1,), **own, **kind)
    numbers = torch.arange(rows, **kind) if order is None else order
    return torch.cat([seed, torch.zeros(1, **kind), numbers])


def of_layer(key: Tensor, layer: int) -> Tensor:
    """The key of a layer of a stack that is given one key."""
    return torch.cat([key[:1] + layer, key[1:]]) if layer else key


def later(key: Tensor, steps: int | Tensor) -> Tensor:
    """The key of the call that continues a call of ``steps`` steps."""
    return torch.cat([key[:1], key[1:2] + steps, key[2:]])


@once.per_cell
def blocks(cell: Cell) -> tuple[Block, ...]:
    """The blocks of words that a cell draws, in the order of its drawn streams."""
    found: list[Block] = []
    for stream in cell.drawn:
        of_sequence = stream.per == "sequence"
        last = found[-1] if found else None
        if last and last.of_sequence == of_sequence and len(last.thresholds) < _WORDS:
            found[-1] = last._replace(thresholds=(*last.thresholds, stream.threshold))
        else:
            found.append(Block(2 * len(found), of_sequence, (stream.threshold,)))
    return tuple(found)


def values(
    cell: Cell,
    key: Tensor,
    times: Tensor,
    directions: int,
    hidden: int,
    dtype: torch.dtype,
    heads: int = 1,
    read: Sequence[bool] | None = None,
) -> list[Tensor]:
    """Per drawn stream its values, (N, B, D, H); constant in time if they are of a sequence.

    Args:
        key: by ``draw_key``.
        times: (N,), indices of steps.
        directions, hidden: D and H, where heads are directions D·N and units H/N, see ``heads``.
        heads: of each direction of the layer.
        read: which drawn streams are wanted; in place of the others there are zeros.
    """
    found = []
    for block in blocks(cell):
        wanted = [True] * _WORDS if read is None else read[len(found) :]
        count = len(block.thresholds)
        if any(wanted[:count]):
            now = times[:1] if block.of_sequence else times
            find = _by_kernel if _in_one_launch(key) else _by_operations
            made = find(block, key, now, directions, hidden, heads)
        else:
            made = [torch.zeros((), device=key.device)] * count
        found += [value.to(dtype) for value in made]
    shape = (len(times), len(key) - 2, directions, hidden)
    return [value.expand(shape) for value in found]


def _by_operations(block, key, times, directions, hidden, heads) -> list[Tensor]:
    seed, device = key[:1], key.device
    numbers = torch.arange(directions, device=device)
    unit = (numbers % heads)[:, None] * hidden + torch.arange(hidden, device=device)
    step = (times + key[1]).bitwise_and(_MASK) * (not block.of_sequence)
    place = (numbers // heads + block.number)[:, None]
    words = philox(
        (seed & _MASK, (seed >> 32) & _MASK),
        (unit, key[2:, None, None] & _MASK, step[:, None, None, None], place),
    )
    pairs = zip(words, block.thresholds, strict=False)
    return [word >> 8 < threshold for word, threshold in pairs]


def of_matrix(key: Tensor, number: int, direction: int, shape: Sequence[int], p: float) -> Tensor:
    """Draw for each value of a matrix whether it is kept.

    As for a stream, the counter has the column, the row divided by 4, ``number``, and 2^30 +
    ``direction``; the row modulo 4 is the number of the word.

    Args:
        key: by ``draw_key``, of any rows: only its seed counts.
        number: of the matrix in its layer and direction.
        shape: (rows, columns).
        p: the probability of True, rounded as ``Bernoulli``'s.
    """
    rows, columns = shape
    count = -(-rows // _WORDS)
    block = Block(_OF_MATRICES + direction, False, (round(p * 2**24),) * _WORDS)
    find = _by_kernel if _in_one_launch(key) else _by_operations
    at_once = max(1, _AT_ONCE // columns) if _is_plain(key) and not key.is_cuda else count
    found = []
    for first in range(0, count, at_once):
        fours = torch.arange(first, min(first + at_once, count), device=key.device)
        own = torch.cat([key[:1], torch.zeros_like(key[:1]), fours])
        words = find(block, own, torch.full_like(key[:1], number), 1, columns, 1)
        found.append(torch.stack(words, 2).reshape(-1, columns) != 0)
    return torch.cat(found)[:rows]


def _by_kernel(*arguments) -> list[Tensor]:
    from ..kernels.gpu.draws import values_of

    return values_of(*arguments)


def _in_one_launch(key) -> bool:
    """Whether a kernel may take the place of some hundred operations: on a GPU."""
    return key.is_cuda and _is_plain(key) and _has_triton()


def _is_plain(key) -> bool:
    """Whether nothing records operations: ``recorder`` and torch.compile see a subclass or mode."""
    plain = type(key) is Tensor and not torch.compiler.is_compiling()
    plain = plain and not is_batchedtensor(key)
    return plain and not torch._C._len_torch_dispatch_stack()


@once.once
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def with_values(
    cell: Cell,
    streams: Sequence[Tensor],
    steps: int,
    directions: int,
    like: Tensor,
    read: Sequence[bool] | None = None,
) -> list[Tensor]:
    """The streams of a recurrence, (T, B, D, H) each, with the drawn ones in place of the key.

    Args:
        streams: those given, and the key if the cell draws.
        like: of the dtype, with H as its last size.
        read: see ``values``.
    """
    if not cell.drawn:
        return list(streams)
    *given, key = streams
    times = torch.arange(steps, device=key.device)
    return given + values(cell, key, times, directions, like.shape[-1], like.dtype, read=read)


@once.per_cell
def undrawn(cell: Cell) -> Cell:
    """The cell that is given what ``cell`` draws."""
    stages = [
        Stage(
            stage.gates,
            functools.partial(cell.run_source, s) if callable(stage.source) else stage.source,
            stage.fixed,
        )
        for s, stage in enumerate(cell.stages)
    ]
    return DerivedCell(
        f"{cell.name}_undrawn",
        cell.run_step,
        gates=cell.gates,
        states=cell.states,
        params=cell.params,
        streams=(*cell.streams, *(stream.name for stream in cell.drawn)),
        x_gates=cell.x_gates,
        raw_gates=cell.raw_gates,
        stages=stages,
    )
