"""How exact a result must be, for all tests: see ``fused_rnn.self_check.measure`` for the units."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_rnn.self_check import measure

# The units that an error may have. The same sums in another order have about eager's error again:
# of 75 000 tensors that "sequence" computed for every cell in three dtypes, four had more than 4
# units. All four had a single value, a sum whose terms cancel, at H = 1: such results are stacked
# over several problems before they are compared (``problems.stacked``). bfloat16 and float16 need
# no more than float32, since gates are kept at least as exactly as eager keeps them.
MOST = 4

# The relative error of two float64 computations of the same numbers: some thousand units in the
# last place, for sums in another order whose terms cancel.
FLOAT64 = 1e-12


def assert_as_good_as_eager(
    got: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor], name: str = ""
) -> None:
    """Every tensor of ``got`` is about as near to ``exact`` as the tensors of ``eager`` are.

    Args:
        got: the tested results.
        eager: the reference in the tested dtype; ``got`` has its names, shapes and dtypes.
        exact: the reference in float64.
    """
    assert got.keys() == eager.keys() == exact.keys(), name
    assert all(tensor.isfinite().all() for tensor in eager.values()), f"{name}: eager not finite"
    multiples = measure.multiples(got, eager, exact)
    for key, value in got.items():
        what = f"{name} {key}".strip()
        assert value.shape == eager[key].shape, what
        assert value.dtype == eager[key].dtype, what
        assert value.isfinite().all(), f"{what}: not finite"
        error = f"error {multiples[key]:.3g} times eager's, {MOST} are allowed"
        assert multiples[key] <= MOST or _is_subnormal(value, exact[key]), f"{what}: {error}"


def _is_subnormal(value, exact):
    """Whether all errors are within a few gaps between subnormal numbers, the smallest gaps."""
    limits = torch.finfo(value.dtype)
    errors = (value.to(exact.device, torch.float64) - exact).abs()
    return bool((errors <= MOST * limits.eps * limits.tiny).all())


def assert_equal_in_float64(
    got: dict[str, Tensor], want: dict[str, Tensor], name: str = ""
) -> None:
    """Two float64 computations of the same numbers agree, relative to each tensor's size."""
    assert got.keys() == want.keys(), name
    for key, value in got.items():
        what = f"{name} {key}".strip()
        assert value.dtype == want[key].dtype == torch.float64, what
        assert value.shape == want[key].shape, what
        assert value.isfinite().all(), f"{what}: not finite"
        error = measure.error(value, want[key])
        assert error <= FLOAT64, f"{what}: error {error:.3g}, {FLOAT64:.3g} is allowed"
