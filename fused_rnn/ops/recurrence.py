"""The recurrence as one differentiable operation: custom ops for every cell, and ``scan``.

Shapes of the ops carry the directions (see the legend in ``cells``): x (T, B, D, X, H), weights
per stage (D, R_s·H, V_s·H), bias (D, M, H), states (D, B, H), params (D, H), streams and the
sequences of states (T, B, D, H), pre (T, B, D, G, H). The streams of a cell that draws end with a
key, (2 + B,) in int64, see ``cells.draws``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import cells, context, numerics, products
from ..cells import Cell, reference, registry
from ..checks import boundary
from ..engines import choose, contract, onnx, sequence
from . import cpu_products, eager, packing, torch_func


def run(
    cell: Cell,
    x: Tensor,
    weights: list[Tensor],
    bias: Tensor | None,
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    *,
    x_bias: Tensor | None = None,
    reverse: bool = False,
    all_states: bool = False,
    chosen: str,
) -> tuple[list[Tensor], list[Tensor]]:
    """One layer in all its directions, unchecked: ``scan`` with the shapes of the ops.

    Args:
        x_bias: (D, X, H), added to x: by the C++ loop step by step, otherwise before.
        chosen: by ``engines.choose.layer``.

    Returns:
        The sequences of the states (only of the first unless ``all_states``), and the finals.
    """
    shown = len(cell.states) if all_states else 1
    tensors = [x, *weights, *states, *params, *streams, *([] if bias is None else [bias])]
    if x_bias is not None and not _loop_adds(cell, [*tensors, x_bias], chosen):
        x = tensors[0] = x + x_bias
        x_bias = None
    loop_adds = [] if x_bias is None else [x_bias]
    if chosen == "onnx":
        sequences, finals = onnx.run_scan(cell, x, weights, bias, states, params, streams, reverse)
        return sequences[:shown], finals
    if chosen == "reference":
        sequences, finals = reference.forward(
            cell, x, weights, bias, states, params, streams, reverse
        )
        return sequences[:shown], finals
    transformed = context.inside_transform()
    if context.recording():
        save = transformed  # otherwise the backward, if there is one, runs the forward again
    else:
        # Inside a transform a tensor does not say whether another level differentiates it.
        differentiated = transformed or any(t.requires_grad for t in (*tensors, *loop_adds))
        save = torch.is_grad_enabled() and differentiated
    save = save or all_states
    op = _forward
    if transformed:
        op = _transformable_forward
        if torch.compiler.is_compiling():
            torch_func.hide_from_dynamo()
    elif context.possible(tensors):
        if not save:  # what would stand in an op's results for nothing is not made either
            run = contract.load(choose.at_run_time(chosen, cell, x, "forward", save).engine).forward
            sequences, _, finals = run(
                cell, x, weights, bias, states, params, streams, reverse, save, *loop_adds
            )
            return sequences[:shown], finals
        op = _direct_biased_forward if loop_adds else _direct_forward
    elif context.recorded():
        registry.keep(cell)
    given = (cell.key, x, weights, bias, states, params, streams, reverse, save, chosen)
    out = op(*given, *loop_adds)
    sequences = [s if s.dtype == x.dtype else s.to(x.dtype) for s in out[:shown]]
    return sequences, out[len(cell.states) + 1 :]


def _loop_adds(cell, tensors, chosen):
    """Whether the C++ loop runs and can add the bias of x, the last of the tensors."""
    return (
        chosen in ("auto", "cpp")
        and not context.recording()
        and not context.inside_transform()
        and context.possible(tensors)
        and choose.at_run_time(chosen, cell, tensors[0]).engine == "cpp"
    )


def _run_forward(
    cell: str,
    x: Tensor,
    weights: list[Tensor],
    bias: Tensor | None,
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    reverse: bool,
    save: bool,
    backend: str,
) -> list[Tensor]:
    """Returns the sequences of the states, pre, and the finals; with ``save=False`` nothing of
    pre, and of the sequences only the first.

    Backend: see ``engines.choose.at_run_time``.
    """
    found = cells.lookup(cell)
    groups = {"weights": weights, "states": states, "params": params, "streams": streams}
    boundary.op(backend, x, 5, found, **groups, bias=[] if bias is None else [bias])
    run = contract.load(choose.at_run_time(backend, found, x, "forward", save).engine).forward
    sequences, pre, finals = run(found, x, weights, bias, states, params, streams, reverse, save)
    if not save:
        dtypes = numerics.state_dtypes(found, x.dtype)[1:]
        sequences = [sequences[0], *(x.new_empty(0, dtype=dtype) for dtype in dtypes)]
        pre = x.new_empty(0)
    return [*sequences, pre, *finals]


_forward = torch.library.custom_op("fused_rnn::forward", _run_forward, mutates_args=())


@_forward.register_fake
def _(cell, x, weights, bias, states, params, streams, reverse, save, backend):
    cell = registry.keep(cells.lookup(cell))
    steps, batch, directions, _, hidden = x.shape
    shape = (steps, batch, directions, hidden)
    sequences = [
        x.new_empty(shape if save or i == 0 else (0,), dtype=dtype)
        for i, dtype in enumerate(numerics.state_dtypes(cell, x.dtype))
    ]
    pre = x.new_empty((*shape[:3], len(cell.gates), hidden) if save else (0,))
    return [
        *sequences,
        pre,
        *(torch.empty_like(s, memory_format=torch.contiguous_format) for s in states),
    ]


def _run_backward(
    cell: str,
    weights: list[Tensor],
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    sequences: list[Tensor],
    pre: Tensor,
    cotangents: list[Tensor],
    given: list[int],
    reverse: bool,
    backend: str,
) -> list[Tensor]:
    """Returns the gradients of pre, states, params and streams; none of a key.

    Args:
        cotangents: the gradients of some results of the forward.
        given: of which, by their places there; in increasing order.
    """
    found = cells.lookup(cell)
    groups = {"weights": weights, "states": states, "params": params, "streams": streams}
    boundary.op(backend, pre, 5, found, **groups, sequences=sequences, cotangents=cotangents)
    boundary.cotangents(found, cotangents, given)
    dsequences, dpre, dfinals = _by_result(found, cotangents, given)
    what = "backward" if dpre is None else "backward of gates"
    run = contract.load(choose.at_run_time(backend, found, pre, what).engine).backward
    args = (found, weights, states, params, streams, sequences, pre)
    dpre, *groups = run(*args, dsequences, dpre, dfinals, reverse)
    return [dpre, *(g for group in groups for g in group)]


_backward = torch.library.custom_op("fused_rnn::backward", _run_backward, mutates_args=())


@_backward.register_fake
def _(cell, weights, states, params, streams, sequences, pre, cotangents, given, reverse, backend):
    given = len(cells.lookup(cell).streams)
    likes = [pre, *states, *params, *streams[:given]]
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in likes]


def _by_result(cell, cotangents, given):
    """The gradients of sequences, pre and finals, None where there is none."""
    count = len(cell.states)
    full: list[Tensor | None] = [None] * (2 * count + 1)
    for place, cotangent in zip(given, cotangents, strict=True):
        full[place] = cotangent
    return full[:count], full[count], full[count + 1 :]


def _setup_context(ctx, inputs, output):
    cell, x, weights, bias, states, params, streams, reverse, save, backend = inputs
    ctx.set_materialize_grads(False)
    ctx.cell, ctx.reverse, ctx.backend = cells.lookup(cell), reverse, backend
    ctx.has_bias = bias is not None
    count = len(ctx.cell.states)
    groups = [weights, states, params, streams, output[: count + 1]]
    if not save:  # there is neither: the backward runs the forward again
        groups[4:] = [[], [x], [bias] if ctx.has_bias else []]
    packing.save(ctx, *groups)


def _pull_back(ctx, needs, grads):
    cell, reverse = ctx.cell, ctx.reverse
    weights, states, params, streams, kept, *again = packing.saved(ctx)
    given = [place for place, grad in enumerate(grads) if grad is not None]
    if not given:
        return packing.no_gradients(needs)
    if again:
        (x,), bias = again
        args = (cell.key, x, weights, *(bias or [None]), states, params, streams)
        kept = _forward_op([x, *states])(*args, reverse, True, ctx.backend)
    sequences, pre = kept[: len(states)], kept[len(states)]
    cotangents = [grads[place] for place in given]
    out = backward_op([pre, *cotangents])(
        cell.key,
        weights,
        states,
        params,
        streams,
        sequences,
        pre,
        cotangents,
        given,
        reverse,
        ctx.backend,
    )
    (dpre,), dstates, dparams, dstreams = packing.of_backward(cell, out)
    dx = (
        products.columns(dpre, [cell.gates.index(gate) for gate in cell.x_gates])
        if needs[1]
        else None
    )
    dweights, dbias = [None] * len(weights), None
    if any(needs[2]) or needs[3]:
        kept = (weights, states, params, streams, sequences, pre)
        gradient = cpu_products.gradient_of(ctx.backend, cell, pre)
        dweights, dbias = products.gradients(cell, dpre, *kept, reverse, ctx.has_bias, gradient)
    return None, dx, dweights, dbias, dstates, dparams, dstreams, None, None, None


def _forward_op(tensors: list[Tensor]) -> Callable:
    """The forward likewise as ``backward_op``."""
    if context.inside_transform():
        return _transformable_forward
    return _run_forward if context.runs_directly(tensors) else _forward


def backward_op(tensors: list[Tensor]) -> Callable:
    """The backward as an op or, called directly in eager mode, without its wrapping.

    Args:
        tensors: the gates and the cotangents.
    """
    if context.inside_transform():
        return _transformable_backward
    return _run_backward if context.runs_directly(tensors) else _backward


def _setup_second_context(ctx, inputs, output):
    cell, *groups, pre, cotangents, given, reverse, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.cell, ctx.given, ctx.reverse = cells.lookup(cell), given, reverse
    packing.save(ctx, *groups, [pre], cotangents)


def _pull_back_twice(ctx, needs, grads):
    """By PyTorch's own derivative of ``sequence.backward``, which is made of its operations."""
    given = [place for place, grad in enumerate(grads) if grad is not None]
    if not given:
        return packing.no_gradients(needs)

    saved = ctx.saved_tensors
    places = [i for i, tensor in enumerate(saved) if tensor.is_floating_point()]  # no key

    def results(*tensors):
        weights, states, params, streams, sequences, (pre,), cotangents = packing.split(
            packing.replaced(saved, places, tensors), ctx.sizes
        )
        dsequences, dpre, dfinals = _by_result(ctx.cell, cotangents, ctx.given)
        args = (ctx.cell, weights, states, params, streams, sequences, pre)
        dpre, *others = sequence.backward(*args, dsequences, dpre, dfinals, ctx.reverse)
        flat = [dpre, *(g for group in others for g in group)]
        return [flat[place] for place in given]

    pull_back = torch.func.vjp(results, *(saved[i] for i in places))[1]
    found = pull_back([grads[place] for place in given])
    *groups, (dpre,), dcotangents = packing.split(
        packing.replaced([None] * len(saved), places, found), ctx.sizes
    )
    return None, *groups, dpre, dcotangents, None, None, None


