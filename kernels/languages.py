"""The languages that cells are printed in: their syntax of numbers, casts and choices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch


class Language(NamedTuple):
    """The syntax of a language; values are float32, float64 or bool.

    Args:
        name: for messages; in lower case, the name of its column in the table of operations.
        library: the prefix of functions from the language's library.
        number: writes a number of a dtype.
        argument: writes a number that is the argument of a function, which needs its dtype.
        cast: writes a value in another dtype.
        select: writes a choice by a boolean.
        both, either, differ, invert: patterns of boolean and, or, xor and not.
    """

    name: str
    library: str
    number: Callable[[float | int | bool, torch.dtype], str]
    argument: Callable[[float | int | bool, torch.dtype], str]
    cast: Callable[[str, torch.dtype], str]
    select: str
    both: str
    either: str
    differ: str
    invert: str

    def choose(self, condition: str, value: str, otherwise: str) -> str:
        return self.select.format(condition, value, otherwise)


def _digits(value, dtype):
    """A number rounded to a dtype."""
    return float(value) if dtype == torch.float64 else torch.tensor(value, dtype=dtype).item()


def _triton_number(value, dtype):
    # A bare number is float32 in Triton unless it meets a block of float64 in an operator.
    return _triton_text(value, dtype) if dtype == torch.float32 else _triton_argument(value, dtype)


def _triton_argument(value, dtype):
    text = _triton_text(value, dtype)
    if dtype == torch.float64:  # a cast would go by way of float32
        return f"tl.full((), {text}, tl.float64)"
    return f"tl.cast({text}, {_TRITON[dtype]})"


def _triton_text(value, dtype):
    value = int(value) if dtype == torch.bool else _digits(value, dtype)
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def _triton_cast(text, dtype):
    return f"({text} != 0)" if dtype == torch.bool else f"{text}.to({_TRITON[dtype]})"


_TRITON = {torch.float32: "tl.float32", torch.float64: "tl.float64", torch.bool: "tl.int1"}


def _c_number(value, dtype):
    if dtype == torch.bool:
        return repr(bool(value)).lower()
    value = _digits(value, dtype)
    if math.isfinite(value):
        return f"{_C[dtype]}({value!r})"
    return (
        f"{_C[dtype]}({'NAN' if math.isnan(value) else 'INFINITY' if value > 0 else '-INFINITY'})"
    )


def _c_cast(text, dtype):
    return f"({text} != 0)" if dtype == torch.bool else f"{_C[dtype]}({text})"


_C = {torch.float32: "float", torch.float64: "double", torch.bool: "bool"}

TRITON = Language(
    "Triton",
    "tl.",
    _triton_number,
    _triton_argument,
    _triton_cast,
    "tl.where({}, {}, {})",
    "({} & {})",
    "({} | {})",
    "({} ^ {})",
    "({} == 0)",
)
C = Language(
    "C",
    "std::",
    _c_number,
    _c_number,
    _c_cast,
    "({} ? {} : {})",
    "({} && {})",
    "({} || {})",
    "({} != {})",
    "(!{})",
)
