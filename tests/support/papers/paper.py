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
        x: per gate of the cell's ``x_gates`` that is not raw, its matrices by the input that each
            multiplies: "x", "before" (x of the step before, zero at first) or one of ``inputs``.
        b: the biases of all ``x_gates``, then of ``bias_gates``; "0" where the paper has none.
        r: per stage with a learned matrix its parts, one per gate; several vectors are joined by
            "|".
        states, params, streams: in the cell's order.
        inputs: further inputs with as many features as x.
        fixed: names in which the cell jumps, and has no derivative.
        raw: whether x enters without a matrix.
        make: by name, functions of a standard normal tensor that give the value. It is divided by
            the root of its width for matrices and initial states.
    """

    step: Callable
    x: list[dict[str, str]]
    b: list[str]
    r: list[list[list[str]]]
    states: list[str]
    params: list[str]
    streams: list[str]
    inputs: list[str]
    fixed: list[str]
    raw: bool
    make: dict[str, Callable[[Tensor], Tensor]]

    def values(self, T: int, B: int, I: int, H: int, seed: int = 0) -> dict[str, Tensor]:  # noqa: E741
        """All tensors by name, in torch.nn's layout, as leaves that require gradients."""
        generator = torch.Generator().manual_seed(seed)
        I = H if self.raw else I  # noqa: E741
        shapes = dict.fromkeys(["x", *self.inputs], (T, B, I))
        shapes |= {f"{name}_0": (B, H) for name in self.states}
        shapes |= {name: (H, I) for gate in self.x for name in gate.values()}
        shapes |= {name: (H, H) for stage in self.r for gate in stage for name in gate}
        shapes |= {name: (H,) for name in self.b + self.params if name != "0"}
        shapes |= dict.fromkeys(self.streams, (T, B, H))
        values = {}
        for name, shape in shapes.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            value = value / shape[1] ** 0.5 if len(shape) == 2 else value
            values[name] = self.make.get(name, lambda v: v)(value).requires_grad_()
        return values

    def input(self, values: dict[str, Tensor], name: str) -> Tensor:
        """An input (T, B, I), by its name in ``x``."""
        if name != "before":
            return values[name]
        return torch.cat([torch.zeros_like(values["x"][:1]), values["x"][:-1]])

    def run(self, values: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The sequences (T, B, H) and the last values (B, H) of all states."""
        columns = {}
        for name, value in values.items():
            if name in self.b + self.params:
                columns[name] = value[:, None]
            else:
                columns[name] = value.mT if value.dim() == 3 else value
        weights = types.SimpleNamespace(**columns, before=self.input(values, "before").mT)
        state, steps = [values[f"{name}_0"].mT for name in self.states], []
        for t, x in enumerate(weights.x):
            state = self.step(weights, x, state, t)
            state = (state,) if isinstance(state, Tensor) else state
            steps.append(state)
        sequences = [torch.stack(of_one).mT for of_one in zip(*steps, strict=True)]
        return sequences, [sequence[-1] for sequence in sequences]


def paper(
    name: str,
    *,
    x: str,
    b: str,
    r: str = "",
    states: str = "h",
    params: str = "",
    streams: str = "",
    inputs: str = "",
    fixed: str = "",
    raw: bool = False,
    **make: Callable[[Tensor], Tensor],
):
    """Register the decorated step as the cell ``name``: see ``Paper``.

    Names are separated by blanks, the stages of ``r`` by commas. In ``x``, "W" is short for "W@x",
    and the products of a gate are joined by "+".
    """

    def register(step):
        products = []
        for gate in x.split():
            pairs = [product.partition("@") for product in gate.split("+")]
            products.append({of or "x": matrix for matrix, _, of in pairs})
        matrices = [[gate.split("|") for gate in stage.split()] for stage in r.split(",") if stage]
        lists = (names.split() for names in (states, params, streams, inputs, fixed))
        PAPERS[name] = Paper(step, products, b.split(), matrices, *lists, raw, make)
        return step

    return register
