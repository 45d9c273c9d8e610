"""What the oracles of the papers have in common: their weights by name, and the loop over time."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable

import torch
from torch import Tensor

# By the name of the cell.
PAPERS: dict[str, Paper] = {}


@dataclasses.dataclass(frozen=True)
class Paper:
    """A cell by its paper's names, and how these belong to the gates of ours.

    Attributes:
        step: of (weights, x, state, t), with tensors as columns; returns the new states.
        x: the matrices of x, in the order of the cell's ``x_gates`` that are not raw.
        b: the biases of all ``x_gates``, then of ``bias_gates``; "0" where the paper has none.
        r: per stage its recurrent matrices, one per gate; several vectors are joined by "|".
        states, params, streams: in the cell's order.
        raw: whether x enters without a matrix.
        make: by name, functions of a standard normal tensor that give the weight. It is divided by
            the root of its width for matrices and initial states.
    """

    step: Callable
    x: list[str]
    b: list[str]
    r: list[list[list[str]]]
    states: list[str]
    params: list[str]
    streams: list[str]
    raw: bool
    make: dict[str, Callable[[Tensor], Tensor]]

    def values(self, T: int, B: int, I: int, H: int, seed: int = 0) -> dict[str, Tensor]:  # noqa: E741
        """All tensors by name, in torch.nn's layout, as leaves that require gradients."""
        generator = torch.Generator().manual_seed(seed)
        I = H if self.raw else I  # noqa: E741
        shapes = {"x": (T, B, I)}
        shapes |= {f"{name}_0": (B, H) for name in self.states}
        shapes |= dict.fromkeys(self.x, (H, I))
        shapes |= {name: (H, H) for stage in self.r for gate in stage for name in gate}
        shapes |= {name: (H,) for name in self.b + self.params if name != "0"}
        shapes |= dict.fromkeys(self.streams, (T, B, H))
        values = {}
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            value = value / shape[1] ** 0.5 if len(shape) == 2 else value
            values[name] = self.make.get(name, lambda v: v)(value).requires_grad_()
        return values

    def run(self, values: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The sequences (T, B, H) and the last values (B, H) of all states."""
        columns = {}
        for name, value in values.items():
            if name in self.b + self.params:
                columns[name] = value[:, None]
            else:
                columns[name] = value.mT if value.dim() == 3 else value
        weights = types.SimpleNamespace(**columns)
        state, steps = [values[f"{name}_0"].mT for name in self.states], []
        for t, x in enumerate(weights.x):
            state = self.step(weights, x, state, t)
            state = (state,) if isinstance(state, Tensor) else state
            steps.append(state)
        sequences = [torch.stack(of_one).mT for of_one in zip(*steps, strict=True)]
        return sequences, [sequence[-1] for sequence in sequences]


def paper(name: str, *, x, b, r, states="h", params="", streams="", raw=False, **make):
    """Register the decorated step as the cell ``name``; names are separated by blanks.

    Args:
        r: stages are separated by commas.
    """

    def register(step):
        matrices = [[gate.split("|") for gate in stage.split()] for stage in r.split(",")]
        lists = (x.split(), b.split(), matrices, states.split(), params.split(), streams.split())
        PAPERS[name] = Paper(step, *lists, raw, make)
        return step

    return register
