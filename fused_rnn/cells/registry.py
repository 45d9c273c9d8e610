"""Cells by key: custom ops take strings and tensors, so a string identifies the cell.

The registry holds cells weakly. Their users keep them alive: a module, the caller of ``scan``, the
context of a backward. A graph that was traced, compiled or exported holds only the key, and its
lifetime is unknown; so a cell that enters a graph is kept forever (``keep``). A key is never reused
for a different cell: an old graph raises an error if its cell is gone, and never runs another.
"""

from __future__ import annotations

import threading
import types
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cell import Cell

_lock = threading.RLock()
# By name and key: the data that cells with this key share, and those that are alive.
_known: dict[str, dict[str, tuple[tuple, list[weakref.ref]]]] = {}
# By key, one that is alive.
living: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
# By name, the number of keys it has had.
_counts: dict[str, int] = {}
_kept: set = set()


def register(cell: Cell, name: str, what: tuple) -> str:
    """Register a new cell; returns its key: its name, or name#2 and so on for different cells.

    Args:
        what: data that identifies the cell. Equal cells share their key.
    """
    what = tuple(map(_without_functions, what))
    with _lock:
        known = _known.setdefault(name, {})
        for key, (other, cells) in list(known.items()):
            cells[:] = [reference for reference in cells if reference() is not None]
            if not cells and _is_gone(other):
                del known[key]
        key = next((key for key, (other, _) in known.items() if other == what), None)
        if key is None:
            number = _counts[name] = _counts.get(name, 0) + 1
            key = name if number == 1 else f"{name}#{number}"
            known[key] = (what, [])
        known[key][1].append(weakref.ref(cell))
        living[key] = cell
        return key


def keep(cell: Cell) -> Cell:
    """Keep a cell alive forever, since a graph has its key; returns it."""
    _kept.add(cell)
    return cell


def search(key: str) -> Cell:
    """Find a cell with this key if ``living`` has none: an equal one may be alive.

    Raises:
        ValueError: no cell had this key, or it is gone.
    """
    name, _, number = key.partition("#")
    with _lock:
        _, cells = _known.get(name, {}).get(key, (None, ()))
        for cell in filter(None, (reference() for reference in cells)):
            living[key] = cell
            return cell
        count = _counts.get(name, 0)
    number = int(number) if number.isdecimal() else 1
    if key in (name, f"{name}#{number}") and number <= count:
        raise ValueError(
            f"cell: {key!r} is gone: nothing holds it any more. Keep the Cell, or a module that "
            "has it, for as long as you call its ops by key"
        )
    raise ValueError(
        f"cell: expected the key of a cell, got {key!r}; a graph from another process needs the "
        "cell to be made in this one first"
    )


def _without_functions(value):
    """Replace functions by weak references, which are equal while their functions are."""
    if isinstance(value, tuple):
        return tuple(map(_without_functions, value))
    if not callable(value):
        return value
    try:
        make = weakref.WeakMethod if isinstance(value, types.MethodType) else weakref.ref
        return make(value)
    except TypeError:  # an object without weak references equals no other
        return object()


def _is_gone(what) -> bool:
    """Whether no new cell can equal this one."""
    if isinstance(what, tuple):
        return any(map(_is_gone, what))
    return type(what) is object or (isinstance(what, weakref.ref) and what() is None)
