"""Pointwise instructions as pure functions of numpy arrays: find the module for an opcode."""

from __future__ import annotations

import numpy as np

from ..errors import Unsupported
from . import comparisons, conversions, floats, integers
from .operations import INTEGERS, Operation, one_of, same, take, type_of


def find(opcode: str, modifiers: tuple[str, ...]) -> Operation | None:
    """The operation of an instruction; None where the opcode is of another family.

    Halves are passed as their bits in u16, packed pairs in u32, 8-bit values in u16.

    Raises:
        Unsupported: a modifier or a type that is not known for this opcode.
    """
    # Some opcodes exist for integers and for floats; the type decides.
    is_integer = bool(modifiers) and modifiers[-1] in INTEGERS
    first, second = (integers, floats) if is_integer else (floats, integers)
    maker = {**second.MAKERS, **first.MAKERS, **_OTHERS}.get(opcode)
    if maker is None:
        return None
    if not modifiers:
        raise Unsupported(f"{opcode} without a type")
    kinds = list(modifiers)
    operation = maker(kinds)
    if kinds:
        raise Unsupported(f"modifier {'.'.join(kinds)} of {opcode}.{'.'.join(modifiers)}")
    return operation


def _address(kinds):
    """cvta: a no-op, since spaces do not overlap here, so that a global address is generic."""
    take(kinds, "to")  # the other direction; without effect too
    one_of(kinds, "global")
    return same(np.positive, type_of(kinds, "u64"), 1)


_OTHERS = {**comparisons.MAKERS, "cvt": conversions.find, "cvta": _address}
