"""Print a cell as Triton functions: its step, its sources, and their vector-Jacobian products.

The derivatives are PyTorch's (``fused_rnn.cells.graphs``); ``kernels.statements`` prints each
operation.
"""

from __future__ import annotations

import linecache
import re
import weakref
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from ... import once
from ...cells import Cell, graphs
from ..languages import TRITON
from ..statements import statements
from . import blocks, pointwise


@dataclass(frozen=True)
class Emitted:
    """The printed functions of a cell.

    Every argument is a tuple of blocks of one shape, except ``t``, a scalar; each returns a flat
    tuple. A vjp returns the gradients of gates, states, params, streams.
    """

    source_text: str
    step: triton.JITFunction  # (pre, state, params, streams, t)
    step_vjp: triton.JITFunction  # (pre, state, params, streams, t, dstate)
    # None where a cell has stages, or its step reads no state. Row by row, of the states read.
    jacobian: triton.JITFunction | None  # (pre, state, params, streams, t)
    # None where no stage has a source.
    source: triton.JITFunction | None  # (STAGE, pre, state, params, streams, t)
    source_vjp: triton.JITFunction | None  # (STAGE, pre, state, params, streams, t, dsource)


@once.per_cell
def emit(cell: Cell, form: str = "exact", dtype: torch.dtype = torch.float32) -> Emitted:
    """Print ``cell``.

    Args:
        form: of the activations, see ``numerics.form``. The text is the same; it calls other
            functions.
        dtype: of the arithmetic, float32 or float64.

    Raises:
        NotImplementedError: an operation that the table lacks; names it.
    """
    stages = range(len(cell.stages))
    parts = ["step", "step_vjp"]
    if not cell.stages and graphs.carried(cell):
        parts.append("jacobian")
    texts = [_print(cell, part, 0, part, dtype) for part in parts]
    for part in ("source", "source_vjp"):
        texts += [_print(cell, part, s, f"{part}_{s}", dtype) for s in stages]
        if cell.stages:
            texts.append(_dispatch(part, stages))
    text = f"# Cell {cell.name!r}, printed by fused_rnn.\n\n\n" + "\n\n".join(texts)
    file = f"<fused_rnn {cell.key} {form} {str(dtype).removeprefix('torch.')}>"
    space = _run(text, file, pointwise.FORMS[form] | pointwise.CALLED)
    weakref.finalize(cell, _forget, file, linecache.cache[file]).atexit = False
    others = (space.get(name) for name in ("jacobian", "source", "source_vjp"))
    return Emitted(text, space["step"], space["step_vjp"], *others)


@once.once
def composition(count: int) -> triton.JITFunction:
    """Print the scan of linear maps of ``count`` values by composition.

    The function takes a tuple of blocks, a map in each row: the entries of its matrix row by row,
    and its offsets. It returns those of the maps up to each row, which the first one begins.
    """
    places = range(count)
    sums = [[(f"b{i}{j}", f"a{j}{k}") for j in places] for i in places for k in places]
    texts = [" + ".join(f"scaled({b}, {a})" for b, a in terms) for terms in sums]
    texts += [" + ".join([f"d{i}", *(f"scaled(b{i}{j}, c{j})" for j in places)]) for i in places]
    names = [[f"{m}{i}{j}" for i in places for j in places] for m in "ab"]
    a, b = (entries + [f"{o}{i}" for i in places] for entries, o in zip(names, "cd", strict=True))
    text = f"@triton.jit\ndef compose({', '.join(a + b)}):\n    return {', '.join(texts)}\n\n\n"
    text += "@triton.jit\ndef scan(maps):\n    return tl.associative_scan(maps, 0, compose)\n"
    return _run(text, f"<fused_rnn composition {count}>", {"scaled": blocks.scaled})["scan"]


def _run(text: str, file: str, called: dict) -> dict[str, Any]:
    """The names that a text defines, which Triton reads in linecache, as inspect does."""
    linecache.cache[file] = (len(text), None, text.splitlines(True), file)
    space: dict[str, Any] = {"__name__": __name__, "triton": triton, "tl": tl} | called
    exec(compile(text, file, "exec"), space)
    return space


def _forget(file, entry):
    if linecache.cache.get(file) is entry:  # unless an equal cell has replaced it
        del linecache.cache[file]


def _print(cell: Cell, part: str, stage: int, name: str, dtype: torch.dtype) -> str:
    """One traced function as a Triton function."""
    sizes = graphs.group_sizes(cell, part, stage)
    groups = [*graphs.ARGUMENTS, "cotangents"][: len(sizes) if part.endswith("_vjp") else -1]
    places = [
        group if group == "t" else f"{group}[{i}]"
        for group, size in zip(groups, sizes, strict=False)
        for i in range(size)
    ]
    lines, results = statements(cell, part, stage, places, TRITON, dtype)
    text = [f"@triton.jit\ndef {name}({', '.join(groups)}):"]
    if any(re.search(r"\bt\b", value) for _, value in lines):
        # A float, as in PyTorch: quotients of integers would differ.
        text.append(f"    t = tl.cast(t, {str(dtype).replace('torch', 'tl')})")
    text += [f"    {name} = {value}" for name, value in lines]
    text.append(f"    return ({', '.join(results)},)")
    return "\n".join(text) + "\n"


def _dispatch(part: str, stages: range) -> str:
    """The function that picks the source of a stage at compile time."""
    arguments = ", ".join(graphs.ARGUMENTS) + (", cotangents" if part.endswith("_vjp") else "")
    lines = [f"@triton.jit\ndef {part}(STAGE: tl.constexpr, {arguments}):"]
    if not stages:
        lines.append("    return ()")
    for s in stages:
        lines.append(f"    {'if' if s == 0 else 'elif'} STAGE == {s}:")
        lines.append(f"        return {part}_{s}({arguments})")
    return "\n".join(lines) + "\n"
