"""Stacks of layers that pass on more than their output."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from ..checks.arguments import given_states


def reset_parameters(stack: nn.Module, hidden_size: int) -> None:
    """Draw all parameters from U(-1/√H, 1/√H), as torch.nn's recurrent layers do."""
    bound = 1 / math.sqrt(hidden_size)
    for parameter in stack.parameters():
        nn.init.uniform_(parameter, -bound, bound)


def by_layer(hx: Any, names: tuple[str, ...], layers: int) -> list[tuple[Tensor, ...] | None]:
    """Split the states (L, B, H) of a stack; returns those of each layer (1, B, H), or Nones.

    Raises:
        TypeError: not one tensor per state.
        RuntimeError: another number of layers.
    """
    if hx is None:
        return [None] * layers
    states = given_states(hx, names)
    for name, state in zip(names, states, strict=True):
        if not state.dim() or len(state) != layers:
            got = tuple(state.shape)
            raise RuntimeError(f"hx: state {name}: expected size(0) = {layers} layers, got {got}")
    return [tuple(state[k : k + 1] for state in states) for k in range(layers)]
