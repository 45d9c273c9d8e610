"""The inputs, weights and cotangents of one layer, and the two calls that are raced on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import fused_rnn
from fused_rnn import Cell

from .sizes import Size


@dataclass(frozen=True)
class Problem:
    """The same inputs and weights for every provider.

    Attributes:
        weights: the state dict of a one-layer ``fused_rnn.Recurrent``.
        x: (T, B, I).
        states: per state of the cell (D, B, H), before the first step.
        cotangents: the gradients of the output (T, B, D·H) and of the final states.
        directions: D.
    """

    cell: Cell
    size: Size
    weights: dict[str, Tensor]
    x: Tensor
    states: tuple[Tensor, ...]
    cotangents: tuple[Tensor, ...]
    directions: int = 1

    @classmethod
    def make(
        cls,
        cell: Cell,
        size: Size,
        dtype: torch.dtype,
        device: str,
        seed: int = 0,
        directions: int = 1,
    ):
        """Random values, the same ones on every device."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator).to(device, dtype)

        layer = fused_rnn.Recurrent(cell, size.I, size.H, bidirectional=directions == 2)
        bound = size.H**-0.5
        weights = {
            name: (torch.rand(value.shape, generator=generator) * 2 - 1).mul(bound)
            for name, value in layer.state_dict().items()
        }
        state = (directions, size.B, size.H)
        return cls(
            cell,
            size,
            {name: value.to(device, dtype) for name, value in weights.items()},
            normal(size.T, size.B, size.I),
            tuple(normal(*state) for _ in cell.states),
            (normal(size.T, size.B, directions * size.H), *(normal(*state) for _ in cell.states)),
            directions,
        )

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype

    @property
    def device(self) -> torch.device:
        return self.x.device

    def double(self) -> Problem:
        """The same values in float64."""
        return replace(
            self,
            weights={name: value.double() for name, value in self.weights.items()},
            x=self.x.double(),
            states=tuple(state.double() for state in self.states),
            cotangents=tuple(cotangent.double() for cotangent in self.cotangents),
        )

    def layer(self, backend: str | None = None, kind: type = fused_rnn.Recurrent):
        """A layer of this size, without the problem's weights."""
        both = self.directions == 2
        return kind(self.cell, self.size.I, self.size.H, bidirectional=both, backend=backend)

    def load(self, module: nn.Module) -> nn.Module:
        """``module`` on this problem's device, in its dtype, with its weights."""
        module = module.to(self.device, self.dtype)
        module.load_state_dict(self.weights)
        return module

    def result_names(self, mode: str) -> list[str]:
        """Names of the tensors that a call in this mode returns."""
        outputs = ["output", *(f"{name}_n" for name in self.cell.states)]
        inputs = ["x", *(f"{name}0" for name in self.cell.states), *self.weights]
        return outputs + [f"d{name}" for name in inputs if mode == "training"]


def inference(module: nn.Module, problem: Problem) -> Callable[[], list[Tensor]]:
    """A forward pass that keeps nothing for a backward."""
    x, hx, around = problem.x, _hx(problem.states), _around(module)

    def call():
        with around(), torch.no_grad():
            return _outputs(module(x, hx))

    return call


def training(module: nn.Module, problem: Problem) -> Callable[[], list[Tensor]]:
    """A forward and a backward pass, to the input, the initial states and every parameter."""
    x = problem.x.clone().requires_grad_()
    states = tuple(state.clone().requires_grad_() for state in problem.states)
    hx = _hx(states)
    wanted = [x, *states, *(module.get_parameter(name) for name in problem.weights)]

    around = _around(module)

    def call():
        with around():
            outputs = _outputs(module(x, hx))
            # A parameter may have no gradient: the period of a clockwork RNN, for example.
            return [
                *outputs,
                *torch.autograd.grad(outputs, wanted, problem.cotangents, materialize_grads=True),
            ]

    return call


# The same calls are checked and timed.
MODES = {"inference": inference, "training": training}


def _around(module):
    return getattr(module, "around", contextlib.nullcontext)


def _hx(states):
    return states[0] if len(states) == 1 else states


def _outputs(result):
    output, finals = result
    return [output, finals] if isinstance(finals, Tensor) else [output, *finals]
