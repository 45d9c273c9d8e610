"""Finds classes that ask whether a layer which they hold is an instance of torch.nn's."""

from __future__ import annotations

import functools
import inspect
import types


@functools.lru_cache(maxsize=256)
def asks_for(holder: type, kind: type) -> bool:
    """Whether a method of ``holder`` names both ``isinstance`` and ``kind``, such as "LSTM".

    Methods that set up weights (with "init" or "reset_parameters" in their names) do not count,
    since they have run already.

    Args:
        holder: the class of a module. torch's own classes ask nothing.
        kind: a class of torch.nn.
    """
    own = [base for base in holder.__mro__ if base.__module__.split(".")[0] not in _SILENT]
    return any(
        {"isinstance", kind.__name__} <= names
        for base in own
        for name, value in vars(base).items()
        if "init" not in name and name != "reset_parameters"
        for names in _names_of(value)
    )


_SILENT = ("torch", "builtins", "fused_rnn")


def _names_of(value):
    """The global names and attributes used by each function in an attribute of a class."""
    if isinstance(value, property):
        functions = (value.fget, value.fset)
    else:
        functions = (getattr(value, "__func__", value),)
    for function in functions:
        code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
        if isinstance(code, types.CodeType):
            yield _names_in(code)


def _names_in(code):
    """The names that a function uses, with those of its inner functions."""
    names = {*code.co_names, *code.co_freevars}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names
