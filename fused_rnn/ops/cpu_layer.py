"""Input projection and recurrence of a layer in one C++ call, for plain calls on the CPU.

The loop makes the input part of the gates itself, for some steps at a time, which then are still in
the cache where they are used; what is differentiated keeps the gates as ``recurrence`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import products
from ..cells import Cell
from ..engines import contract
from . import cpu_products, eager, packing, recurrence, torch_func


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
    reverse: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """``layer.run_layer``: the sequences of all states, and the finals.

    Args:
        save: keep what a backward needs; otherwise the sequence is only that of the first state.
    """
    biases = (input_biases, recurrent_biases)
    given = (input, input_weight, *biases, weights, states, params, streams)
    if not save:
        sequences, _, finals = contract.load("cpp").layer(cell, *given, save, reverse=reverse)
        return sequences, finals
    out = _differentiable(cell, *given, reverse)
    return out[: len(states)], out[len(states) + 1 :]


def _run_forward(cell: Cell, *given) -> list[Tensor]:
    """Returns the sequences of the states, pre, and the finals."""
    *given, reverse = given
    sequences, pre, finals = contract.load("cpp").layer(cell, *given, save=True, reverse=reverse)
    return [*sequences, pre, *finals]


def _setup_context(ctx, inputs, output):
    cell, input, input_weight, _, _, *groups, reverse = inputs
    ctx.set_materialize_grads(False)
    ctx.cell, ctx.reverse, count = cell, reverse, len(cell.states)
    groups = [[input, input_weight], *groups, output[:count], [output[count]]]
    packing.save(ctx, *groups)


def _pull_back(ctx, needs, grads):
    cell, reverse = ctx.cell, ctx.reverse
    groups = packing.saved(ctx)
    (input, input_weight), weights, states, params, streams, sequences, (pre,) = groups
    given = [place for place, grad in enumerate(grads) if grad is not None]
    if not given:
        return packing.no_gradients(needs)
    groups = (weights, states, params, streams, sequences)
    cotangents = [grads[place] for place in given]
    run = recurrence.backward_op([pre, *cotangents])
    out = run(cell.key, *groups, pre, cotangents, given, reverse, "cpp")
    (dpre,), dstates, dparams, dstreams = packing.of_backward(cell, out)
    own = gradients_of_weights(cell, needs, input, input_weight, *groups, pre, dpre, reverse)
    return None, *own, dstates, dparams, dstreams, None


def gradients_of_weights(
    cell: Cell,
    needs: Sequence[Any],
    input: Tensor,
    input_weight: Tensor,
    weights: list[Tensor],
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    sequences: list[Tensor],
    pre: Tensor,
    dpre: Tensor,
    reverse: bool = False,
) -> tuple:
    """Those of the input, its weight, both kinds of biases, and the recurrent weights.

    Args:
        needs: of the arguments of ``run``.
        dpre: the gradient of the gates (T, B, D, G, H).
    """
    product, gradient = cpu_products.product, cpu_products.gradient
    wanted = (*needs[1:3], False)
    *dinputs, _ = products.of_input(cell, dpre, input, input_weight, wanted, product, gradient)
    dbiases = [None] * len(needs[3]), [None] * len(needs[4])
    if any((*needs[3], *needs[4])):
        sums = dpre.sum((0, 1))  # (D, G, H)
        groups = (cell.x_gates, cell.recurrent_gates)
        places = [[cell.gates.index(gate) for gate in group] for group in groups]
        pairs = zip(needs[3:5], places, strict=True)
        dbiases = [
            [own[at].flatten() for own in sums] if given and at else [] for given, at in pairs
        ]
    dweights = [None] * len(weights)
    if any(needs[5]):
        dweights, _ = products.gradients(
            cell, dpre, weights, states, params, streams, sequences, pre, reverse, False, gradient
        )
    return *dinputs, *dbiases, dweights


_differentiable = eager.differentiable(
    _run_forward, _setup_context, torch_func.each_cotangent(_pull_back)
)
