"""What the layers disturb at random in training, and the clip of the memory.

The cell that runs draws in each step (``cells.draws``), from a key that PyTorch's generator of the
device draws once per call and layer. So every backend sees the same bits, nothing is stored, and
``torch.manual_seed`` repeats them. Values of the matrices are dropped once per call, before the
recurrence runs, by the same generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..cells import Cell, draws, regularized
from ..cells.parts import as_number


class Regularizers(NamedTuple):
    """What disturbs the steps of a layer; all but the clip are probabilities.

    Attributes:
        zoneout: per state, that a unit keeps its old value.
        state_dropout: that a unit of the first state is hidden from the products, for a whole row.
        weight_drop: that a value of a recurrent matrix is zero, for a whole call.
        recurrent_dropout: that a unit has no candidate at a step.
        cell_clip: the largest size of the memory; 0 for none.
    """

    zoneout: tuple[float, ...] = ()
    state_dropout: float = 0.0
    weight_drop: float = 0.0
    recurrent_dropout: float = 0.0
    cell_clip: float = 0.0

    def asked(self, training: bool) -> dict[str, bool]:
        """Which of ``contract.OPTIONS`` a call needs."""
        return {
            "zoneout": bool(self.zoneout),
            "state_dropout": training and self.state_dropout > 0,
            "recurrent_dropout": training and self.recurrent_dropout > 0,
            "cell_clip": self.cell_clip > 0,
        }


def check(
    cell: Cell,
    *,
    zoneout: float | Sequence[float],
    state_dropout: float,
    recurrent_dropout: float,
    cell_clip: float | None,
    weight_drop: float = 0.0,
    proj_size: int = 0,
) -> Regularizers:
    """Check the arguments of a layer.

    Raises:
        TypeError: no number.
        ValueError: no probability below 1, or no positive clip; another count than states; a
            projection, whose output the cell does not have as a state; or one that the cell has
            nothing for.
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
        _probability("recurrent_dropout", recurrent_dropout),
        0.0 if cell_clip is None else _bound("cell_clip", cell_clip),
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
    for name, mark, none in (("recurrent_dropout", "candidate", 0), ("cell_clip", "memory", None)):
        given = getattr(found, name)
        if given and not regularized.marks(cell, mark):
            raise ValueError(
                f"{name}: the step of cell {cell.name!r} does not say what its {mark} is; expected "
                f"{none}, got {given}. A cell of your own says so by a parameter, {mark}=same"
            )
    return found


def disturbed(given: Regularizers, training: bool, cell: Cell) -> Cell:
    """The cell that runs in place of ``cell``; in evaluation nothing is drawn."""
    if not any(given.asked(training).values()):
        return cell
    zoneout, state_dropout, _, recurrent_dropout, cell_clip = given
    if not training:
        state_dropout = recurrent_dropout = 0.0
    options = (zoneout, state_dropout, recurrent_dropout, cell_clip, training)
    return cell.derived[regularized.key_of(cell.key, *options)]


def drop_matrices(
    p: float, weights: Sequence[dict[str, Tensor]], directions: int, key: Tensor | None
) -> None:
    """Replace values of the recurrent matrices by zero, and scale the others by 1 / (1 - p).

    Args:
        weights: of each layer and direction, by name; they are replaced.
        key: of the call; None to draw one.
    """
    for place, own in enumerate(weights):
        layer, direction = divmod(place, directions)
        names = [name for name in own if name.startswith("weight_hh")]
        for number, name in enumerate(names):
            matrix = own[name]
            if key is None:
                key = draws.draw_key(0, matrix.device)
            seed = draws.of_layer(key, layer)
            kept = draws.of_matrix(seed, number, direction, matrix.shape, 1 - p)
            own[name] = matrix * (kept.to(matrix.dtype) / (1 - p))


def _probability(name: str, value: Any) -> float:
    number = as_number(value, name)
    if not 0 <= number < 1:
        raise ValueError(f"{name}: expected a probability from 0 to below 1, got {value}")
    return number


def _bound(name: str, value: Any) -> float:
    number = as_number(value, name)
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: expected a positive number or None, got {value}")
    return number
