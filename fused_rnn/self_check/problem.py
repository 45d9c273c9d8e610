"""Random problems for any cell: inputs and cotangents by name, and their results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..cells import Cell, draws


class Arguments(NamedTuple):
    """The tensors of ``reference.forward``, in its order."""

    x: Tensor
    weights: list[Tensor]
    bias: Tensor | None
    states: list[Tensor]
    params: list[Tensor]
    streams: list[Tensor]


@dataclasses.dataclass(frozen=True)
class Problem:
    """The inputs of a recurrence, and the gradients of its results.

    Attributes:
        inputs: named "x", "weights.0", ..., "bias", "states.h", "params.name", "streams.name".
        cotangents: the gradients of the results that the loss uses, named "sequence.h", "final.h"
            and so on.
        without_grad: the fields of ``Arguments`` whose tensors require no gradients.
        reverse: as in ``reference.forward``.
        key: of what the cell draws, or None.
    """

    cell: Cell
    inputs: dict[str, Tensor]
    cotangents: dict[str, Tensor]
    without_grad: tuple[str, ...] = ()
    reverse: bool = False
    key: Tensor | None = None

    @classmethod
    def make(
        cls,
        cell: Cell,
        T: int,
        B: int,
        H: int,
        *,
        D: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        seed: int = 0,
        reverse: bool = False,
        bias: bool = True,
        initial: bool = True,
        magnitude: float = 1.0,
        off_zero: float | None = None,
        cotangents: Sequence[str] | None = None,
        without_grad: Sequence[str] = (),
        heads: Sequence[int] | None = None,
    ) -> Problem:
        """A random problem, the same numbers but for rounding in every dtype and on every device.

        Params with an ``init`` are near what that gives, and those that are not learned are that.

        Args:
            device: "meta" for shapes without numbers.
            bias: whether the gates without an input part have one.
            initial: whether there are initial states. Otherwise they are zeros without gradients.
            magnitude: the size of x, and so roughly of the gates.
            off_zero: keep gates away from zero, where the derivative of relu jumps: |x| is from 1
                to 2, initial states are at most 2, and this is the sum of every row of |R|.
            cotangents: the results that the loss uses; default: all.
            without_grad: see ``Problem``.
            heads: of each matrix; default: one.
        """
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            if device == "meta":
                return torch.empty(shape, dtype=torch.float64, device=device)
            return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

        x = normal(T, B, D, len(cell.x_gates), H)
        if off_zero is not None:
            x = x.sign() * (1 + x.abs() / 4).clamp(max=2)
        inputs = {"x": magnitude * x}
        for i, (gates, size) in enumerate(cell.matrices):
            width = size * H // (heads[i] if heads else 1)
            weight = normal(D, gates * H, width)
            sums = width**0.5 if off_zero is None else weight.abs().sum(-1, True) / off_zero
            inputs[f"weights.{i}"] = weight / sums
        if bias and cell.bias_gates:
            inputs["bias"] = normal(D, len(cell.bias_gates), H)
        for name in cell.states:
            state = normal(D, B, H) if off_zero is None else normal(D, B, H).clamp(-2, 2)
            inputs[f"states.{name}"] = state if initial else torch.zeros_like(state)
        for name, param in cell.given.items():
            value = normal(D, H)
            if param.init is not None and device != "meta":
                value = _first_values(param, H, seed) + (value / 10 if param.learned else 0 * value)
            inputs[f"params.{name}"] = value
        for name in cell.streams:
            inputs[f"streams.{name}"] = normal(T, B, D, H).sigmoid()
        given = {}
        for name in cell.states:
            given[f"sequence.{name}"] = normal(T, B, D, H)
            given[f"final.{name}"] = normal(D, B, H)
        if cotangents is not None:
            given = {name: given[name] for name in cotangents}
        without_grad = (*without_grad, *(() if initial else ("states",)))
        key = None
        if cell.drawn:
            order = torch.randperm(B, generator=generator, device="cpu")
            key = draws.later(draws.draw_key(B, "cpu", generator, order), 1000)
        return cls(cell, inputs, given, without_grad, reverse, key).to(dtype, device)

    def to(self, dtype: torch.dtype | None = None, device: torch.types.Device = None) -> Problem:
        """The same numbers in another dtype or on another device."""

        def move(tensors):
            return {name: tensor.to(device, dtype) for name, tensor in tensors.items()}

        key = None if self.key is None else self.key.to(device)
        moved = {"inputs": move(self.inputs), "cotangents": move(self.cotangents)}
        return dataclasses.replace(self, **moved, key=key)

    def leaves(self) -> dict[str, Tensor]:
        """The inputs as leaves of a new graph, which require gradients unless ``without_grad``."""
        return {
            name: tensor.detach().requires_grad_(_field(name) not in self.without_grad)
            for name, tensor in self.inputs.items()
        }

    def arguments(self, inputs: dict[str, Tensor] | None = None) -> Arguments:
        """The inputs, by default the problem's own, as arguments of ``reference.forward``."""
        fields: dict[str, Any] = {name: [] for name in Arguments._fields}
        for name, tensor in (self.inputs if inputs is None else inputs).items():
            fields[_field(name)].append(tensor)
        if self.key is not None:
            fields["streams"].append(self.key)
        one = {"x": fields["x"][0], "bias": fields["bias"][0] if fields["bias"] else None}
        return Arguments(**(fields | one))

    def results(self, sequences: Sequence[Tensor], finals: Sequence[Tensor]) -> dict[str, Tensor]:
        """The results that have cotangents, by name."""
        states = self.cell.states
        named = {f"sequence.{s}": v for s, v in zip(states, sequences, strict=False)}
        named |= {f"final.{s}": v for s, v in zip(states, finals, strict=True)}
        return {name: named[name] for name in self.cotangents}

    def differentiate(self, forward: Callable, **options: Any) -> dict[str, Tensor]:
        """The results, and the gradient "d" + name of every input that has one, by autograd.

        Args:
            forward: as ``reference.forward``.
            options: of ``torch.autograd.grad``.
        """
        leaves = self.leaves()
        args = (self.cell, *self.arguments(leaves), self.reverse)
        results = self.results(*forward(*args))
        wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        gradients = torch.autograd.grad(
            list(results.values()),
            list(wanted.values()),
            list(self.cotangents.values()),
            materialize_grads=True,
            **options,
        )
        return results | {f"d{name}": g for name, g in zip(wanted, gradients, strict=True)}


def _first_values(param, H, seed) -> Tensor:
    """The values (H,) or () that a module's param begins with, in float64."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        tensor = torch.empty(() if param.scalar else H, dtype=torch.float64, device="cpu")
        return param.fill(tensor)


def _field(name: str) -> str:
    """The field of ``Arguments`` of an input."""
    return name.split(".")[0]
