"""A layer that keeps no gates for its backward.

The op keeps the layer's input and the sequences of the states, and its
backward computes the gates anew: all states are known then, so they take one product over all T·B
rows per stage, and one of the input, but no walk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import cells, numerics, products
from ..cells import heads, reference, registry, stages
from ..cells.steps import previous
from ..checks import boundary
from . import cpu_products, packing, recurrence, torch_func


@torch.library.custom_op("fused_rnn::forward_without_gates", mutates_args=())
def forward_without_gates(
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
    boundary.input(cells.lookup(cell), input, input_weight, input_bias, states)
    x = products.input_part(cells.lookup(cell), input, input_weight, input_bias, states)
    given = (x, weights, bias, states, params, streams)
    out = torch.ops.fused_rnn.forward(cell, *given, reverse, True, backend)
    return [*out[:count], *out[count + 1 :]]


@forward_without_gates.register_fake
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
    x = products.input_part(cell, input, input_weight, input_bias, states)
    pre = _gates(cell, x, weights, bias, states, params, streams, sequences, reverse)
    cotangents = [grad for grad in grads if grad is not None]
    out = recurrence.backward_op([pre, *cotangents])(
        cell.key, weights, states, params, streams, sequences, pre, cotangents, given, reverse,
        ctx.backend,
    )  # fmt: skip
    (dpre,), dstates, dparams, dstreams = packing.of_backward(cell, out)
    kept = (weights, states, params, streams, sequences, pre)
    gradient = cpu_products.gradient_of(ctx.backend, cell, pre)
    dweights, dbias = products.gradients(cell, dpre, *kept, reverse, bias is not None, gradient)
    wanted = (needs[1], input_weight is not None and needs[2], input_bias is not None and needs[3])
    dinputs = products.of_input(cell, dpre, input, input_weight, wanted)
    return None, *dinputs, dweights, dbias, dstates, dparams, dstreams, None, None


_each_pull_back = torch_func.each_cotangent(_pull_back)


def _backward(ctx, grads):
    return _each_pull_back(ctx, ctx.needs_input_grad, grads)


forward_without_gates.register_autograd(_backward, setup_context=_setup_context)


def _gates(cell, x, weights, bias, states, params, streams, sequences, reverse):
    """The gates (T, B, D, G, H) of all steps at once, stage after stage."""
    before = [previous(q, s, reverse) for q, s in zip(sequences, states, strict=True)]
    gates, own = [], _own_parts(cell, x, bias)
    for s, (begin, end) in enumerate(cell.spans):
        gates += own[len(gates) : begin]
        flow = products.streams_of(cell, s, streams, x)
        v = products.source_of(cell, s, gates, before, params, flow, x.dtype, reverse)
        added = torch.stack(own[begin:end], 3)
        sums = [
            _with_product(cell, s, added[:, :, d], v[:, :, d], [weight[d] for weight in weights])
            for d in range(x.shape[2])
        ]
        gates += torch.stack(sums, 2).unbind(3)
    return torch.stack([*gates, *own[len(gates) :]], 3)


def _with_product(cell, stage, added, source, weights):
    """added (T, B, R, H) + the product of a stage with its source (T, B, V·H)."""
    rows, v = added.flatten(2).flatten(0, 1), source.flatten(0, 1)
    place = cell.weight_index[stage]
    if place >= 0 and heads.count(weights[place], v.shape[-1]) == 1:
        total = torch.addmm(rows, v, weights[place].t())
    else:
        total = rows + stages.product(cell, stage, v, weights)
    return total.view(added.shape)


def _own_parts(cell, x, bias):
    """Per gate what it adds to its recurrent product, (T, B, D, H)."""
    parts = x.movedim(3, 0)
    biases = None if bias is None else bias.movedim(1, 0)
    own = [reference.own_part(cell, g, parts, biases) for g in range(len(cell.gates))]
    zero = x.new_zeros(())
    return [(p if isinstance(p, Tensor) else zero).expand_as(parts[0]) for p in own]
