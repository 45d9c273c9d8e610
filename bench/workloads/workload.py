"""What a workload is: cases, each with a model, its inputs and the ways to run it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import NamedTuple

import torch
from torch import Tensor, nn

Sizes = Mapping[str, int]

# In the order of the table.
NAMES = (
    "basecaller",
    "ppo",
    "forecaster",
    "dreamer",
    "streaming",
    "separation",
    "tagger",
    "language_model",
    "hydrology",
    "gated_taggers",
)
FUSED = "fused_rnn"
TRAINED = ("inference", "training")


class Layer(NamedTuple):
    """A recurrent layer of a model: what ``fused_rnn.plan`` and its costs are asked about."""

    cell: str
    T: int
    B: int
    I: int  # noqa: E741 - the name of this dim in the whole project
    H: int
    directions: int = 1
    heads: int = 1


@dataclass(frozen=True)
class Provider:
    """A way to run a model.

    Attributes:
        make: from the model and the sizes, a module that takes the same inputs and returns the
            same outputs. Its parameters have the model's names, unless it runs forward only.
        needs: packages that it imports; where one is absent, it is left out.
        only_on: the kind of device that it runs on, if there is one only.
    """

    make: Callable[[nn.Module, Sizes], nn.Module]
    needs: tuple[str, ...] = ()
    only_on: str | None = None

    def why_absent(self, device: str) -> str:
        """Why it is left out on a kind of device; "" if it takes part."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            return f"{', '.join(missing)} not installed"
        return f"on {self.only_on} only" if self.only_on not in (None, device) else ""


def as_built(model: nn.Module, _sizes: Sizes) -> nn.Module:
    """The model itself, as its project runs it."""
    return model


def rebuilt(kind: Callable[[Sizes], nn.Module]) -> Callable[[nn.Module, Sizes], nn.Module]:
    """What makes a module of another kind, with the model's state dict, dtype and device."""

    def make(model, sizes):
        other = kind(sizes).to(next(model.parameters()))
        other.load_state_dict(model.state_dict())
        return other

    return make


@dataclass(frozen=True)
class Case:
    """One size of a workload.

    Attributes:
        real: the sizes that the project runs, which a GPU gets.
        model: makes it, with its first weights.
        inputs: its positional arguments. Those of floats get gradients in training.
        providers: by name. The first is the side that users have today, and the exact results are
            its own in float64; ``FUSED`` is this package.
        layers: the recurrent layers in it.
        cpu: what differs from ``real`` on a CPU, where the real batch would take minutes.
        tiny: what differs for ``--quick``.
        in_torch: whether torch.nn has a fused layer for it.
        modes: "inference" and "training", or "latency".
        autocast: the dtype of autocast on a GPU, as the project trains.
        steps: the name of the size that counts the steps.
    """

    name: str
    real: Sizes
    model: Callable[[Sizes], nn.Module]
    inputs: Callable[[Sizes, torch.Generator], tuple[Tensor, ...]]
    providers: Mapping[str, Provider]
    layers: Callable[[Sizes], list[Layer]]
    cpu: Sizes = field(default_factory=dict)
    tiny: Sizes = field(default_factory=dict)
    in_torch: bool = True
    modes: tuple[str, ...] = TRAINED
    autocast: torch.dtype | None = None
    steps: str = "T"

    def sizes(self, device: str, tiny: bool = False) -> dict[str, int]:
        """The sizes on a device, "cpu" or "cuda"."""
        own = {**self.real, **(self.cpu if device == "cpu" else {})}
        return {**own, **self.tiny} if tiny else own

    @property
    def baseline(self) -> str:
        return next(iter(self.providers))


@dataclass(frozen=True)
class Workload:
    """Cases of one use.

    Attributes:
        title: for the table.
        source: the projects and papers that the model and its sizes are from.
    """

    title: str
    source: str
    cases: tuple[Case, ...]

    @property
    def providers(self) -> list[str]:
        return list(dict.fromkeys(name for case in self.cases for name in case.providers))

    def peers(self) -> dict[str, str]:
        """The versions of the packages that its providers need, where they are installed."""
        needs = {name for c in self.cases for p in c.providers.values() for name in p.needs}
        found = {}
        for name in sorted(needs):
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[name] = metadata.version(name)
        return found

    def case(self, name: str) -> Case:
        return next(case for case in self.cases if case.name == name)


def load(name: str) -> Workload:
    """The workload of a file of this folder."""
    return importlib.import_module(f"{__package__}.{name}").WORKLOAD


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)
