"""Cells by key: how the custom ops, which take strings and tensors, know the cell they run.

The registry holds cells weakly. Cells stay alive by what uses them: a module, the caller of
``scan``, the context of a backward. A graph that was traced, compiled or exported holds no more
than the key, and where its last copy is nobody can know: so a cell that goes into a graph is kept
for good (``keep``). A key is never given to another cell, even if its first is gone: an old graph
says that its cell is gone and does not run another.
"""

from __future__ import annotations

import threading
import types
import weakref

_lock = threading.RLock()
# By name, and then by key: what cells with this key are, and those that live.
_known: dict[str, dict[str, tuple[tuple, list[weakref.ref]]]] = {}
# By key one that lives.
living: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
# How many keys a name has had.
_counts: dict[str, int] = {}
_kept: set = set()


def register(cell, name: str, what: tuple) -> str:
    """A key for a new cell: its name, or name#2 and so on for others that differ.

    Args:
        what: tells cells apart. Equal cells share their key.
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


def keep(cell):
    """Keep a cell for good, since a graph has its key; returns it."""
    _kept.add(cell)
    return cell


def search(key: str):
    """The cell with this key, or one that equals it, where ``living`` has none.

    Raises:
        ValueError: there never was one, or it is gone.
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
    """The functions as weak references, which are equal if they live and their functions are."""
    if isinstance(value, tuple):
        return tuple(map(_without_functions, value))
    if not callable(value):
        return value
    try:
        make = weakref.WeakMethod if isinstance(value, types.MethodType) else weakref.ref
        return make(value)
    except TypeError:  # an object that cannot be referred to weakly equals none
        return object()


def _is_gone(what) -> bool:
    """Whether no new cell can equal this one."""
    if isinstance(what, tuple):
        return any(map(_is_gone, what))
    return type(what) is object or (isinstance(what, weakref.ref) and what() is None)
