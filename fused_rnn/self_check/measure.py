"""The measure of "as good as eager": errors in units of those of the eager loop.

The eager loop is the reference, run in the measured dtype. Exact results are those of the same loop
in float64. The error of a tensor is its largest, relative to the tensor's largest exact value.

The callers decide how many units they allow: the self-check, the tests and the benchmark each give
their reasons.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

import torch
from torch import Tensor


def error(got: Tensor, exact: Tensor) -> float:
    """The relative error of a tensor; infinite for another shape, and NaN where a value is."""
    if got.shape != exact.shape:
        return math.inf
    if not got.numel():
        return 0.0
    difference = (got.to(exact.device, torch.float64) - exact).abs().max().item()
    # For a tensor of zeros every error becomes huge, without a division by zero.
    return difference / max(exact.abs().max().item(), 1e-300)


def units(errors: Mapping[str, float], eps: Mapping[str, float]) -> dict[str, float]:
    """The error of each tensor that counts as one unit.

    It is the eager loop's error, at least the median over the tensors, plus ``eps``. A tensor of
    few values may be right by accident, and another order of the sums would then exceed any
    multiple of its error. Half of the outputs and gradients of a problem, which come from the same
    gates, are not right by accident. The maximum instead of the median would let one gradient that
    underflows (its error is 1) excuse all others.

    Args:
        errors: of the eager loop.
        eps: the rounding of a result and of its inputs. The eager loop rounds too, but its error
            may vanish by chance.
    """
    median = statistics.median(errors.values())
    return {name: max(own, median) + eps[name] for name, own in errors.items()}


def multiples(
    got: Mapping[str, Tensor],
    eager: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    eps: float | None = None,
) -> dict[str, float]:
    """The error of each tensor of ``got``, in units.

    Args:
        eps: see ``units``; default: that of each tensor's dtype.
    """
    own = {name: error(eager[name], exact[name]) for name in exact}
    floors = {name: eps or torch.finfo(tensor.dtype).eps for name, tensor in got.items()}
    unit = units(own, floors)
    return {name: error(tensor, exact[name]) / unit[name] for name, tensor in got.items()}


def worst(figures: Mapping[str, float]) -> tuple[str, float]:
    """The name with the largest figure, and the figure; NaN is larger than any."""
    return max(figures.items(), key=lambda item: (math.isnan(item[1]), item[1]))
