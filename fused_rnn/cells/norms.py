"""Layer norm and RMS norm for the equations of a cell: stages of means, and functions of them.

A norm over the hidden units needs means over all units, which no pointwise function has.
``Stage(.., weight="mean")`` makes them gates; what is left of the norm is pointwise.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence

from torch import Tensor

from .parts import Stage


def layer_norm_stages(names: Sequence[str], values: Callable) -> tuple[Stage, Stage]:
    """The stages of layer norms that are taken at the same time: of the means, of the variances.

    Args:
        names: one for each norm; the gates of the stages are ``{name}_mean`` of each, then
            ``{name}_variance`` of each.
        values: a source, as ``Stage`` takes, of the gates before the first of the two stages. It
            returns for each norm the tuple of the vectors that it spans together.

    Ba et al. 2016 (arXiv 1607.06450). The variances are means of squared deviations: E[x²] - E[x]²
    would lose all digits where the mean is large.
    """
    return (
        Stage([f"{name}_mean" for name in names], _Means(values), "mean"),
        Stage([f"{name}_variance" for name in names], _Variances(values, len(names)), "mean"),
    )


def rms_norm_stage(names: Sequence[str], values: Callable) -> Stage:
    """The stage of RMS norms: per name a gate ``{name}_square``, the mean of the squares.

    Args:
        values: as in ``layer_norm_stages``.

    Zhang & Sennrich 2019 (arXiv 1910.07467).
    """
    return Stage([f"{name}_square" for name in names], _Squares(values), "mean")


def layer_norm(vector: Tensor, mean: Tensor, variance: Tensor, eps: float = 1e-5) -> Tensor:
    """A vector by its norm's mean and variance, without gain and bias."""
    return (vector - mean) * (variance + eps).rsqrt()


def rms_norm(vector: Tensor, square: Tensor, eps: float = 1e-5) -> Tensor:
    """A vector by its norm's mean of squares, without gain."""
    return vector * (square + eps).rsqrt()


# Sources made of another one, whose parameters they have. Classes, since closures have no pickle.


class _OfValues:
    """The signature of a source's ``values``; none of its class, which Python 3.10 asks for it."""

    def __get__(self, source, kind=None):
        if source is None:
            raise AttributeError("__signature__")
        return inspect.signature(source.values)


@dataclasses.dataclass(frozen=True)
class _Means:
    values: Callable
    __signature__ = _OfValues()

    def __call__(self, pre, state, *rest, **hooks):
        return tuple(sum(group) / len(group) for group in self.values(pre, state, *rest, **hooks))


@dataclasses.dataclass(frozen=True)
class _Squares(_Means):
    def __call__(self, pre, state, *rest, **hooks):
        groups = self.values(pre, state, *rest, **hooks)
        return tuple(sum(v * v for v in group) / len(group) for group in groups)


@dataclasses.dataclass(frozen=True)
class _Variances(_Means):
    norms: int

    def __call__(self, pre, state, *rest, **hooks):
        groups = self.values(pre[: -self.norms], state, *rest, **hooks)
        return tuple(
            sum((v - mean) * (v - mean) for v in group) / len(group)
            for group, mean in zip(groups, pre[-self.norms :], strict=True)
        )
