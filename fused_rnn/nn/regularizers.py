"""What the layers draw at random in training: zoneout, dropout of the old output, of the matrices.

The numbers are drawn once per call and layer, by PyTorch's generator of the device, before the
recurrence runs. So every backend sees the same ones, and ``torch.manual_seed`` repeats them.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..cells import Cell, regularized


class Regularizers(NamedTuple):
    """The probabilities of a layer.

    Attributes:
        zoneout: per state, that a unit keeps its old value.
        state_dropout: that a unit of the first state is hidden from the products, for a whole row.
        weight_drop: that a value of a recurrent matrix is zero, for a whole call.
    """

    zoneout: tuple[float, ...] = ()
    state_dropout: float = 0.0
    weight_drop: float = 0.0


def check(
    cell: Cell,
    zoneout: float | Sequence[float],
    state_dropout: float,
    weight_drop: float,
    proj_size: int,
) -> Regularizers:
    """Check the arguments of a layer.

    Raises:
        TypeError: no number.
        ValueError: no probability below 1; another count than states; a projection, whose output
            the cell does not have as a state; or one that the cell has nothing for.
    """
    if isinstance(zoneout, Sequence) and not isinstance(zoneout, str):
        each = tuple(zoneout)
        if len(each) != len(cell.states):
            raise ValueError(
                f"zoneout: expected one number or one for each of the states {cell.states}, "
                f"got {zoneout}"
            )
    else:
        each = (zoneout,) * len(cell.states)
    each = tuple(_probability("zoneout", p) for p in each)
    found = Regularizers(
        each if any(each) else (),
        _probability("state_dropout", state_dropout),
        _probability("weight_drop", weight_drop),
    )
    of_states = {"zoneout": bool(found.zoneout), "state_dropout": found.state_dropout > 0}
    for name, given in of_states.items():
        if given and proj_size:
            raise ValueError(f"{name}: expected 0 with proj_size={proj_size}")
    products = {"state_dropout": found.state_dropout, "weight_drop": found.weight_drop}
    for name, given in products.items():
        if given and not cell.matrices:
            raise ValueError(
                f"{name}: cell {cell.name!r} has no recurrent product; expected 0, got {given}"
            )
    return found


def disturb(
    given: Regularizers, training: bool, cell: Cell, like: Tensor, shape: tuple[int, ...]
) -> tuple[Cell, list[Tensor]]:
    """The cell that runs in place of ``cell``, and its further streams.

    In evaluation zoneout takes the expectation, and nothing is dropped.

    Args:
        like: of the dtype and device.
        shape: (T, B, D, H).
    """
    zoned_out = tuple(i for i, p in enumerate(given.zoneout) if p)
    dropped = training and given.state_dropout > 0
    if not zoned_out and not dropped:
        return cell, []
    streams = []
    for i in zoned_out:
        p = given.zoneout[i]
        mask = like.new_full((1,) * len(shape), p)
        streams.append(torch.bernoulli(mask.expand(shape)) if training else mask.expand(shape))
    if dropped:
        ones = like.new_ones((1, *shape[1:]))
        streams.append(functional.dropout(ones, given.state_dropout).expand(shape))
    return cell.derived[regularized.key_of(cell.key, zoned_out, dropped)], streams


def _probability(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    number = float(value)
    if not 0 <= number < 1:
        raise ValueError(f"{name}: expected a probability from 0 to below 1, got {value}")
    return number
