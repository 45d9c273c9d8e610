"""A layer from its input on as one call of the C++ loop, for plain calls on the CPU (``direct``).

The loop makes the input part of the gates itself, for some steps at a time, which then are still in
the cache where they are used; what is differentiated keeps the gates as ``function`` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import cells, context
from ..cells import Cell
from ..engines import choose
from . import eager, products, recurrence, torch_func

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
        and not context.inside_transform()
        and context.possible(tensors)
        and choose.runs_in_cpp(chosen, cell, tensors[0])
    )


def run(
    cell: Cell,
    input: Tensor,
    input_weight: Tensor,
    input_biases: list[Tensor],
    recurrent_biases: list[Tensor],
    weights: list[Tensor],
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    *,
    save: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """``recompute.run_layer``: the sequences of all states, and the finals.

    Args:
        save: keep what a backward needs; otherwise the sequence is only that of the first state.
    """
    biases = (input_biases, recurrent_biases)
    given = (input, input_weight, *biases, weights, states, params, streams)
    if not save:
        sequences, _, finals = choose.cpu().layer(cell, *given, save)
        return sequences, finals
    out = _differentiable(cell.key, *given)
    return out[: len(states)], out[len(states) + 1 :]


def _run_forward(cell: str, *given) -> list[Tensor]:
    """Returns the sequences of the states, pre, and the finals."""
    sequences, pre, finals = choose.cpu().layer(cells.lookup(cell), *given, True)
    return [*sequences, pre, *finals]


def _setup_context(ctx, inputs, output):
    cell, input, input_weight, _, _, *groups = inputs
    ctx.set_materialize_grads(False)
    ctx.cell = cells.lookup(cell)
    count = len(ctx.cell.states)
    groups = [[input, input_weight], *groups, output[:count], [output[count]]]
    ctx.sizes = [*map(len, groups)]
    ctx.save_for_backward(*(tensor for group in groups for tensor in group))


def _pull_back(ctx, needs, grads):
    cell = ctx.cell
    groups = recurrence.grouped(ctx.saved_tensors, ctx.sizes)
    (input, input_weight), weights, states, params, streams, sequences, (pre,) = groups
    given = [place for place, grad in enumerate(grads) if grad is not None]
    if not given:
        return recurrence.no_gradients(needs)
    groups = (weights, states, params, streams, sequences)
    cotangents = [grads[place] for place in given]
    run = recurrence.backward_op([pre, *cotangents])
    out = run(cell.key, *groups, pre, cotangents, given, False, "cpp")
    (dpre,), dstates, dparams, dstreams = recurrence.grouped(out, [1, *ctx.sizes[2:5]])
    own = gradients_of_weights(cell, needs, input, input_weight, *groups, pre, dpre)
    return None, *own, dstates, dparams, dstreams


def gradients_of_weights(
    cell, needs, input, input_weight, weights, states, params, streams, sequences, pre, dpre
) -> tuple:
    """Those of the input, its weight, both kinds of biases, and the recurrent weights.

    Args:
        needs: of the arguments of ``run``.
        dpre: the gradient of the gates (T, B, D, G, H).
    """
    wanted = (*needs[1:3], False)
    *dinputs, _ = products.of_input(cell, dpre, input, input_weight, wanted, _product)
    dbiases = [None] * len(needs[3]), [None] * len(needs[4])
    if any((*needs[3], *needs[4])):
        sums = dpre.sum((0, 1))  # (D, G, H)
        places = [cell.gates.index(gate) for gate in cell.x_gates]
        dbiases = (
            [own[places].flatten() for own in sums],
            [own[: len(cell.recurrent_gates)].flatten() for own in sums],
        )
    dweights = [None] * len(weights)
    if any(needs[5]):
        dweights, _ = products.gradients(
            cell, dpre, states, params, streams, sequences, pre, False, False
        )
    return *dinputs, *dbiases, dweights


_differentiable = eager.differentiable(
    _run_forward, _setup_context, torch_func.each_cotangent(_pull_back)
)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a (..., K) · b (K, N), by the engine's own product where there is much to do."""
    if a.numel() * b.shape[1] < 1 << 24 or not recurrence.runs_directly([a, b]):
        return a @ b
    return choose.cpu().product(a.flatten(0, -2), b).view(*a.shape[:-1], b.shape[1])
