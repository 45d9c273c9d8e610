"""The recurrence in PyTorch operations on whole sequences wherever the algebra allows it.

It runs where no fused kernel does: any device, any dtype. Against a plain loop it records no graph,
keeps only the gates and states, evaluates everything in the backward that does not depend on the
incoming gradients at once for all steps, and leaves dW and dx to one product over all T·B rows.

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
    finals = [torch.empty_like(state) for state in states]
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
    state = tuple(s.to(wide) for s in state)
    params = tuple(p.to(wide) for p in params)
    blocks = [pre[:, :, begin:end].flatten(2).unbind() for begin, end in cell.spans]
    gates = list(zip(*(pre[:, :, g].unbind() for g in range(len(cell.gates))), strict=True))
    flows = list(zip(*(stream.to(wide).unbind() for stream in streams), strict=True))
    order = range(len(gates))
    for t, time in enumerate(reversed(order) if reverse else order):
        flow = flows[time] if flows else ()
        for s, (begin, _) in enumerate(cell.spans):
            before = tuple(gate.to(wide) for gate in gates[time][:begin])
            source = cell.run_source(s, before, state, params, flow, t)
            v = source[0] if len(source) == 1 else torch.cat(source, -1)
            blocks[s][time].addmm_(v.to(pre.dtype), weights[s])
        state = cell.run_step(tuple(gate.to(wide) for gate in gates[time]), state, params, flow, t)
        for sequence, value in zip(sequences, state, strict=True):
            sequence[time] = value
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
    steps, _, directions, count, _ = pre.shape
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

    dgates = torch.stack([run[0] for run in runs], 2).unflatten(3, (count, -1))
    return dgates, join(1, 0, states), join(2, 0, params), join(3, 2, streams)


def _walk_back(cell, weights, arguments, dsequences, dpre, dfinals, reverse, dtype):
    """One direction. Returns dgates (T, B, G·H), dstates, dparams, dstreams."""
    gates, states = arguments[0], arguments[1]
    steps, stages = gates[0].shape[0], range(len(cell.spans))
    step_rows, step_late = _hoist(cell, "step_vjp", 0, arguments)
    hoisted = {
        s: _hoist(cell, "source_vjp", s, [gates[: cell.spans[s][0]], *arguments[1:]])
        for s in stages
        if callable(cell.stages[s].source)
    }
    dstate = [g if g is not None else torch.zeros_like(states[0][0]) for g in dfinals]
    dstep, dsources = [None] * steps, {s: [None] * steps for s in hoisted}
    rows = [None] * steps
    order = range(steps)
    for time in order if reverse else reversed(order):
        dstate = [
            g if dsequence is None else g + dsequence[time]
            for g, dsequence in zip(dstate, dsequences, strict=True)
        ]
        dstep[time] = dstate
        out = step_late(*step_rows[time], *dstate)
        dgates, dstate = list(out[: len(gates)]), list(out[len(gates) :])
        if dpre is not None:
            dgates = [_sum(g, dpre[time, :, i]) for i, g in enumerate(dgates)]
        for s in reversed(stages):
            begin, end = cell.spans[s]
            block = torch.cat([_dense(g, gates) for g in dgates[begin:end]], -1)
            dsource = (block.to(dtype) @ weights[s]).to(block.dtype).chunk(cell.source_sizes[s], -1)
            if s in hoisted:
                source_rows, source_late = hoisted[s]
                dsources[s][time] = dsource
                out = source_late(*source_rows[time], *dsource)
                for i in range(begin):
                    dgates[i] = _sum(dgates[i], out[i])
                dstate = [_sum(g, more) for g, more in zip(dstate, out[begin:], strict=True)]
            else:
                for name, g in zip(cell.stages[s].source, dsource, strict=True):
                    i = cell.states.index(name)
                    dstate[i] = _sum(dstate[i], g)
        dstate = [_dense(g, gates) for g in dstate]
        rows[time] = torch.cat([_dense(g, gates) for g in dgates], -1).to(dtype)

    dparams, dstreams = _rest(cell, "step_vjp", 0, arguments, dstep)
    for s in hoisted:
        own = [gates[: cell.spans[s][0]], *arguments[1:]]
        more = _rest(cell, "source_vjp", s, own, dsources[s])
        dparams = [a + b for a, b in zip(dparams, more[0], strict=True)]
        dstreams = [a + b for a, b in zip(dstreams, more[1], strict=True)]
    return torch.stack(rows), dstate, dparams, dstreams


def _hoist(cell, part, stage, arguments):
    """The part of a vjp that needs no gradients, for all steps at once, as one tuple per step;
    and the function for the rest, which returns the gradients of gates and states."""
    sizes = [len(group) for group in arguments[:2]]
    early, late = trace.split(cell, part, stage, 0, sum(sizes))
    values = early(*(tensor for group in arguments[:4] for tensor in group), arguments[4])
    steps = arguments[1][0].shape[0]
    columns = [v.unbind() if v.dim() == 3 else (v,) * steps for v in values]
    return (list(zip(*columns, strict=True)) if columns else [()] * steps), late


def _rest(cell, part, stage, arguments, cotangents):
    """The gradients of params and streams, for all steps at once."""
    if not cell.params and not cell.streams:
        return [], []
    first = len(arguments[0]) + len(arguments[1])
    early, late = trace.split(cell, part, stage, first, first + len(cell.params + cell.streams))
    values = early(*(tensor for group in arguments[:4] for tensor in group), arguments[4])
    out = late(*values, *(torch.stack(row) for row in zip(*cotangents, strict=True)))
    out = [_dense(g, [arguments[1][0]], whole=True) for g in out]
    count = len(cell.params)
    return [g.sum((0, 1)) for g in out[:count]], out[count:]


def _sum(a, b):
    """a + b, where None is zero."""
    return b if a is None else a if b is None else a + b


def _dense(g, like, whole=False):
    """``g``, or zeros of one step's shape (the whole sequence's) for None."""
    return torch.zeros_like(like[0] if whole else like[0][0]) if g is None else g
