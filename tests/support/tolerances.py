"""The one place where it stands how exact a result must be.

A result is measured against eager PyTorch: the plain loop of the reference, run in the same dtype
on the same inputs, makes some error against the same loop in float64. A result may make FACTOR
times that error and a floor of FLOOR units in the last place, both relative to the largest value
of its tensor.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

# The same sums in another order make about eager's error again: of 75 000 tensors that the sequence
# path computed for every cell in three dtypes, four were beyond 4 times eager's error and 4 units.
# All four had a single value, a sum whose terms cancel, at H = 1: such results are stacked over
# several problems before they are compared (``problems.stacked``). bfloat16 and float16 need no
# more than float32, since gates are kept at least as exactly as eager keeps them.
FACTOR = 4

# In units of eps: the rounding of the result itself and of what went into it, which eager makes
# too, but which may happen to vanish in all its values.
FLOOR = 4

# Two float64 computations of the same thing (oracles against each other), relative to the largest
# value: some thousand units in the last place, for sums in another order whose terms cancel.
FLOAT64 = 1e-12


def assert_as_good_as_eager(
    got: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor], name: str = ""
) -> None:
    """Every tensor of ``got`` is as near to ``exact`` as the tensors of ``eager`` are.

    The error that eager makes on a tensor is its largest, relative to the tensor's largest value,
    and at least the median over the tensors of the case. A tensor of few values may be right by
    accident, and no other order of the sums would then do; half of the outputs and gradients of a
    case, which come from the same gates, are not. The maximum instead of the median would let one
    gradient that underflows (its relative error is 1) excuse all others.

    Args:
        got: what is tested.
        eager: the reference in the tested dtype; ``got`` has its names, shapes and dtypes.
        exact: the reference in float64.
    """
    assert got.keys() == eager.keys() == exact.keys(), name
    relative = {key: _error(eager[key], exact[key]) / _size(exact[key]) for key in exact}
    usual = statistics.median(relative.values())
    assert all(tensor.isfinite().all() for tensor in eager.values()), f"{name}: eager not finite"
    for key, value in got.items():
        what = f"{name} {key}".strip()
        assert value.shape == eager[key].shape, what
        assert value.dtype == eager[key].dtype, what
        assert value.isfinite().all(), f"{what}: not finite"
        limits, size = torch.finfo(value.dtype), _size(exact[key])
        unit = limits.eps * max(
            size, limits.tiny
        )  # below tiny, numbers lie no nearer to each other
        bound = FACTOR * max(relative[key], usual) * size + FLOOR * unit
        error = _error(value, exact[key])
        assert error <= bound, f"{what}: error {error:.3g}, allowed {bound:.3g}"


def assert_equal_in_float64(
    got: dict[str, Tensor], want: dict[str, Tensor], name: str = ""
) -> None:
    """Two float64 computations of the same numbers agree to FLOAT64 of each tensor's size."""
    assert got.keys() == want.keys(), name
    for key, value in got.items():
        what = f"{name} {key}".strip()
        assert value.dtype == want[key].dtype == torch.float64, what
        assert value.shape == want[key].shape, what
        assert value.isfinite().all(), f"{what}: not finite"
        error, bound = _error(value, want[key]), FLOAT64 * _size(want[key])
        assert error <= bound, f"{what}: error {error:.3g}, allowed {bound:.3g}"


def _error(value, exact):
    difference = value.to("cpu", torch.float64) - exact.cpu()
    return difference.abs().max().item() if value.numel() else 0.0


def _size(exact):
    # 1e-300 for a tensor of zeros: any error is then too large, and nothing is divided by zero.
    return max(exact.abs().max().item(), 1e-300) if exact.numel() else 1.0
