"""The wiring of a cell as constants of the kernels: its bands of gates, and the parts of a step.

A step is taken in *parts*. All products of a part have sources that are known when it begins, so
programs that own different units meet once per part. The first part has the stages whose source
needs no gate of the same step; a stage whose source does begins a part of its own. Stages of the
identity are taken where they stand, since programs have all that these need.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...cells import Cell, draws, graphs, stages
from ...numerics import accumulator
from .blocks import band_bounds


def of_forward(cell: Cell) -> dict:
    """The constants of the forward kernel."""
    return {
        "X_INDEX": cell.x_index,
        "BIAS_INDEX": cell.bias_index,
        "BANDS": bands(cell),
        "GAPS": gaps(cell),
        "MATRICES": matrices(cell),
        "PARTS": parts(cell),
        "SLOTS": slots(cell),
        "PASSED_ON": passed_on(cell),
        "DRAWN": drawn(cell),
        "TOTALS": totals(cell),
    }


def of_explicit_forward(cell: Cell) -> dict:
    """The constants of the forward kernel with explicit layouts.

    Its programs own all units where a cell has sums, and so pass on the sources of products alone.
    """
    fixed = [bool(stage.fixed) for stage in cell.stages]
    own = tuple(() if f else of_stage for f, of_stage in zip(fixed, slots(cell), strict=True))
    early = [(s, v, slot) for s in early_stages(cell) for v, slot in enumerate(own[s])]
    once = {slot: (s, v, slot) for s, v, slot in reversed(early)}
    constants = of_forward(cell) | {"SLOTS": own, "PASSED_ON": tuple(sorted(once.values()))}
    del constants["TOTALS"]
    return constants


def of_backward(cell: Cell) -> dict:
    """The constants of the backward kernel."""
    early = early_stages(cell)
    return {
        "SPANS": cell.spans,
        "VECTORS": cell.source_sizes,
        "MATRICES": matrices(cell),
        "PARTS": parts(cell),
        "EARLY": early,
        "STATES": tuple(source_states(cell, s) for s in early),
        "DRAWN": drawn(cell),
        "TOTALS": totals(cell),
        "STEP_ZEROS": graphs.zeros(cell, "step_vjp"),
        "SOURCE_ZEROS": tuple(graphs.zeros(cell, "source_vjp", s) for s in range(len(cell.stages))),
    }


def drawn(cell: Cell) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
    """Per block that is drawn its number, a factor of the step, and the thresholds."""
    return tuple((b.number, int(not b.of_sequence), b.thresholds) for b in draws.blocks(cell))


def apart(cell: Cell, streams: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
    """The streams that are given, and the key of those that are drawn, or None."""
    return (streams[:-1], streams[-1]) if cell.drawn else (streams, None)


def parts(cell: Cell) -> tuple[int, ...]:
    """The bounds of the parts: part p has the stages parts[p] to parts[p + 1]."""
    return (0, *graphs.late_stages(cell), len(cell.stages))


def matrices(cell: Cell) -> tuple[int | str, ...]:
    """Per stage the index of its matrix in the weights, or the name of its fixed matrix."""
    pairs = zip(cell.stages, cell.weight_index, strict=True)
    return tuple(stage.fixed or index for stage, index in pairs)


def early_stages(cell: Cell) -> tuple[int, ...]:
    """The stages whose source is known when the step before ends."""
    late = graphs.late_stages(cell)
    return tuple(
        s for s, stage in enumerate(cell.stages) if s not in late and stage.fixed != "identity"
    )


def source_states(cell: Cell, stage: int) -> tuple[int, ...]:
    """The numbers of the states that a source consists of; none where it is computed."""
    source = cell.stages[stage].source
    return () if callable(source) else tuple(map(cell.states.index, source))


def totals(cell: Cell) -> tuple[int, ...]:
    """Per gate its number among those that are sums of all units, or -1."""
    found = [g for s, span in enumerate(cell.spans) if _is_total(cell, s) for g in range(*span)]
    return tuple(found.index(g) if g in found else -1 for g in range(len(cell.gates)))


def _is_total(cell, stage):
    return cell.stages[stage].fixed in ("mean", "sum")


def slots(cell: Cell) -> tuple[tuple[int, ...], ...]:
    """Per stage and vector of its source, the slot of memory in which programs pass it on.

    A state that several stages multiply has one slot. Sums have slots of their own. The slots of a
    stage of the identity are -1.
    """
    places, found = ({}, {}), []
    for s, size in enumerate(cell.source_sizes):
        if cell.stages[s].fixed == "identity":
            found.append((-1,) * size)
            continue
        keys = source_states(cell, s) or [(s, v) for v in range(size)]
        own = places[_is_total(cell, s)]
        found.append(tuple(own.setdefault(key, len(own)) for key in keys))
    return tuple(found)


def slot_count(cell: Cell) -> int:
    """How many slots there are."""
    return 1 + max((slot for stage in slots(cell) for slot in stage), default=-1)


def passed_on(cell: Cell) -> tuple[tuple[int, int, int], ...]:
    """The sources that programs pass on after a step for the next, as (stage, vector, slot)."""
    seen, found, all_slots = set(), [], slots(cell)
    for s in early_stages(cell):
        for v, slot in enumerate(all_slots[s]):
            place = (_is_total(cell, s), slot)
            if place not in seen:
                found.append((s, v, slot))
            seen.add(place)
    return tuple(found)


def first_sources(
    cell: Cell,
    like: Tensor,
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    reverse: bool,
    heads: int,
    programs: int,
) -> tuple[Tensor | None, Tensor | None]:
    """The memory in which programs pass on sources and sums, with those of the first step.

    Args:
        like: (T, B, D, ..., H).
        heads: of each direction of the layer; D counts them all.
        programs: of each row.

    Returns:
        (slots, 2, D, B, H) and, in the dtype of the arithmetic, (slots, 2, D, B, programs), of
        which [:, 0] are filled; None where there are no slots.
    """
    steps, batch, directions, *_, hidden = like.shape
    wide, places = accumulator(like.dtype), slots(cell)
    memory = []
    if not cell.stages:
        return None, None
    for is_total, width, dtype in ((False, hidden, like.dtype), (True, programs, wide)):
        own = [p for s, stage in enumerate(places) for p in stage if _is_total(cell, s) == is_total]
        shape = (1 + max(own, default=-1), 2, directions, batch, width)
        memory.append(like.new_empty(shape, dtype=dtype) if own else None)
    at_first = _streams_at_first(cell, streams, like, reverse, heads)
    for d in range(directions):
        arguments = (
            tuple(state[d].to(wide) for state in states),
            tuple(param[d].to(wide) for param in params),
            tuple(stream.to(wide) for stream in at_first[d]),
        )
        zero = torch.zeros_like(arguments[0][0])  # for gates, of which these sources read none
        vectors = {
            s: cell.run_source(s, (zero,) * cell.spans[s][0], *arguments)
            for s in early_stages(cell)
        }
        for s, v, slot in passed_on(cell):
            place = memory[_is_total(cell, s)][slot, 0, d]
            if _is_total(cell, s):
                place.zero_()[:, 0] = vectors[s][v].sum(-1)
            else:
                place.copy_(vectors[s][v])
    return tuple(memory)


def _streams_at_first(cell, streams, like, reverse, heads) -> list[list[Tensor]]:
    """Per direction the streams (B, H) that the sources of its first step see."""
    steps, _, directions, *_, hidden = like.shape
    given, key = apart(cell, streams)
    values = []
    if key is not None:
        computed = [s for s in early_stages(cell) if callable(cell.stages[s].source)]
        each = [graphs.streams_read(cell, "source", s)[len(given) :] for s in computed]
        read = [any(of_sources) for of_sources in zip(*each, strict=True)]
        ends = torch.arange(2, device=key.device) * (steps - 1)
        read = read or [False] * len(cell.drawn)
        values = draws.values(cell, key, ends, directions, hidden, like.dtype, heads, read)
    found = []
    for d in range(directions):
        last = reverse ^ (d // heads == 1)
        rows = [stream[steps - 1 if last else 0, :, d] for stream in given]
        found.append(rows + [value[int(last), :, d] for value in values])
    return found


def bands(cell: Cell) -> tuple[tuple[int, ...], ...]:
    """Per stage the bounds of its bands, which are adjacent in x, or else in the bias."""
    return tuple(_bounds(cell, begin, end) for begin, end in cell.spans)


def gaps(cell: Cell) -> tuple[tuple[int, ...], ...]:
    """The same of the gates without a product: those before each stage, and after the last."""
    ends = [0, *(end for _, end in cell.spans)]
    begins = [*(begin for begin, _ in cell.spans), len(cell.gates)]
    return tuple(_bounds(cell, *pair) for pair in zip(ends, begins, strict=True))


def _bounds(cell, first, last):
    bounds = [first]
    for g in range(first + 1, last + 1):
        places = [(cell.x_index[i], cell.bias_index[i]) for i in (g - 1, g)] if g < last else ()
        step = places and tuple(b - a for a, b in zip(*places, strict=True))
        if step not in ((1, 0), (0, 1)):
            bounds += band_bounds(bounds[-1], g)[1:]
    return tuple(bounds)


def add_first_products(
    cell: Cell,
    weights: list[Tensor],
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    dpre: Tensor,
    dstates: list[Tensor],
    dparams: list[Tensor],
    dstreams: list[Tensor],
    reverse: bool,
    heads: int,
) -> None:
    """Add what the sources of the first step contribute, which no other step does.

    Args:
        dpre: (T, B, D, G, H).
        dstates: (D, B, H) each, in the dtype of the arithmetic; added to in place.
        dparams: (D, H) each; likewise.
        dstreams: (T, B, D, H) each; likewise.
        heads: as in ``first_sources``.
    """
    steps, _, directions, _, _ = dpre.shape
    wide = dstates[0].dtype
    at_first = _streams_at_first(cell, streams, dpre, reverse, heads)
    for s in early_stages(cell):
        begin, end = cell.spans[s]
        for d in range(directions):
            first = steps - 1 if reverse ^ (d // heads == 1) else 0
            dgates = dpre[first, :, d, begin:end].flatten(1)
            own = [weight[d] for weight in weights]
            product = stages.pull_back(cell, s, dgates, own, dpre.shape[-1])
            vectors = product.to(wide).chunk(cell.source_sizes[s], -1)
            known = source_states(cell, s)
            for i, vector in zip(known, vectors, strict=False):
                dstates[i][d] += vector
            if known:
                continue
            state = [state[d].to(wide) for state in states]
            rows = [stream.to(wide) for stream in at_first[d]]
            of_params = [param[d].to(wide).expand_as(state[0]) for param in params]
            gates = [torch.zeros_like(state[0])] * begin
            t = torch.zeros((), dtype=wide, device=dpre.device)
            out = graphs.call(
                cell, "source_vjp", s, gates, state, of_params, rows, t, list(vectors)
            )[begin:]
            targets = [
                *(dstate[d] for dstate in dstates),
                *(dparam[d] for dparam in dparams),
                *(dstream[first, :, d] for dstream in dstreams),
            ]
            for target, value in zip(targets, out, strict=False):  # none of what is drawn
                target += value.sum(0) if target.dim() < 2 else value
