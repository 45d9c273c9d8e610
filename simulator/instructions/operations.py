"""The operation of a pointwise instruction, and the parsing of its modifiers.

Modifiers are a list; parsing one removes it. Modifiers that remain at the end are an error, so that
none is ignored silently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import Unsupported
from .formats import flushed_bf16, flushed_f16, from_bf16, from_f16, to_bf16, to_f16

SIGNED, UNSIGNED = ("s16", "s32", "s64"), ("u16", "u32", "u64")
INTEGERS = (*SIGNED, *UNSIGNED)
# The type that untyped bits have in registers.
BITS = {"b16": "u16", "b32": "u32", "b64": "u64"}
# Halves are passed as their bits: these to float32 and back, and what .ftz does to the bits.
HALVES = {
    "f16": (from_f16, to_f16, flushed_f16),
    "bf16": (from_bf16, to_bf16, flushed_bf16),
}


@dataclass(frozen=True)
class Operation:
    """The operation of a pointwise instruction.

    Args:
        compute: a function of the sources' values, (warps, 32) or scalars; returns the result's.
        result: register type of the destination: "pred", "u16", "s32", "f32", ...
        sources: register type of each source, in the order of the operands.
        results: the number of destinations; for two, ``compute`` returns a pair.
    """

    compute: Callable
    result: str
    sources: tuple[str, ...]
    results: int = 1


def take(kinds: list[str], *known: str) -> str:
    """Remove and return the first of the known modifiers that is present, or ""."""
    for kind in known:
        if kind in kinds:
            kinds.remove(kind)
            return kind
    return ""


def one_of(kinds: list[str], *known: str) -> str:
    """The same, where one of the modifiers is required."""
    return take(kinds, *known) or refuse(f"none of .{', .'.join(known)}")


def type_of(kinds: list[str], *known: str) -> str:
    """Remove and return the type, which comes last."""
    if not kinds or kinds[-1] not in known:
        refuse(f"type {kinds[-1] if kinds else 'missing'}")
    return kinds.pop()


def refuse(what: str):
    raise Unsupported(what)


def width_of(kind: str) -> int:
    return int(kind[1:])


def dtype_of(kind: str) -> type:
    """The numpy type of an integer type."""
    return np.dtype(f"{'i' if kind[0] == 's' else 'u'}{width_of(kind) // 8}").type


def same(function: Callable, kind: str, sources: int) -> Operation:
    """An operation whose sources have the type of its result."""
    return Operation(function, kind, (kind,) * sources)
