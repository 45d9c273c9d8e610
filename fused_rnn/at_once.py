"""A layer from its input on as one call of the C++ loop, for plain calls on the CPU (``direct``).

The loop makes the input part of the gates itself, for some steps at a time, which then are still in
the cache where they are used; what is differentiated keeps the gates as ``function`` does.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from . import backends, cells, direct, engines, function, weight_gradients
from .cells import Cell

_DTYPES = (torch.float32, torch.float64)


def serves(chosen: str, cell: Cell, tensors: list[Tensor]) -> bool:
    """
    Args:
        chosen: by ``backends.choose``.
        tensors: all that the layer takes, its input first.
    """
    return (
        chosen in ("auto", "cpp")
        and tensors[0].dtype in _DTYPES
        and bool(cell.x_gates)
        and not cell.raw_gates
        and not backends.inside_transform()
        and direct.possible(tensors)
        and engines.runs_in_cpp(chosen, cell, tensors[0])
    )


def differentiated(tensors: Iterable[Tensor]) -> bool:
    """Outside transforms, whether autograd records what is made of these."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def run(
    cell: Cell,
    input: Tensor,
    input_weight: Tensor,
    input_bias: Tensor | None,
    weights: list[Tensor],
    bias: Tensor | None,
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    save: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """``recompute.run_layer``: the sequences of all states, and the finals.

    Args:
        save: keep what a backward needs; otherwise the sequence is only that of the first state.
    """
    given = (input, input_weight, input_bias, weights, bias, states, params, streams)
    if not save:
        sequences, _, finals = _forward(cell, *given, save)
        return sequences, finals
    out = _differentiable(cell.key, *given)
    return out[: len(states)], out[len(states) + 1 :]


def _run_forward(cell: str, *given) -> list[Tensor]:
    """Returns the sequences of the states, pre, and the finals."""
    sequences, pre, finals = _forward(cells.lookup(cell), *given, True)
    return [*sequences, pre, *finals]


def _forward(
    cell, input, input_weight, input_bias, weights, bias, states, params, streams, save
) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    directions = len(states[0])
    return engines.cpu().layer(
        cell,
        input,
        _cut(input_weight, directions),
        [weight[d] for d in range(directions) for weight in weights],
        [state.clone(memory_format=torch.contiguous_format) for state in states],
        [param[d] for d in range(directions) for param in params],
        streams,
        input_biases=() if input_bias is None else _cut(input_bias, directions),
        bias=bias,
        save=save,
    )


def _cut(tensor, directions):
    return [tensor] if directions == 1 else tensor.chunk(directions)


def _setup_context(ctx, inputs, output):
    cell, input, input_weight, input_bias, weights, bias, *groups = inputs
    ctx.set_materialize_grads(False)
    ctx.cell, ctx.has_biases = cells.lookup(cell), (input_bias is not None, bias is not None)
    count = len(ctx.cell.states)
    groups = [[input, input_weight], weights, *groups, output[:count], [output[count]]]
    ctx.sizes = [*map(len, groups)]
    ctx.save_for_backward(*(tensor for group in groups for tensor in group))


def _pull_back(ctx, needs, grads):
    cell, (has_input_bias, has_bias) = ctx.cell, ctx.has_biases
    groups = function.grouped(ctx.saved_tensors, ctx.sizes)
    (input, input_weight), weights, states, params, streams, sequences, (pre,) = groups
    given = [place for place, grad in enumerate(grads) if grad is not None]
    if not given:
        return function.no_gradients(needs)
    groups = (weights, states, params, streams, sequences)
    cotangents = [grads[place] for place in given]
    run = function.backward_op(pre)
    out = run(cell.key, *groups, pre, cotangents, given, False, "cpp")
    (dpre,), dstates, dparams, dstreams = function.grouped(out, [1, *ctx.sizes[2:5]])
    dinputs = weight_gradients.of_input(
        cell, dpre, input, input_weight, (*needs[1:3], has_input_bias and needs[3]), _product
    )
    dweights, dbias = [None] * len(weights), None
    if any(needs[4]) or needs[5]:
        dweights, dbias = weight_gradients.gradients(
            cell, dpre, states, params, streams, sequences, pre, False, has_bias
        )
    return None, *dinputs, dweights, dbias, dstates, dparams, dstreams


_differentiable = direct.differentiable(_run_forward, _setup_context, _pull_back)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a (..., K) · b (K, N), by the engine's own product where there is much to do."""
    if torch.is_grad_enabled() or a.numel() * b.shape[1] < 1 << 24:
        return a @ b
    return engines.cpu().product(a.flatten(0, -2), b, None).view(*a.shape[:-1], b.shape[1])
