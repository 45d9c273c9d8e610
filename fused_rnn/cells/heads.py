"""Products by heads: a recurrent matrix of N heads is block-diagonal, and has its blocks only.

The units of head n are n·K to (n+1)·K, with K = H / N. Each sees the sources of its own head alone.
The matrix of a stage is (R·H, V·K): row r·H + j belongs to unit j of gate r, and column v·K + k to
unit k, within the head of j, of the source's vector v. Its shape tells the number of heads; with
one it is the full matrix (R·H, V·H).
"""

from __future__ import annotations

import torch
from torch import Tensor


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


def gradient(rows: Tensor, source: Tensor, vectors: int, heads: int) -> Tensor:
    """Σ of rows (M, R·H) ⊗ source (M, V·H): the gradient (R·H, V·K) of the matrix."""
    if heads == 1:
        return rows.t() @ source
    gates = rows.shape[-1] * vectors // source.shape[-1]
    found = torch.bmm(_by_head(rows, gates, heads).mT, _by_head(source, vectors, heads))
    size = found.shape[1] // gates
    return found.view(heads, gates, size, -1).transpose(0, 1).reshape(rows.shape[-1], -1)


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


def _by_head(values: Tensor, parts: int, heads: int) -> Tensor:
    """values (M, P·H) per head, (N, M, P·K)."""
    return values.view(len(values), parts, heads, -1).permute(2, 0, 1, 3).flatten(2)


def _joined(of_heads: Tensor, size: int) -> Tensor:
    """Values per head (N, M, P·K) as (M, P·H)."""
    heads, count, _ = of_heads.shape
    return of_heads.view(heads, count, -1, size).permute(1, 2, 0, 3).reshape(count, -1)
