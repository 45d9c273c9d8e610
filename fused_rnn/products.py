"""Products over all T·B rows at once: input parts of the gates, and gradients of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from . import numerics
from .cells import Cell, draws, graphs, heads
from .cells.steps import previous, steps_taken


def gradients(
    cell: Cell,
    dpre: Tensor,
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    streams: Sequence[Tensor],
    sequences: Sequence[Tensor],
    pre: Tensor,
    reverse: bool,
    has_bias: bool,
    gradient: Callable[..., Tensor] = heads.gradient,
) -> tuple[list[Tensor], Tensor | None]:
    """Per matrix dR = Σ over T and B of dpre ⊗ source, a product per direction; and dbias.

    Args:
        gradient: what takes the place of ``heads.gradient``.
    """
    before = None
    dweights, hidden = [], pre.shape[-1]
    heads_of = [
        heads.count(weight, vectors * hidden)
        for weight, (_, vectors) in zip(weights, cell.matrices, strict=True)
    ]
    for s, (begin, end) in enumerate(cell.spans):
        place = cell.weight_index[s]
        if place < 0:
            continue
        rows = dpre[:, :, :, begin:end].flatten(3)
        source = cell.stages[s].source
        if not callable(source) and len(source) == 1:
            i = cell.states.index(source[0])
            given = (rows, sequences[i], states[i], reverse, heads_of[place])
            products = _products_with_previous(*given, gradient)
        else:
            if before is None:
                pairs = zip(sequences, states, strict=True)
                before = [previous(q, state, reverse) for q, state in pairs]
            gates = pre.unbind(3)[:begin]
            flow = streams_of(cell, s, streams, pre)
            v = source_of(cell, s, gates, before, params, flow, pre.dtype, reverse)
            size = cell.source_sizes[s]
            products = [
                gradient(
                    [(rows[:, :, d].flatten(0, 1), v[:, :, d].flatten(0, 1))], size, heads_of[place]
                )
                for d in range(pre.shape[2])
            ]
        dweights.append(torch.stack(products) if len(products) > 1 else products[0].unsqueeze(0))
    if not has_bias:
        return dweights, None
    return dweights, columns(dpre, [cell.gates.index(g) for g in cell.bias_gates]).sum((0, 1))


def _products_with_previous(rows, states, initial, reverse, count, gradient) -> list[Tensor]:
    """Σ over T and B of rows ⊗ the state before, per direction, without a copy of the states.

    Args:
        count: of heads.
    """
    products = []
    for d in range(rows.shape[2]):
        own, state = rows[:, :, d], states[:, :, d]
        if reverse ^ (d == 1):
            first, rest, state = own[-1], own[:-1], state[1:]
        else:
            first, rest, state = own[0], own[1:], state[:-1]
        pairs = [(first, initial[d].to(first.dtype))]
        if rows.shape[0] > 1:
            pairs.append((rest.flatten(0, 1), state.flatten(0, 1)))
        products.append(gradient(pairs, 1, count))
    return products


def streams_of(cell: Cell, stage: int, streams: Sequence[Tensor], like: Tensor) -> list[Tensor]:
    """The streams that the source of a stage sees, of the streams of a recurrence.

    Drawn ones that it does not read are zeros without memory.

    Args:
        like: (T, B, D, ..., H), of the dtype.
    """
    if not cell.drawn or not callable(cell.stages[stage].source):
        return list(streams[: len(cell.streams)])
    read = graphs.streams_read(cell, "source", stage)[len(cell.streams) :]
    steps, directions = like.shape[0], like.shape[2]
    return draws.with_values(cell, streams, steps, directions, like, read)


def source_of(
    cell: Cell,
    stage: int,
    gates: Sequence[Tensor],
    before: Sequence[Tensor],
    params: Sequence[Tensor],
    streams: Sequence[Tensor],
    dtype: torch.dtype,
    reverse: bool,
) -> Tensor:
    """What a stage multiplies at all steps, (T, B, D, V·H), from the gates and states before."""
    if callable(cell.stages[stage].source):
        wide = numerics.accumulator(dtype)
        steps, _, directions, _ = before[0].shape
        source = cell.run_source(
            stage,
            tuple(gate.to(wide) for gate in gates),
            tuple(state.to(wide) for state in before),
            tuple(params),
            tuple(streams),
            steps_taken(steps, directions, reverse, before[0].device),
        )
    else:
        source = cell.run_source(stage, (), before)
    return torch.cat(source, -1).to(dtype)


def of_input(
    cell: Cell,
    dpre: Tensor,
    input: Tensor,
    input_weight: Tensor | None,
    needs: tuple[bool, bool, bool],
    product: Callable[[Tensor, Tensor], Tensor] = torch.matmul,
    gradient: Callable[..., Tensor] = heads.gradient,
) -> list[Tensor | None]:
    """Gradients of a layer's input (T, B, I), of its weight (D·(X - raw gates)·H, I) and bias.

    Args:
        needs: which of the three.
        product, gradient: what take the places of ``torch.matmul`` and ``heads.gradient``.
    """
    dx = columns(dpre, [cell.gates.index(gate) for gate in cell.x_gates])
    linear = [i for i, gate in enumerate(cell.x_gates) if gate not in cell.raw_gates]
    raw = [i for i, gate in enumerate(cell.x_gates) if gate in cell.raw_gates]
    rows = columns(dx, linear).flatten(2)
    dinput = dweight = dbias = None
    if needs[0]:
        dinput = torch.zeros_like(input) if input_weight is None else product(rows, input_weight)
        if raw:
            dinput = dinput + dx[:, :, :, raw].sum((2, 3))
    if needs[1]:
        dweight = gradient([(rows.flatten(0, 1), input.flatten(0, 1))], 1, 1)
    if needs[2]:
        dbias = dx.flatten(2).sum((0, 1))
    return [dinput, dweight, dbias]


def columns(dpre: Tensor, gates: Sequence[int]) -> Tensor:
    """The gates with these numbers, without a copy where they follow each other."""
    first = gates[0] if gates else 0
    if gates == list(range(first, first + len(gates))):
        if len(gates) == dpre.shape[3]:
            return dpre
        return dpre[:, :, :, first : first + len(gates)]
    return dpre[:, :, :, gates]


def input_part(
    cell: Cell,
    input: Tensor,
    input_weight: Tensor | None,
    input_bias: Tensor | None,
    states: list[Tensor],
) -> Tensor:
    """x of every gate that has one, (T, B, D, X, H): one product for all directions.

    Args:
        input: (T, B, I).
        input_weight: (D·(X - raw gates)·H, I); None where all gates with an input part are raw.
        input_bias: (D·X·H,) or None.
        states: per state (D, B, H), for D and H.
    """
    directions, _, hidden = states[0].shape
    shape = (directions, len(cell.x_gates), hidden)
    if not cell.raw_gates:
        assert input_weight is not None
        return functional.linear(input, input_weight, input_bias).view(*input.shape[:2], *shape)
    raw = input.unsqueeze(2).expand(-1, -1, directions, -1)
    parts = dict.fromkeys(cell.raw_gates, raw)
    if input_weight is not None:
        linear = [gate for gate in cell.x_gates if gate not in cell.raw_gates]
        x = functional.linear(input, input_weight, None)
        x = x.unflatten(-1, (directions, len(linear), hidden))
        parts.update(zip(linear, x.unbind(3), strict=True))
    x = torch.stack([parts[gate] for gate in cell.x_gates], 3)
    return x if input_bias is None else x + input_bias.view(shape)


def input_bias(cell: Cell, own: list[Tensor], recurrent: list[Tensor]) -> Tensor | None:
    """Both biases of each gate with an input part, (D·X·H,)."""
    if not own:
        return None
    if not recurrent:
        return cat(own)
    if cell.x_gates == cell.recurrent_gates:
        return cat([a + b for a, b in zip(own, recurrent, strict=True)])
    hidden, parts = len(own[0]) // len(cell.x_gates), []
    for a, b in zip(own, recurrent, strict=True):
        for begin, end, place in cell.x_runs:
            part = a[begin * hidden : end * hidden]
            if place >= 0:
                part = part + b[place * hidden : (place + end - begin) * hidden]
            parts.append(part)
    return torch.cat(parts)


def recurrent_bias(cell: Cell, recurrent: Sequence[Tensor]) -> Tensor | None:
    """The bias of each gate without an input part, (D, M, H), or None."""
    if not recurrent or not cell.bias_gates:
        return None
    hidden = len(recurrent[0]) // len(cell.recurrent_gates)
    runs = [slice(at * hidden, (at + end - begin) * hidden) for begin, end, at in cell.bias_runs]
    return cat([bias[run] for bias in recurrent for run in runs]).view(
        len(recurrent), len(cell.bias_gates), hidden
    )


def cat(tensors: list[Tensor]) -> Tensor:
    """Concatenate tensors; a single one is returned as it is."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
