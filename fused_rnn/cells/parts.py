"""What a cell is made of besides its functions: products, learned vectors, and drawn streams."""

from __future__ import annotations

import keyword
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The matrices that ``Stage.weight`` may name. They are never read: a stage of one sums.
FIXED = ("mean", "sum", "cumsum", "identity")


@dataclass(frozen=True, init=False)
class Stage:
    """One recurrent product of a step: a matrix times a source vector, added to some gates.

    Args:
        gates: names of the gates that the product is added to; consecutive in ``Cell.gates``.
        source: what the matrix is multiplied with: the name of a state (its value after the step
            before), several names (concatenated), or a function like a cell's ``step`` that
            returns one vector or a tuple of them, from the gates that stand before those of this
            stage (``pre`` has only these) and the states of the step before.
        weight: a function of the module's matrix (R_s·H, V_s·H) that returns the one that is
            multiplied, of the same shape: a mask, or W - Wᵀ. The modules call it once per forward,
            and differentiate it; ``scan`` is given what it returns. None: the matrix itself.
            Or the name of a fixed matrix, which makes gate number g of the stage, at unit j, of
            vector number g of the source: "mean" or "sum", of all H units; "cumsum", its sum over
            the units 0 to j; "identity", its value at j, so that what several later sources and the
            step read is computed once. The stage has as many gates as its source has vectors.
            These have no row in any weight, no bias and no input part.

    Attributes:
        fixed: the name of its fixed matrix, or None where it has a matrix among the weights.
    """

    gates: tuple[str, ...]
    source: tuple[str, ...] | Callable
    weight: Callable[[Tensor], Tensor] | str | None

    def __init__(
        self,
        gates: Sequence[str],
        source: str | Sequence[str] | Callable = "h",
        weight: Callable[[Tensor], Tensor] | str | None = None,
    ):
        object.__setattr__(self, "gates", names_of(gates, "stage, gates"))
        if not callable(source):
            source = names_of((source,) if isinstance(source, str) else source, "stage, source")
        object.__setattr__(self, "source", source)
        if isinstance(weight, str) and weight not in FIXED:
            raise ValueError(f"stage, weight: expected a name of {FIXED}, got {weight!r}")
        if not (weight is None or isinstance(weight, str) or callable(weight)):
            raise TypeError(
                f"stage, weight: expected a function, the name of a fixed matrix or None, "
                f"got {weight!r}"
            )
        object.__setattr__(self, "weight", weight)

    @property
    def fixed(self) -> str | None:
        return self.weight if isinstance(self.weight, str) else None


@dataclass(frozen=True)
class Param:
    """A vector of H values that a cell reads besides its gates, states and streams.

    Args:
        name: as in ``Cell.params``.
        init: its first values in the modules: a number, or a function that fills the tensor that it
            is given, (H,) or (), in place, such as those of ``torch.nn.init``. None: drawn from
            U(-1/√H, 1/√H).
        learned: whether it is a parameter of the modules. Otherwise it is a buffer: a constant,
            which ``state_dict`` has too.
        scalar: whether all units share one number: the tensor of the modules is then (). ``scan``
            takes (H,) in any case.

    Raises:
        TypeError, ValueError: an argument of another type, or a name that is no identifier.
    """

    name: str
    init: float | Callable[[Tensor], object] | None = None
    learned: bool = True
    scalar: bool = False

    def __post_init__(self):
        expect_identifier(self.name, "param, name")
        where, init = f"param {self.name!r}", self.init
        is_number = isinstance(init, numbers.Real) and not isinstance(init, bool)
        if not (init is None or is_number or callable(init)):
            raise TypeError(f"{where}, init: expected a number, a function or None, got {init!r}")
        for name in ("learned", "scalar"):
            flag = getattr(self, name)
            if not isinstance(flag, bool):
                raise TypeError(f"{where}, {name}: expected bool, got {type(flag).__name__}")

    def fill(self, tensor: Tensor) -> Tensor:
        """Set a tensor, in place, to the first values by ``init``, which is not None; returns it.

        Raises:
            TypeError: ``init`` returned something else than the tensor or None.
        """
        init: Any = self.init
        with torch.no_grad():
            made = init(tensor) if callable(init) else tensor.fill_(init)
        if not (made is None or made is tensor):
            where = f"param {self.name!r}, init"
            raise TypeError(f"{where}: expected to fill the tensor in place, got {made!r}")
        return tensor


