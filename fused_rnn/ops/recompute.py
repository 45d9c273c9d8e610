"""One layer from its input on; and the same without the gates kept for the backward.

With ``recompute`` the op below keeps the layer's input and the sequences of the states, and its
backward computes the gates anew: all states are known then, so they take one product over all T·B
rows per stage, and one of the input, but no walk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .. import cells, context, numerics
from ..cells import Cell, registry
from ..checks import boundary
from ..engines import choose, sequence
from . import cpu_layer, packing, products, recurrence, torch_func


def run_layer(
    cell: Cell,
    input: Tensor,
    input_weights: list[Tensor],
    input_biases: list[Tensor],
    recurrent_biases: list[Tensor],
    weights: list[Tensor],
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    *,
    added: Tensor | None = None,
    all_states: bool = False,
    recompute: bool = False,
    backend: str | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """``function.run`` from the input (T, B, I) of a layer, see ``input_part``.

    Args:
        input_weights: per direction ((X - raw gates)·H, I), or nothing where all are raw.
        input_biases, recurrent_biases: per direction (X·H,) and (R·H,), or nothing.
        added: (T, B, D, X, H), to the input parts, or None.
        all_states: return the sequences of all states, not only of the first.
        recompute: keep no gates. Inside transforms of torch.func, which derive the layer from
            within, by the reference, and with ``added``, as large as the gates, it has no effect.
    """
    chosen = choose.layer(backend, cell, input.device, input.dtype).engine
    input_weight = _cat(input_weights) if input_weights else None
    groups = (weights, states, params, streams)
    given = (input, input_weight, input_biases, recurrent_biases, *groups)
    tensors = list(_tensors(given))
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    kept = differentiated or context.recording()
    shown = len(states) if all_states else 1
    anew = recompute and added is None and kept and _can_recompute(chosen)
    if not anew and added is None and choose.takes_input(chosen, cell, tensors):
        sequences, finals = cpu_layer.run(cell, *given, save=all_states or differentiated)
        return sequences[:shown], finals
    input_bias = _input_bias(cell, input_biases, recurrent_biases)
    bias = _recurrent_bias(cell, recurrent_biases)
    if anew:
        out = _forward(
            cell.key, input, input_weight, input_bias, weights, bias, *groups[1:], False, chosen
        )
        return [s.to(input.dtype) for s in out[:shown]], out[len(states) :]
    x = input_part(cell, input, input_weight, input_bias, weights)
    x = x if added is None else x + added
    given = (x, weights, bias, states, params, streams)
    return recurrence.run(cell, *given, all_states=all_states, chosen=chosen)


def _tensors(given):
    for group in given:
        yield from group if isinstance(group, list) else [] if group is None else [group]


def _can_recompute(chosen):
    return chosen not in ("onnx", "reference") and not context.inside_transform()


def _input_bias(cell, own, recurrent) -> Tensor | None:
    """Both biases of each gate with an input part, (D·X·H,)."""
    if not own:
        return None
    if cell.x_gates == cell.recurrent_gates:
        return _cat([a + b for a, b in zip(own, recurrent, strict=True)])
    hidden, parts = len(own[0]) // len(cell.x_gates), []
    for a, b in zip(own, recurrent, strict=True):
        for begin, end, place in cell.x_runs:
            part = a[begin * hidden : end * hidden]
            if place >= 0:
                part = part + b[place * hidden : (place + end - begin) * hidden]
            parts.append(part)
    return torch.cat(parts)


def _recurrent_bias(cell, recurrent) -> Tensor | None:
    """The bias of each gate without an input part, (D, M, H), or None."""
    if not recurrent or not cell.bias_gates:
        return None
    hidden = len(recurrent[0]) // len(cell.recurrent_gates)
    runs = [slice(at * hidden, (at + end - begin) * hidden) for begin, end, at in cell.bias_runs]
    return _cat([bias[run] for bias in recurrent for run in runs]).view(
        len(recurrent), len(cell.bias_gates), hidden
    )


def _cat(tensors):
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def input_part(
    cell: Cell,
    input: Tensor,
    input_weight: Tensor | None,
    input_bias: Tensor | None,
    weights: list[Tensor],
) -> Tensor:
    """x of every gate that has one, (T, B, D, X, H): one product for all directions.

    Args:
        input: (T, B, I).
        input_weight: (D·(X - raw gates)·H, I); None where all gates with an input part are raw.
        input_bias: (D·X·H,) or None.
        weights: per stage (D, R_s·H, V_s·H), for D and H.
    """
    directions = weights[0].shape[0]
    hidden = weights[0].shape[2] // cell.source_sizes[0]
    shape = (directions, len(cell.x_gates), hidden)
    if not cell.raw_gates:
        return functional.linear(input, input_weight, input_bias).view(*input.shape[:2], *shape)
    raw = input.unsqueeze(2).expand(-1, -1, directions, -1)
    parts = dict.fromkeys(cell.raw_gates, raw)
    linear = _linear_gates(cell)
    if linear:
        x = functional.linear(input, input_weight, None)
        x = x.unflatten(-1, (directions, len(linear), hidden))
        parts.update(zip(linear, x.unbind(3), strict=True))
    x = torch.stack([parts[gate] for gate in cell.x_gates], 3)
    return x if input_bias is None else x + input_bias.view(shape)


def _linear_gates(cell):
    return [gate for gate in cell.x_gates if gate not in cell.raw_gates]


@torch.library.custom_op("fused_rnn::forward_without_gates", mutates_args=())
def _forward(
    cell: str,
    input: Tensor,
    input_weight: Tensor | None,
    input_bias: Tensor | None,
    weights: list[Tensor],
    bias: Tensor | None,
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    reverse: bool,
    backend: str,
) -> list[Tensor]:
    """Returns the sequences of the states, and the finals."""
    count = len(states)
    first = [tensor for tensor in (input_weight, input_bias) if tensor is not None]
    boundary.op(backend, input, 3, input_weights=first, weights=weights)
    boundary.input(cells.lookup(cell), input, input_weight, input_bias, weights)
    x = input_part(cells.lookup(cell), input, input_weight, input_bias, weights)
    given = (x, weights, bias, states, params, streams)
    out = torch.ops.fused_rnn.forward(cell, *given, reverse, True, backend)
    return [*out[:count], *out[count + 1 :]]


@_forward.register_fake
def _(
    cell, input, input_weight, input_bias, weights, bias, states, params, streams, reverse, backend
):
    shape = (*input.shape[:2], *states[0].shape[::2])
    cell = registry.keep(cells.lookup(cell))
    dtypes = numerics.state_dtypes(cell, input.dtype)
    return [
        *(input.new_empty(shape, dtype=dtype) for dtype in dtypes),
        *(torch.empty_like(s, memory_format=torch.contiguous_format) for s in states),
    ]


def _setup_context(ctx, inputs, output):
    cell, input, input_weight, input_bias, weights, bias, *groups, reverse, backend = inputs
    ctx.set_materialize_grads(False)
    ctx.cell, ctx.reverse, ctx.backend = cells.lookup(cell), reverse, backend
    optional = [[] if t is None else [t] for t in (input_weight, input_bias, bias)]
    groups = [[input], *optional, weights, *groups, output[: len(ctx.cell.states)]]
    packing.save(ctx, *groups)


def _pull_back(ctx, needs, grads):
    cell, reverse = ctx.cell, ctx.reverse
    groups = packing.saved(ctx)
    (input,), input_weight, input_bias, bias, weights, states, params, streams, sequences = groups
    input_weight, input_bias, bias = (
        group[0] if group else None for group in (input_weight, input_bias, bias)
    )
    count = len(states)
    # Its results are those of the other op, but for the gates in their middle.
    given = [place + (place >= count) for place, grad in enumerate(grads) if grad is not None]
    if not given:
        return packing.no_gradients(needs)
    x = input_part(cell, input, input_weight, input_bias, weights)
    pre = _gates(cell, x, weights, bias, states, params, streams, sequences, reverse)
    cotangents = [grad for grad in grads if grad is not None]
    out = recurrence.backward_op([pre, *cotangents])(
        cell.key, weights, states, params, streams, sequences, pre, cotangents, given, reverse,
        ctx.backend,
    )  # fmt: skip
    sizes = [1, count, len(params), len(streams)]
    (dpre,), dstates, dparams, dstreams = packing.split(out, sizes)
    dweights, dbias = products.gradients(
        cell, dpre, states, params, streams, sequences, pre, reverse, bias is not None
    )
    wanted = (needs[1], input_weight is not None and needs[2], input_bias is not None and needs[3])
    dinputs = products.of_input(cell, dpre, input, input_weight, wanted)
    return None, *dinputs, dweights, dbias, dstates, dparams, dstreams, None, None


_each_pull_back = torch_func.each_cotangent(_pull_back)


def _backward(ctx, grads):
    return _each_pull_back(ctx, ctx.needs_input_grad, grads)


_forward.register_autograd(_backward, setup_context=_setup_context)


def _gates(cell, x, weights, bias, states, params, streams, sequences, reverse):
    """The gates (T, B, D, G, H) of all steps at once, stage after stage."""
    before = [sequence.previous(q, s, reverse) for q, s in zip(sequences, states, strict=True)]
    gates = []
    for s, (begin, end) in enumerate(cell.spans):
        v = products.source_of(cell, s, gates, before, params, streams, x.dtype, reverse)
        own = torch.stack([_own_part(cell, g, x, bias) for g in range(begin, end)], 3)
        sums = [
            torch.addmm(
                own[:, :, d].flatten(2).flatten(0, 1), v[:, :, d].flatten(0, 1), weights[s][d].t()
            ).view(*own.shape[:2], *own.shape[3:])
            for d in range(x.shape[2])
        ]
        gates += torch.stack(sums, 2).unbind(3)
    alone = range(cell.spans[-1][1], len(cell.gates))
    return torch.stack([*gates, *(_own_part(cell, g, x, bias) for g in alone)], 3)


def _own_part(cell, g, x, bias):
    """What gate number ``g`` has besides the product, (T, B, D, H)."""
    if cell.x_index[g] >= 0:
        return x[:, :, :, cell.x_index[g]]
    if bias is None:
        return torch.zeros_like(x[:, :, :, 0])
    return bias[:, cell.bias_index[g]].expand_as(x[:, :, :, 0])
