"""The recurrence in PyTorch operations on whole sequences, where the algebra allows it.

It runs where no fused kernel does: on any device. Against a plain loop it records no graph,
keeps only the gates and states, computes the derivatives of many steps at once in the backward, and
leaves dW and dx to one product over all T·B rows.

``backward`` is written out of place: under ``create_graph=True`` it is itself differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cells import Cell, draws, graphs, heads, stages
from ..cells.reference import own_part
from ..cells.steps import join_directions, previous, steps_taken
from ..checks import boundary
from ..numerics import accumulator, state_dtypes


def why_not(cell: Cell, device: torch.device, dtype: torch.dtype) -> str | None:
    """None: PyTorch's operations run everywhere."""
    return None


def forward(
    cell: Cell,
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    streams: Sequence[Tensor],
    reverse: bool,
    save: bool = True,
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """``reference.forward`` without a graph; returns the gates (T, B, D, G, H) in the middle.

    Args:
        save: return the sequences of all states, not only of the first.
    """
    boundary.forward(cell, x, weights, bias, states, params, streams)
    steps, batch, directions, _, hidden = x.shape
    streams = draws.with_values(cell, streams, steps, directions, x)
    if cell.x_gates == cell.gates:
        pre = x.clone(memory_format=torch.contiguous_format)
    else:
        pre = x.new_empty(steps, batch, directions, len(cell.gates), hidden)
        parts, biases = x.movedim(3, 0), None if bias is None else bias.movedim(1, 0)
        for g in range(len(cell.gates)):
            pre[:, :, :, g] = own_part(cell, g, parts, biases)
    dtypes = state_dtypes(cell, x.dtype)[: None if save else 1]
    runs = []
    finals = [state.new_empty(state.shape) for state in states]
    for d in range(directions):
        rows, last = _walk(
            cell,
            pre[:, :, d],
            [weight[d] for weight in weights],
            [state[d] for state in states],
            [param[d] for param in params],
            [stream[:, :, d] for stream in streams],
            reverse ^ (d == 1),
        )
        runs.append([torch.stack(r).to(dtype) for r, dtype in zip(rows, dtypes, strict=False)])
        for final, state in zip(finals, last, strict=True):
            final[d] = state
    sequences = [join_directions(group) for group in zip(*runs, strict=True)]
    return sequences, pre, finals


def _walk(cell, pre, weights, state, params, streams, reverse):
    """One direction: complete ``pre`` (T, B, G, H); return per state its rows, and the last."""
    wide = accumulator(pre.dtype)
    narrow = pre.dtype != wide
    state = tuple(s.to(wide) for s in state)
    params = tuple(p.to(wide) for p in params)
    # Slice once for all steps what can be: the overhead of operations dominates a step.
    blocks = [pre[:, :, begin:end].flatten(2).unbind() for begin, end in cell.spans]
    counts = [end - begin for begin, end in cell.spans]
    products = [_adding(cell, s, weights, pre.shape[-1]) for s in range(len(counts))]
    # Gates of no stage, by the number of the stage that they stand before.
    ends = [0, *(end for _, end in cell.spans)]
    begins = [*(begin for begin, _ in cell.spans), len(cell.gates)]
    alone = [
        [pre[:, :, g].to(wide).unbind() for g in range(*gap)]
        for gap in zip(ends, begins, strict=True)
    ]
    flows = [stream.to(wide).unbind() for stream in streams]
    rows = [None] * len(pre)
    order = range(len(pre))
    for t, time in enumerate(reversed(order) if reverse else order):
        flow = tuple(stream[time] for stream in flows)
        gates = ()
        for s, count in enumerate(counts):
            gates += tuple(gate[time] for gate in alone[s])
            source = cell.run_source(s, gates, state, params, flow, t)
            v = source[0] if len(source) == 1 else torch.cat(source, -1)
            block = products[s](blocks[s][time], v.to(pre.dtype) if narrow else v)
            gates += (block.to(wide) if narrow else block).chunk(count, -1)
        gates += tuple(gate[time] for gate in alone[-1])
        rows[time] = state = cell.run_step(gates, state, params, flow, t)
    return list(zip(*rows, strict=True)), state


def _adding(cell, stage, weights, hidden):
    """A function that adds the product of a stage to its gates, in place."""
    place = cell.weight_index[stage]
    if place >= 0 and heads.count(weights[place], cell.source_sizes[stage] * hidden) == 1:
        transposed = weights[place].t()
        return lambda gates, source: gates.addmm_(source, transposed)
    return lambda gates, source: gates.add_(stages.product(cell, stage, source, weights))


def backward(
    cell: Cell,
    weights: Sequence[Tensor],
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    streams: Sequence[Tensor],
    sequences: Sequence[Tensor],
    pre: Tensor,
    dsequences: Sequence[Tensor | None],
    dpre: Tensor | None,
    dfinals: Sequence[Tensor | None],
    reverse: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """The vector-Jacobian product of ``forward`` at its results.

    Args:
        sequences, pre: as ``forward`` returned them.
        dsequences, dpre, dfinals: the gradients of its results; None is zero.

    Returns:
        The gradients of the gates (T, B, D, G, H), of which those of x, weights and bias follow by
        one product each, and of ``states``, ``params`` and ``streams``.
    """
    groups = (weights, states, params, streams)
    boundary.backward(cell, *groups, sequences, pre, dsequences, dpre, dfinals)
    given, wide = len(cell.streams), accumulator(pre.dtype)
    steps, _, directions, _, _ = pre.shape
    streams = draws.with_values(cell, streams, steps, directions, pre)
    t = steps_taken(steps, directions, reverse, pre.device)
    arguments = [
        [gate.to(wide) for gate in pre.unbind(3)],
        [previous(q, s, reverse).to(wide) for q, s in zip(sequences, states, strict=True)],
        [param.to(wide) for param in params],
        [stream.to(wide) for stream in streams],
    ]
    runs = []
    for d in range(directions):

        def side(tensor, d=d):
            return None if tensor is None else tensor[:, :, d].to(wide)

        own = [
            [gate[:, :, d] for gate in arguments[0]],
            [state[:, :, d] for state in arguments[1]],
            [param[d] for param in arguments[2]],
            [stream[:, :, d] for stream in arguments[3]],
            t[:, :, d],
        ]
        runs.append(
            _walk_back(
                cell,
                [weight[d] for weight in weights],
                own,
                [side(dsequence) for dsequence in dsequences],
                side(dpre),
                [None if dfinal is None else dfinal[d].to(wide) for dfinal in dfinals],
                reverse ^ (d == 1),
                pre.dtype,
            )
        )

    def join(index, dim, likes):
        groups = zip(*(run[index] for run in runs), strict=True)
        return [torch.stack(g, dim).to(v.dtype) for g, v in zip(groups, likes, strict=True)]

    dgates = join_directions([run[0] for run in runs])
    return dgates.to(pre.dtype), join(1, 0, states), join(2, 0, params), join(3, 2, streams[:given])


# Steps whose Jacobians are computed together have this many values, which fit in the cache.
_VALUES_AT_ONCE = 32768


def _walk_back(cell, weights, arguments, dsequences, dpre, dfinals, reverse, dtype):
    """One direction. Returns dgates (T, B, G, H), dstates, dparams, dstreams.

    A step is pointwise, so its Jacobian is one number per unit, gate or state, and new state, and
    needs no gradients: it is computed for many steps at once, and what remains of a step is one
    product with it per new state, however many operations the cell has.
    """
    gates, states = arguments[0], arguments[1]
    steps, batch, hidden = gates[0].shape
    wide, count = gates[0].dtype, len(gates)
    computed = [s for s, stage in enumerate(cell.stages) if callable(stage.source)]
    zero = torch.zeros_like(states[0][0])
    dstate = [zero if g is None else g for g in dfinals]
    flows = [None if d is None else d.unbind() for d in dsequences]
    dsteps, dsources = [None] * steps, {s: [None] * steps for s in computed}
    rows = [None] * steps
    length = max(1, _VALUES_AT_ONCE // max(1, batch * hidden))
    starts = range(0, steps, length)
    for start in starts if reverse else reversed(starts):
        piece = slice(start, min(start + length, steps))
        of_step, live = _jacobian(cell, "step", 0, arguments, piece)
        of_sources = {s: _jacobian(cell, "source", s, arguments, piece) for s in computed}
        order = range(piece.start, piece.stop)
        for time in order if reverse else reversed(order):
            pairs = zip(dstate, flows, strict=True)
            dsteps[time] = dstate = [g if d is None else g + d[time] for g, d in pairs]
            columns = _product(of_step[time - start], dstate)
            dgates = columns
            parts: list[Tensor | None] = [None] * len(states)
            if live:
                dgates = columns[:, :count]
                for place, i in enumerate(live, count):
                    parts[i] = columns[:, place]
            if dpre is not None:
                dgates = dgates + dpre[time]
            for s in reversed(range(len(cell.spans))):
                begin, end = cell.spans[s]
                block = (dgates[:, begin:end] if end - begin < count else dgates).flatten(1)
                size = cell.source_sizes[s]
                rows_of = block if dtype == wide else block.to(dtype)
                dsource = stages.pull_back(cell, s, rows_of, weights, hidden).to(wide)
                dsource = (dsource,) if size == 1 else dsource.chunk(size, -1)
                if s in of_sources:
                    dsources[s][time] = dsource
                    jacobian, live_s = of_sources[s]
                    columns = _product(jacobian[time - start], dsource)
                    earlier = dgates[:, :begin] + columns[:, :begin]
                    dgates = torch.cat([earlier, dgates[:, begin:]], 1)
                    found = zip(live_s, columns[:, begin:].unbind(1), strict=True)
                else:
                    found = zip(map(cell.states.index, cell.stages[s].source), dsource, strict=True)
                for i, g in found:
                    part = parts[i]
                    parts[i] = g if part is None else part + g
            dstate = [zero if g is None else g for g in parts]
            rows[time] = dgates
    dparams, dstreams = _rest(cell, "step", 0, arguments, dsteps)
    for s in computed:
        more = _rest(cell, "source", s, arguments, dsources[s])
        dparams = [a + b for a, b in zip(dparams, more[0], strict=True)]
        dstreams = [a + b for a, b in zip(dstreams, more[1], strict=True)]
    return torch.stack(rows), dstate, dparams, dstreams


def _product(jacobian, cotangents):
    """The vjp at a step, (B, columns, H)."""
    total = jacobian[0] * cotangents[0].unsqueeze(1)
    for row, cotangent in zip(jacobian[1:], cotangents[1:], strict=True):
        total = torch.addcmul(total, row, cotangent.unsqueeze(1))
    return total


def _jacobian(cell, part, stage, arguments, piece):
    """The derivatives of a step or source by gates and states, and by which of the states.

    Returns:
        Per step of the piece, per result, (B, columns, H): a column for each gate, then one for
        each state that the second list numbers; the other states have no influence.
    """
    gates = len(cell.gates) if part == "step" else cell.spans[stage][0]
    results = len(cell.states) if part == "step" else cell.source_sizes[stage]
    zero = graphs.zeros(cell, f"{part}_vjp", stage)
    live = [i for i in range(len(cell.states)) if not zero[gates + i]]
    cut = [tensor[piece] for tensor in arguments[0][:gates]]
    states = [tensor[piece] for tensor in arguments[1]]
    streams = [tensor[piece] for tensor in arguments[3]]
    # One cotangent for each result, all at once, so that the parts common to all are done once.
    units = torch.eye(results, dtype=states[0].dtype, device=states[0].device)
    cotangents = list(units.view(results, results, 1, 1, 1).unbind())
    t = arguments[4][piece]
    out = graphs.call(cell, f"{part}_vjp", stage, cut, states, arguments[2], streams, t, cotangents)
    full = (results, *states[0].shape)
    kept = [out[i].expand(full) for i in (*range(gates), *(gates + i for i in live))]
    if not kept:
        kept = [units.new_zeros(full)[:, :, :, :0]]
    columns = torch.stack(kept, 3)
    return list(zip(*(column.unbind() for column in columns.unbind()), strict=True)), live


def _rest(cell, part, stage, arguments, cotangents):
    """The gradients of params and streams, for all steps at once."""
    if not cell.params and not cell.streams:
        return [], []
    gates = len(cell.gates) if part == "step" else cell.spans[stage][0]
    cotangents = [torch.stack(values) for values in zip(*cotangents, strict=True)]
    given = (arguments[0][:gates], *arguments[1:])
    out = graphs.call(cell, f"{part}_vjp", stage, *given, cotangents)[gates + len(cell.states) :]
    full = cotangents[0].shape
    dparams = [g.expand(full).sum((0, 1)) for g in out[: len(cell.params)]]
    given = len(cell.params) + len(cell.streams)  # then those of what is drawn, which has none
    return dparams, out[len(cell.params) : given]
