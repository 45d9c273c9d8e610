"""Print a cell as C: its step, its sources, and their vector-Jacobian products.

The graphs are the same as in ``kernels.gpu.emit``. Each function is a loop over the units of one
row of the batch, which compilers vectorize.
"""

from __future__ import annotations

import re

import torch

from ... import once
from ...cells import Cell, draws, graphs
from ..languages import C
from ..statements import statements
from . import loop

# As in problem.h.
_ARGUMENTS = "const real *const *in, real *const *out, int64_t width, int64_t steps"
_ARGUMENTS += ", const Place *place"
_SHORT = {"pre": "pre", "state": "state", "params": "param", "streams": "stream"}


@once.per_cell
def emit(cell: Cell, dtype: torch.dtype) -> str:
    """Print ``cell``, for float32 or float64.

    Raises:
        NotImplementedError: an operation that the table lacks; names it.
    """
    computed = [s for s, stage in enumerate(cell.stages) if callable(stage.source)]
    texts = [
        f"// Cell {cell.name!r}, printed by fused_rnn.\n\n"
        f'typedef {loop.REAL[dtype]} real;\n#include "pointwise.h"\n\n'
        "namespace fused_rnn {\n",
        _print(cell, "step", 0, "step", dtype),
        _print(cell, "step_vjp", 0, "step_vjp", dtype),
        *(_print(cell, "source", s, f"source_{s}", dtype) for s in computed),
        *(_print(cell, "source_vjp", s, f"source_vjp_{s}", dtype) for s in computed),
        "}  // namespace fused_rnn\n",
    ]
    return "\n".join(texts)


def _print(cell: Cell, part: str, stage: int, name: str, dtype: torch.dtype) -> str:
    """One traced function, of flat arguments in order: pre, states, params, streams, cotangents.

    A vjp writes the gradients of the first four groups. It adds to gradients that have several
    contributions: those of params, summed over the batch, and all gradients of a source.
    """
    *sizes, outputs = graphs.group_sizes(cell, part, stage)
    groups = zip(graphs.ARGUMENTS, sizes, strict=True)
    places = [
        "t" if group == "t" else f"{_SHORT[group]}_{i}"
        for group, size in groups
        for i in range(size)
    ]
    results = [f"next_{i}" for i in range(outputs)]
    added = [False] * outputs
    if part.endswith("_vjp"):
        results = [f"d_{place}" for place in places if place != "t"]
        added = [part == "source_vjp" or place.startswith("d_param") for place in results]
        places += [f"cotangent_{i}" for i in range(outputs)]
    drawn = [f"stream_{len(cell.streams) + n}" for n in range(len(cell.drawn))]
    results = [result for result in results if result.removeprefix("d_") not in drawn]
    loaded = [place for place in places if place not in ("t", *drawn)]
    lines, values = statements(cell, part, stage, places, C, dtype)
    read = set(re.findall(r"stream_\d+", " ".join([value for _, value in lines] + values)))
    text = [f'extern "C" void {name}({_ARGUMENTS}) {{', "  const real t = real(steps);"]
    text += ["  const Place here = *place;"] * bool(read.intersection(drawn))
    text += [f"  const real *const {place}_ = in[{k}];" for k, place in enumerate(loaded)]
    text += [f"  real *const {result} = out[{k}];" for k, result in enumerate(results)]
    text += ["  EACH_UNIT", "  for (int64_t j = 0; j < width; ++j) {"]
    # All loads come first: a result may share the memory of an argument.
    text += [f"    const real {place} = {place}_[j];" for place in loaded]
    text += _draw(cell, [name in read for name in drawn])
    text += [f"    const auto {name} = {value};" for name, value in lines]
    text += [
        f"    {result}[j] {'+=' if add else '='} {value};"
        for result, value, add in zip(results, values, added, strict=False)
    ]
    return "\n".join([*text, "  }", "}", ""])


def _draw(cell, read) -> list[str]:
    """The statements that draw the streams that are read."""
    lines, first = [], 0
    for n, block in enumerate(draws.blocks(cell)):
        end = first + len(block.thresholds)
        if any(read[first:end]):
            step = "0" if block.of_sequence else "here.step"
            call = f"philox(here, here.unit + uint32_t(j), {step}, {block.number})"
            lines.append(f"    const Words words_{n} = {call};")
        for word, threshold in enumerate(block.thresholds):
            if read[first + word]:
                bits, name = f"words_{n}.word[{word}] >> 8", len(cell.streams) + first + word
                lines.append(f"    const real stream_{name} = ({bits}) < {threshold}u ? 1 : 0;")
        first = end
    return lines
