"""Whether a class that holds a layer asks for torch.nn's class of it."""

from __future__ import annotations

import functools
import inspect
import types


@functools.lru_cache(maxsize=256)
def asks_for(holder: type, kind: type) -> bool:
    """Whether methods of ``holder`` ask ``isinstance(..., kind)``.

    That is: one that names both ``isinstance`` and the class, such as "LSTM". Methods that set up
    weights (with "init" or "reset_parameters" in their names) do not count, since they have run.

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
    """Per function in an attribute of a class, the global names and attributes that it uses."""
    if isinstance(value, property):
        functions = (value.fget, value.fset)
    else:
        functions = (getattr(value, "__func__", value),)
    for function in functions:
        code = getattr(inspect.unwrap(function), "__code__", None) if callable(function) else None
        if isinstance(code, types.CodeType):
            yield _names_in(code)


def _names_in(code):
    """Those of inner functions belong to it."""
    names = {*code.co_names, *code.co_freevars}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names_in(constant)
    return names
