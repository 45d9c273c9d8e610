"""Making things once: the lock discipline of the package.

A value that depends on the cell, the dtype or the machine is made at its first use and remembered.
``functools.cache`` does not suffice where a value must not be made twice: it lets threads make the
same value at the same time, and keeps one of the two. So there is one rule, and it is here:

- Everything that traces a cell, prints it, builds it, wires it, imports a module at its first use,
  or compiles a kernel runs under ``making()``, one lock for the whole process. ``once`` and
  ``Made`` take it; a value that was made is found without it, and without a function of Python.
- Traces have a thread of their own, ``in_fresh_thread``. It works for the thread that waits for it,
  so it passes the lock that this one holds.
- A thread that holds the lock waits for no other lock but those named here, of which it takes
  PyTorch's lock of ``torch.compile`` first: the compiler may call what takes ours, never the other
  way round, and its tracer and ours change the same state of ``torch.fx``. The lock of
  ``self_check`` is taken before ours as well, and that of ``registry`` after it.
- What belongs to a cell is kept in ``Cell.made``, a ``Made``, and dies with it. An address of a
  Python object is never kept without the object.
- ``fork`` waits until nothing is being made, so that the child finds the lock free.

Pure functions of few arguments may still have ``functools.cache``: to compute them twice is
harmless.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_lock = threading.RLock()
_thread = threading.local()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


@contextlib.contextmanager
def making() -> Iterator[None]:
    """Hold the lock of what is made once; in a thread of ``in_fresh_thread`` it is held already."""
    if getattr(_thread, "works_for_holder", False):
        yield
        return
    compiler = sys.modules.get("torch._dynamo.convert_frame")
    with getattr(compiler, "compile_lock", contextlib.nullcontext()), _lock:
        yield


def in_fresh_thread(function: Callable[[], Result]) -> Result:
    """What ``function()`` returns or raises in a thread that no mode, transform or inference is on.

    An op may be called from within any of these. Only under ``making``.
    """
    outcome = []

    def work():
        _thread.works_for_holder = True
        try:
            outcome.extend((function(), None))
        except BaseException as error:
            outcome.extend((None, error))

    thread = threading.Thread(target=work, name="fused_rnn tracing")
    thread.start()
    thread.join()
    result: Any
    result, error = outcome
    if error is not None:
        raise error
    return result


def once(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """``functools.cache`` that calls ``function`` once for equal arguments, by one thread."""
    make: Any = function
    made: dict[tuple, Any] = {}  # for threads that waited while another made the value

    @functools.cache
    @functools.wraps(function)
    def find(*key):
        return _make(made, key, lambda: make(*key))

    found: Any = find
    forget = found.cache_clear

    def clear():
        made.clear()
        forget()

    found.cache_clear = clear
    return found


class Made(dict):
    """What was made once of a cell, by function and arguments.

    ``cell.made[function, a, b]`` is ``function(cell, a, b)``, and ``cell.made[function]`` is
    ``function(cell)``. One thread calls the function.
    """

    def __init__(self, cell: Any):
        super().__init__()
        self._cell = weakref.ref(cell)  # which holds this

    def __missing__(self, spot: Any) -> Any:
        function, *arguments = spot if isinstance(spot, tuple) else (spot,)
        return _make(self, spot, lambda: function(self._cell(), *arguments))


def per_cell(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """``once`` for functions of a cell and further arguments: looks them up in ``cell.made``."""

    @functools.wraps(function)
    def find(cell, *arguments):
        return cell.made[(function, *arguments)]

    found: Any = find
    return found


def per_cell_of_few(
    most: int,
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """``per_cell`` for pure functions of sizes: without the lock, and forgotten at ``most``."""

    def decorate(function: Any) -> Any:
        @functools.wraps(function)
        def find(cell, *key):
            values = cell.made.setdefault(function, {})
            if key not in values:
                if len(values) >= most:
                    values.clear()
                value = values[key] = function(cell, *key)
                return value
            return values[key]

        return find

    return decorate


def _make(made, spot, function):
    with making():
        if spot not in made:
            made[spot] = function()
        return made[spot]