@dataclass(frozen=True)
class Bernoulli:
    """A stream that is drawn instead of given: for every unit 1 with a probability, otherwise 0.

    Nothing is stored: every engine computes the values of a step in the step, from a seed, see
    ``draws``. They have no gradient.

    Args:
        name: as in ``Cell.streams``.
        p: the probability of 1, from 0 to 1; rounded to a multiple of 2^-24.
        per: "step": every step draws anew; "sequence": all steps of a row see the same values.

    Raises:
        TypeError, ValueError: a name that is no identifier, no probability, or another ``per``.
    """

    name: str
    p: float
    per: str = "step"

    def __post_init__(self):
        expect_identifier(self.name, "stream, name")
        where = f"stream {self.name!r}"
        object.__setattr__(self, "p", as_number(self.p, f"{where}, p"))
        if not 0 <= self.p <= 1:
            raise ValueError(f"{where}, p: expected a probability from 0 to 1, got {self.p}")
        if self.per not in ("step", "sequence"):
            raise ValueError(f'{where}, per: expected "step" or "sequence", got {self.per!r}')

    @property
    def threshold(self) -> int:
        """The values below which the upper 24 bits of a random word make a 1."""
        return round(self.p * 2**24)


def as_number(value: Any, where: str) -> float:
    """Check that ``value`` is a real number; returns it as a float.

    Raises:
        TypeError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{where}: expected a number, got {type(value).__name__}")
    return float(value)


def as_streams(
    streams: Sequence[str | Bernoulli], where: str
) -> tuple[tuple[str, ...], tuple[Bernoulli, ...]]:
    """Check the streams of a cell; returns the names of those that are given, and those drawn.

    Raises:
        TypeError, ValueError: no sequence of names and Bernoullis; or a name after a Bernoulli.
    """
    if isinstance(streams, Bernoulli):
        raise TypeError(f"{where}: expected a sequence, got {streams}; write ({streams.name},)")
    if isinstance(streams, str) or not isinstance(streams, Sequence):
        names_of(streams, where)
    drawn = tuple(stream for stream in streams if isinstance(stream, Bernoulli))
    given: Any = streams[: len(streams) - len(drawn)]
    late = [stream.name for stream in given if isinstance(stream, Bernoulli)]
    if late:
        raise ValueError(f"{where}: expected those that are drawn, {late}, after all others")
    return names_of(tuple(given), where), drawn


def same(tensor: Tensor) -> Tensor:
    """The tensor: what the candidate and the memory of a step go through, see ``regularized``."""
    return tensor


def as_params(params: Sequence[str | Param], where: str) -> tuple[Param, ...]:
    """Check that ``params`` is a sequence of names and Params; returns it as Params."""
    if isinstance(params, Param):
        raise TypeError(f"{where}: expected a sequence, got {params}; write ({params.name},)")
    if isinstance(params, str) or not isinstance(params, Sequence):
        names_of(params, where)
    return tuple(p if isinstance(p, Param) else Param(names_of((p,), where)[0]) for p in params)


def names_of(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Check that ``names`` is a sequence of identifiers; returns it as a tuple."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        hint = f"; write {tuple(names)}" if isinstance(names, str) else ""
        raise TypeError(f"{where}: expected a sequence of names, got {names!r}{hint}")
    for name in names:
        expect_identifier(name, where)
    return tuple(names)


def expect_identifier(name: str, where: str) -> None:
    """Check that ``name`` is a Python identifier.

    Raises:
        TypeError, ValueError: it is no string, or no identifier.
    """
    if not isinstance(name, str):
        raise TypeError(f"{where}: expected a Python identifier, got {name!r}")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{where}: expected a Python identifier, got {name!r}")