def _register(op, setup_context, pull_back, vmap):
    """The derivatives and the vmap rule of an op; returns what takes its place in torch.func."""
    pull_back = torch_func.each_cotangent(pull_back)

    def backward(ctx, grads):
        return pull_back(ctx, ctx.needs_input_grad, grads)

    op.register_autograd(backward, setup_context=setup_context)
    op.register_vmap(functools.partial(vmap, op))
    return torch_func.transformable(op, setup_context, pull_back, vmap)


_transformable_forward = _register(_forward, _setup_context, _pull_back, torch_func.vmap_forward)
_transformable_backward = _register(
    _backward, _setup_second_context, _pull_back_twice, torch_func.vmap_backward
)
_direct_forward = eager.differentiable(
    _run_forward, _setup_context, torch_func.each_cotangent(_pull_back)
)


def _run_biased_forward(cell: str, *given: Any) -> list[Tensor]:
    *args, _, x_bias = given
    run: Any = contract.load("cpp").forward
    sequences, pre, finals = run(cells.lookup(cell), *args, x_bias)
    return [*sequences, pre, *finals]


def _pull_back_biased(ctx, needs, grads):
    first, of_x, *rest, of_bias = needs
    found = _pull_back(ctx, [first, of_x or of_bias, *rest], grads)
    dx = found[1]
    return *found, None if dx is None or not of_bias else dx.sum((0, 1))


_direct_biased_forward = eager.differentiable(
    _run_biased_forward,
    lambda ctx, inputs, output: _setup_context(ctx, inputs[:-1], output),
    torch_func.each_cotangent(_pull_back_biased),
)
