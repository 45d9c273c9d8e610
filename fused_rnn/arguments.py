"""The checks of what a module is given when it is made, and of its lengths and resets."""

from __future__ import annotations

import numbers
import warnings

from torch import Tensor

from . import trace
from .cells import Cell
from .function import expect


def check_arguments(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional):
    """The checks of torch.nn's modules, with their exception types."""
    for name, value, kind in (
        ("input_size", input_size, int),
        ("hidden_size", hidden_size, int),
        ("num_layers", num_layers, int),
        ("bias", bias, bool),
        ("batch_first", batch_first, bool),
        ("bidirectional", bidirectional, bool),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{name}: expected {kind.__name__}, got {type(value).__name__}")
        if kind is int and value <= 0:
            raise ValueError(f"{name}: expected a number greater than zero, got {value}")
    is_number = isinstance(dropout, numbers.Number) and not isinstance(dropout, bool)
    if not is_number or not 0 <= dropout <= 1:
        raise ValueError(f"dropout: expected a probability from 0 to 1, got {dropout!r}")
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            f"dropout={dropout} acts between layers, so it does nothing with num_layers=1",
            stacklevel=4,
        )


def check_projection(cell: Cell, size: int, hidden: int) -> None:
    """The checks of torch.nn, and that nothing but the products reads the projected state."""
    if not isinstance(size, int) or isinstance(size, bool):
        raise TypeError(f"proj_size: expected int, got {type(size).__name__}")
    if size < 0 or size >= hidden:
        raise ValueError(
            f"proj_size: expected 0 or a size smaller than hidden_size {hidden}, got {size}"
        )
    output = cell.states[0]
    alone = all(stage.source == (output,) for stage in cell.stages)
    inputs = all(gate in cell.x_gates for gate in cell.recurrent_gates)
    if not alone or not inputs or not trace.zeros(cell, "step_vjp")[len(cell.gates)]:
        raise ValueError(
            f"proj_size: cell {cell.name!r} cannot have a projection, since its gates do not read "
            f"{output} by products with its input's gates only; got {size}"
        )


def expect_rows(tensor, name, fits, kind, shape, input) -> None:
    """Check ``lengths`` or ``reset``: its type, as ``fits`` has it, and its shape."""
    if not fits:
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name}: expected a tensor of {kind}, got {got}")
    expect(tensor, name, shape, input, any_dtype=True)
