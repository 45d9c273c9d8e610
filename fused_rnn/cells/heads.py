"""Products by heads: a recurrent matrix of N heads is block-diagonal, and has its blocks only.

The units of head n are n·K to (n+1)·K, with K = H / N. Each sees the sources of its own head alone.
The matrix of a stage is (R·H, V·K): row r·H + j belongs to unit j of gate r, and column v·K + k to
unit k, within the head of j, of the source's vector v. Its shape tells the number of heads; with
one it is the full matrix (R·H, V·H). The numbers of the stages may differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._C._functorch import is_batchedtensor

from .cell import Cell


def count(weight: Tensor, width: int) -> int:
    """The number of heads of a matrix (..., R·H, V·K) whose sources have ``width`` = V·H values."""
    columns = weight.shape[-1]
    return width // columns if columns else 1


def product(source: Tensor, weight: Tensor, vectors: int) -> Tensor:
    """source (B, V·H) · weight (R·H, V·K), (B, R·H)."""
    heads = count(weight, source.shape[-1])
    if heads == 1:
        return torch.nn.functional.linear(source, weight)
    of_heads = torch.bmm(_by_head(source, vectors, heads), blocks(weight, vectors, heads).mT)
    return _joined(of_heads, weight.shape[-1] // vectors)


def pull_back(rows: Tensor, weight: Tensor, vectors: int, hidden: int) -> Tensor:
    """rows (B, R·H) · weight (R·H, V·K), the gradient (B, V·H) of the source of ``product``."""
    heads = count(weight, vectors * hidden)
    if heads == 1:
        return rows @ weight
    gates = rows.shape[-1] // hidden
    of_heads = torch.bmm(_by_head(rows, gates, heads), blocks(weight, vectors, heads))
    return _joined(of_heads, weight.shape[-1] // vectors)


def gradient(pairs: Sequence[tuple[Tensor, Tensor]], vectors: int, heads: int) -> Tensor:
    """Σ of rows (M, R·H) ⊗ source (M, V·H) over pairs: the gradient (R·H, V·K) of the matrix."""
    if heads == 1:
        return _sum_of_products([(rows.t(), source) for rows, source in pairs])
    gates = pairs[0][0].shape[-1] * vectors // pairs[0][1].shape[-1]
    # One gate at a time: its rows are by head as they lie there.
    split = [
        (
            rows.unflatten(-1, (gates, heads, -1)).permute(1, 2, 3, 0),
            _by_head(source, vectors, heads),
        )
        for rows, source in pairs
    ]
    found = [
        _sum_of_products([(rows[gate], source) for rows, source in split]) for gate in range(gates)
    ]
    return torch.cat(found).flatten(0, 1)


def _sum_of_products(pairs):
    """Σ of a @ b over pairs of matrices, or of batches of them."""
    (a, b), *rest = pairs
    found = a @ b
    # In place, without a copy. PyTorch cannot vmap this over cotangents, and under a dispatch mode,
    # such as its counter of FLOPs, has no formula for it.
    plain = not torch.is_grad_enabled() and not torch._C._len_torch_dispatch_stack()
    in_place = plain and not is_batchedtensor(found)
    for a, b in rest:
        if found.dim() == 2:
            found = found.addmm_(a, b) if in_place else found.addmm(a, b)
        else:
            found = found.baddbmm_(a, b) if in_place else found.baddbmm(a, b)
    return found


def blocks(weight: Tensor, vectors: int, heads: int) -> Tensor:
    """The matrix (R·H, V·K) as one (R·K, V·K) per head."""
    size = weight.shape[-1] // vectors
    return weight.view(-1, heads, size, weight.shape[-1]).transpose(0, 1).flatten(1, 2)


def dense(weight: Tensor, vectors: int, hidden: int) -> Tensor:
    """The matrices (..., R·H, V·K) with the zeros between the blocks, (..., R·H, V·H)."""
    heads = count(weight, vectors * hidden)
    if heads == 1:
        return weight
    *more, rows, _ = weight.shape
    split = weight.view(*more, rows // hidden, heads, hidden // heads, vectors, 1, hidden // heads)
    mine = torch.eye(heads, dtype=torch.bool, device=weight.device).view(heads, 1, 1, heads, 1)
    return torch.where(mine, split, 0).reshape(*more, rows, vectors * hidden)


def several(cell: Cell, weights: Sequence[Tensor], hidden: int) -> bool:
    """Whether a matrix has several heads."""
    for weight, (_, vectors) in zip(weights, cell.matrices, strict=True):
        if weight.shape[-1] != vectors * hidden:
            return True
    return False


def forward(
    run: Callable[..., tuple[list[Tensor], Tensor, list[Tensor]]],
    cell: Cell,
    x: Tensor,
    weights: list[Tensor],
    bias: Tensor | None,
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    reverse: bool,
    save: bool,
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Run the kernels' forward with the heads as directions: each is a recurrence of its own.

    Args:
        run: ``contract.Engine.forward`` with a further argument, the number of heads of each
            direction. All tensors but T and B are smaller: (D·N, B, K) instead of (D, B, H).
    """
    hidden = x.shape[-1]
    heads = _common(cell, weights, hidden)
    sequences, pre, finals = run(
        cell,
        _apart(x, heads),
        _matrices(cell, weights, heads, hidden),
        None if bias is None else _rows_apart(bias, heads),
        [_rows_apart(state, heads) for state in states],
        [param.reshape(len(param) * heads, -1) for param in params],
        _streams_apart(cell, streams, heads),
        reverse,
        save,
        heads,
    )
    sequences = [_steps_together(sequence, heads) for sequence in sequences]
    return sequences, _together(pre, heads), [_rows_together(final, heads) for final in finals]


