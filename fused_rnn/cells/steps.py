"""The steps of a sequence in the order in which a direction takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def previous(sequence: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    """The state before every step, (T, B, D, H), from those after it and the initial (D, B, H)."""
    parts = []
    for d in range(sequence.shape[2]):
        first, rest = initial[d].to(sequence.dtype)[None], sequence[:, :, d]
        parts.append(torch.cat([rest[1:], first] if reverse ^ (d == 1) else [first, rest[:-1]]))
    return join_directions(parts)


def steps_taken(steps: int, directions: int, reverse: bool, device: torch.device) -> Tensor:
    """``t`` of every place of the sequence and direction, (T, 1, D, 1)."""
    t = torch.arange(steps, device=device)
    order = [t.flip(0) if reverse ^ (d == 1) else t for d in range(directions)]
    return torch.stack(order, 1)[:, None, :, None]


def join_directions(directions: Sequence[Tensor]) -> Tensor:
    """(T, B, D, ...) from the (T, B, ...) of each direction; of one direction without a copy."""
    return torch.stack(list(directions), 2) if len(directions) > 1 else directions[0].unsqueeze(2)
