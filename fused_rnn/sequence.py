"""The recurrence in PyTorch operations on whole sequences wherever the algebra allows it.

It runs where no fused kernel does: any device, any dtype. Against a plain loop it records no graph,
keeps only the gates and states, computes the derivatives of many steps at once in the backward, and
leaves dW and dx to one product over all T·B rows.

``backward`` is written out of place: under ``create_graph=True`` it is itself differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import trace
from .cells import Cell


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which gates and states are computed: at least float32."""
    return torch.promote_types(dtype, torch.float32)


def state_dtypes(cell: Cell, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """In which dtype the sequence of each state is kept.

    The output, and what a product reads, in that of the input; a state that only ``step`` reads
    (the LSTM's c) in the accumulator's.
    """
    read = {name for stage in cell.stages if not callable(stage.source) for name in stage.source}
    return tuple(
        dtype if i == 0 or name in read else accumulator(dtype)
        for i, name in enumerate(cell.states)
    )


def previous(sequence: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    """The state before every step, (T, B, D, H), from those after it and the initial (D, B, H)."""
    parts = []
    for d in range(sequence.shape[2]):
        first, rest = initial[d].to(sequence.dtype)[None], sequence[:, :, d]
        parts.append(torch.cat([rest[1:], first] if reverse ^ (d == 1) else [first, rest[:-1]]))
    return torch.stack(parts, 2) if len(parts) > 1 else parts[0].unsqueeze(2)


def steps_taken(steps: int, directions: int, reverse: bool, device) -> Tensor:
    """``t`` of every place of the sequence and direction, (T, 1, D, 1)."""
    t = torch.arange(steps, device=device)
    order = [t.flip(0) if reverse ^ (d == 1) else t for d in range(directions)]
    return torch.stack(order, 1)[:, None, :, None]


def forward(
    cell: Cell,
    x: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None,
    states: Sequence[Tensor],
    params: Sequence[Tensor],
    streams: Sequence[Tensor],
    reverse: bool,
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """``reference.forward`` without a graph; returns the gates (T, B, D, G, H) in the middle."""
    steps, batch, directions, _, hidden = x.shape
    pre = x.new_empty(steps, batch, directions, len(cell.gates), hidden)
    for g in range(len(cell.gates)):
        if cell.x_index[g] >= 0:
            pre[:, :, :, g] = x[:, :, :, cell.x_index[g]]
        else:
            pre[:, :, :, g] = 0 if bias is None else bias[:, cell.bias_index[g]]
    dtypes = state_dtypes(cell, x.dtype)
    sequences = [x.new_empty(steps, batch, directions, hidden, dtype=dtype) for dtype in dtypes]
    finals = [state.new_empty(state.shape) for state in states]
    for d in range(directions):
        last = _walk(
            cell,
            pre[:, :, d],
            [weight[d].t() for weight in weights],
            [state[d] for state in states],
            [param[d] for param in params],
            [stream[:, :, d] for stream in streams],
            reverse ^ (d == 1),
            [sequence[:, :, d] for sequence in sequences],
        )
        for final, state in zip(finals, last, strict=True):
            final[d] = state
    return sequences, pre, finals


def _walk(cell, pre, weights, state, params, streams, reverse, sequences):
    """One direction: complete ``pre`` (T, B, G, H), fill ``sequences``, return the last state."""
    wide = accumulator(pre.dtype)
    narrow = pre.dtype != wide
    state = tuple(s.to(wide) for s in state)
    params = tuple(p.to(wide) for p in params)
    # Whatever can be sliced once for all steps is: a step is short of everything but overhead.
    blocks = [pre[:, :, begin:end].flatten(2).unbind() for begin, end in cell.spans]
    counts = [end - begin for begin, end in cell.spans]
    alone = [pre[:, :, g].to(wide).unbind() for g in range(cell.spans[-1][1], len(cell.gates))]
    flows = [stream.to(wide).unbind() for stream in streams]
    rows = [None] * len(pre)
    order = range(len(pre))
    for t, time in enumerate(reversed(order) if reverse else order):
        flow = tuple(stream[time] for stream in flows)
        gates = ()
        for s, count in enumerate(counts):
            source = cell.run_source(s, gates, state, params, flow, t)
            v = source[0] if len(source) == 1 else torch.cat(source, -1)
            block = blocks[s][time].addmm_(v.to(pre.dtype) if narrow else v, weights[s])
            gates += (block.to(wide) if narrow else block).chunk(count, -1)
        gates += tuple(gate[time] for gate in alone)
        rows[time] = state = cell.run_step(gates, state, params, flow, t)
    for sequence, values in zip(sequences, zip(*rows, strict=True), strict=True):
        sequence.copy_(torch.stack(values))
    return state


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
    wide = accumulator(pre.dtype)
    steps, _, directions, _, _ = pre.shape
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

    dgates = [run[0] for run in runs]
    dgates = torch.stack(dgates, 2) if directions > 1 else dgates[0].unsqueeze(2)
    return dgates.to(pre.dtype), join(1, 0, states), join(2, 0, params), join(3, 2, streams)


# Steps whose Jacobians are computed together: so many that they stay in the cache.
_VALUES_AT_ONCE = 32768


def _walk_back(cell, weights, arguments, dsequences, dpre, dfinals, reverse, dtype):
    """One direction. Returns dgates (T, B, G, H), dstates, dparams, dstreams.

    A step is pointwise, so its Jacobian is one number per unit, gate or state, and new state, and
    needs no gradients: it is computed for many steps at once, and what remains of a step is one
    product with it per new state, however many operations the cell has.
    """
    gates, states = arguments[0], arguments[1]
    steps, batch, hidden = gates[0].shape
    count, computed = len(gates), [s for s, g in enumerate(cell.stages) if callable(g.source)]
    dstate = [torch.zeros_like(states[0][0]) if g is None else g for g in dfinals]
    dsteps, dsources = [None] * steps, {s: [None] * steps for s in computed}
    rows = [None] * steps
    length = max(1, _VALUES_AT_ONCE // max(1, batch * hidden))
    starts = range(0, steps, length)
    for start in starts if reverse else reversed(starts):
        piece = slice(start, min(start + length, steps))
        jacobians, live = _jacobian(cell, "step", 0, arguments, piece)
        of_sources = {s: _jacobian(cell, "source", s, arguments, piece) for s in computed}
        order = range(piece.start, piece.stop)
        for time in order if reverse else reversed(order):
            dstate = [
                g if d is None else g + d[time] for g, d in zip(dstate, dsequences, strict=True)
            ]
            dsteps[time] = dstate
            columns = _product(jacobians, time - start, dstate)
            dgates = columns[:, :count]
            dstate = [None] * len(states)
            for i, g in zip(live, columns[:, count:].unbind(1), strict=True):
                dstate[i] = g
            if dpre is not None:
                dgates = dgates + dpre[time]
            for s in reversed(range(len(cell.spans))):
                begin, end = cell.spans[s]
                dsource = (dgates[:, begin:end].flatten(1).to(dtype) @ weights[s]).to(
                    gates[0].dtype
                )
                dsource = dsource.chunk(cell.source_sizes[s], -1)
                if s in of_sources:
                    dsources[s][time] = dsource
                    jacobians_s, live_s = of_sources[s]
                    columns = _product(jacobians_s, time - start, dsource)
                    earlier = dgates[:, :begin] + columns[:, :begin]
                    dgates = torch.cat([earlier, dgates[:, begin:]], 1)
                    found = zip(live_s, columns[:, begin:].unbind(1), strict=True)
                else:
                    found = zip(map(cell.states.index, cell.stages[s].source), dsource, strict=True)
                for i, g in found:
                    dstate[i] = g if dstate[i] is None else dstate[i] + g
            dstate = [torch.zeros_like(states[0][0]) if g is None else g for g in dstate]
            rows[time] = dgates
    dparams, dstreams = _rest(cell, "step", 0, arguments, dsteps)
    for s in computed:
        more = _rest(cell, "source", s, arguments, dsources[s])
        dparams = [a + b for a, b in zip(dparams, more[0], strict=True)]
        dstreams = [a + b for a, b in zip(dstreams, more[1], strict=True)]
    return torch.stack(rows), dstate, dparams, dstreams


def _product(jacobians, step, cotangents):
    """The vjp at a step, (B, columns, H)."""
    total = jacobians[0][step] * cotangents[0].unsqueeze(1)
    for jacobian, cotangent in zip(jacobians[1:], cotangents[1:], strict=True):
        total = torch.addcmul(total, jacobian[step], cotangent.unsqueeze(1))
    return total


def _jacobian(cell, part, stage, arguments, piece):
    """Per result of a step or source its derivatives by gates and states, and by which states.

    Returns:
        Per result one (B, columns, H) per step of the piece: a column for each gate, then one for
        each state that the second list numbers; the other states have no influence.
    """
    gates = len(cell.gates) if part == "step" else cell.spans[stage][0]
    results = len(cell.states) if part == "step" else cell.source_sizes[stage]
    zero = trace.zeros(cell, f"{part}_vjp", stage)
    live = [i for i in range(len(cell.states)) if not zero[gates + i]]
    cut = [tensor[piece] for tensor in arguments[0][:gates]]
    others = [
        [tensor[piece] for tensor in arguments[1]],
        arguments[2],
        [tensor[piece] for tensor in arguments[3]],
        arguments[4][piece],
    ]
    one, none = torch.ones_like(others[0][0]), torch.zeros_like(others[0][0])
    jacobians = []
    for k in range(results):
        cotangents = [one if i == k else none for i in range(results)]
        out = trace.call(cell, f"{part}_vjp", stage, cut, *others, cotangents)
        kept = [out[i] for i in (*range(gates), *(gates + i for i in live))]
        jacobians.append(torch.stack(kept, 2).unbind() if kept else none.unsqueeze(2)[:, :, :0])
    return jacobians, live


def _rest(cell, part, stage, arguments, cotangents):
    """The gradients of params and streams, for all steps at once."""
    if not cell.params and not cell.streams:
        return [], []
    gates = len(cell.gates) if part == "step" else cell.spans[stage][0]
    cotangents = [torch.stack(values) for values in zip(*cotangents, strict=True)]
    given = (arguments[0][:gates], *arguments[1:])
    out = trace.call(cell, f"{part}_vjp", stage, *given, cotangents)[gates + len(cell.states) :]
    full = cotangents[0].shape
    dparams = [g.expand(full).sum((0, 1)) for g in out[: len(cell.params)]]
    return dparams, out[len(cell.params) :]