def backward(
    run: Callable[..., tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]],
    cell: Cell,
    weights: list[Tensor],
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    sequences: list[Tensor],
    pre: Tensor,
    dsequences: list[Tensor | None],
    dfinals: list[Tensor | None],
    reverse: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Run the kernels' backward likewise."""
    hidden = pre.shape[-1]
    heads = _common(cell, weights, hidden)
    dpre, dstates, dparams, dstreams = run(
        cell,
        _matrices(cell, weights, heads, hidden),
        [_rows_apart(state, heads) for state in states],
        [param.reshape(len(param) * heads, -1) for param in params],
        _streams_apart(cell, streams, heads),
        [_steps_apart(sequence, heads) for sequence in sequences],
        _apart(pre, heads),
        [None if d is None else _steps_apart(d, heads) for d in dsequences],
        [None if d is None else _rows_apart(d, heads) for d in dfinals],
        reverse,
        heads,
    )
    return (
        _together(dpre, heads),
        [_rows_together(dstate, heads) for dstate in dstates],
        [dparam.reshape(-1, hidden) for dparam in dparams],
        [_steps_together(dstream, heads) for dstream in dstreams],
    )


def _common(cell, weights, hidden) -> int:
    """The number of heads that see each other in no stage."""
    if any(stage.fixed not in (None, "identity") for stage in cell.stages):
        return 1  # this matrix mixes all units
    pairs = zip(weights, cell.matrices, strict=True)
    return math.gcd(*(count(weight, vectors * hidden) for weight, (_, vectors) in pairs))


def _matrices(cell, weights, heads, hidden):
    """Per stage (D·N, R·K, V·K)."""
    found = []
    for weight, (_, vectors) in zip(weights, cell.matrices, strict=True):
        gates = weight.shape[1] // hidden
        apart = weight.unflatten(1, (gates, heads, -1)).transpose(1, 2)
        apart = apart.reshape(len(weight) * heads, -1, weight.shape[-1])
        found.append(dense(apart, vectors, hidden // heads))
    return found


def _apart(gates, heads):
    """Gates (T, B, D, G, H) as (T, B, D·N, G, K)."""
    return gates.unflatten(-1, (heads, -1)).transpose(3, 4).flatten(2, 3)


def _together(gates, heads):
    if gates.dim() < 5:  # nothing was saved
        return gates
    return gates.unflatten(2, (-1, heads)).transpose(3, 4).flatten(4)


def _rows_apart(rows, heads):
    """States (D, B, H), or biases, as (D·N, B, K)."""
    return rows.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)


def _rows_together(rows, heads):
    return rows.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


def _steps_apart(sequence, heads):
    """(T, B, D, H) as (T, B, D·N, K)."""
    return sequence.unflatten(-1, (heads, -1)).flatten(2, 3)


def _streams_apart(cell, streams, heads):
    """The streams so; a key of drawn ones stays, since it is the rows'."""
    count = len(cell.streams)
    return [_steps_apart(stream, heads) for stream in streams[:count]] + streams[count:]


def _steps_together(sequence, heads):
    if sequence.dim() < 4:  # nothing was saved
        return sequence
    return sequence.unflatten(2, (-1, heads)).flatten(3)


def _by_head(values: Tensor, parts: int, heads: int) -> Tensor:
    """values (M, P·H) per head, (N, M, P·K)."""
    split = values.unflatten(-1, (parts, heads, -1))
    return split.permute(2, 0, 1, 3).flatten(2)


def _joined(of_heads: Tensor, size: int) -> Tensor:
    """Values per head (N, M, P·K) as (M, P·H)."""
    heads, count, _ = of_heads.shape
    apart = of_heads.unflatten(-1, (-1, size)).permute(1, 2, 0, 3)
    return apart.reshape(count, heads * of_heads.shape[2])
