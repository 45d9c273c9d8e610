"""What stacks have in common whose layers pass on more than their output."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..checks.arguments import given_states
from . import given


def reset_parameters(stack: nn.Module, hidden_size: int) -> None:
    """Draw all parameters from U(-1/√H, 1/√H), as torch.nn's recurrent layers do."""
    bound = 1 / math.sqrt(hidden_size)
    for parameter in stack.parameters():
        nn.init.uniform_(parameter, -bound, bound)


def check_input(stack: nn.Module, input: object, size: int) -> None:
    """Check the input of a stack before something else than a ``Recurrent`` takes it.

    Raises:
        TypeError: it is no Tensor.
        RuntimeError: it has neither 2 nor 3 dimensions, or not ``size`` features.
    """
    name = type(stack).__name__
    if not isinstance(input, Tensor):
        raise TypeError(f"{name}: input: expected a Tensor, got {type(input).__name__}")
    if input.dim() not in (2, 3) or input.shape[-1] != size:
        raise RuntimeError(
            f"{name}: input: expected 2 or 3 dimensions, of which the last has input_size = {size} "
            f"features, got {tuple(input.shape)}"
        )


def hide(layer: Any, sequence: Tensor, lengths: Tensor | None) -> Tensor:
    """Set the steps of a sequence beyond the lengths to zero, so that they are in no gradient.

    Args:
        layer: a ``Recurrent``, which says whether the batch is first.
        sequence: in the layout of its input.

    Raises:
        TypeError, RuntimeError: ``lengths`` is not one whole number per row.
    """
    if lengths is None:
        return sequence
    by_step = sequence.transpose(0, 1) if layer.batch_first else sequence
    checked, _ = given.rows(layer, by_step, lengths, None, sequence.dim() == 2)
    assert checked is not None  # since lengths is not
    valid = torch.arange(len(by_step), device=sequence.device).unsqueeze(1) < checked
    valid = valid.t() if layer.batch_first else valid
    return torch.where(valid.unsqueeze(-1), sequence, torch.zeros_like(sequence))


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
