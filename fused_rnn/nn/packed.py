"""A layer over rows sorted by length, as in a PackedSequence, as one call of the C++ loop.

The loop skips the rows that have ended before a step; ``segments`` computes them and masks the
result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import cells, context
from ..cells import Cell
from ..cells.steps import previous
from ..engines import choose, contract
from ..ops import cpu_layer, eager, packing, torch_func
from ..ops.layer import run_layer as run_one_layer
from . import segments


def run_layer(
    cell: Cell,
    input: Tensor,
    input_weights: list[Tensor],
    input_biases: list[Tensor],
    recurrent_biases: list[Tensor],
    weights: list[Tensor],
    states: list[Tensor],
    params: list[Tensor],
    lengths: Tensor,
    chosen: str,
) -> tuple[list[Tensor], list[Tensor]] | None:
    """``layer.run_layer`` for a cell without streams, or None where the loop cannot serve.

    Args:
        lengths: (B,), int64 on the CPU, descending from T to 1 or more.

    Returns:
        The sequences, valid within the lengths (the rest is finite), and the finals of each row
        after its own last step.
    """
    tensors = [input, *input_weights, *input_biases, *recurrent_biases, *weights, *states, *params]
    two_directions = len(states[0]) == 2
    if not input_weights or not choose.takes_input(
        chosen, cell, tensors, starts_differ=two_directions
    ):
        return None
    weight = input_weights[0] if len(input_weights) == 1 else torch.cat(input_weights)
    given = (input, weight, input_biases, recurrent_biases, weights, states, params)
    if not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        sequences, _, finals = contract.load("cpp").layer(cell, *given, [], False, lengths)
        return sequences, finals
    out = _differentiable(cell.key, lengths, *given)
    return out[: len(states)], out[len(states) + 1 :]


def _run_forward(cell: str, lengths: Tensor, *given) -> list[Tensor]:
    """Returns the sequences of the states, pre, and the finals."""
    sequences, pre, finals = contract.load("cpp").layer(
        cells.lookup(cell), *given, streams=[], save=True, lengths=lengths
    )
    return [*sequences, pre, *finals]


def _setup_context(ctx, inputs, output):
    cell, lengths, input, input_weight, *groups = inputs
    ctx.set_materialize_grads(False)
    ctx.cell = cells.lookup(cell)
    count = len(ctx.cell.states)
    groups = [[lengths, input, input_weight], *groups, output[:count], [output[count]]]
    packing.save(ctx, *groups)


def _pull_back(ctx, needs, grads):
    cell = ctx.cell
    first, *biases, weights, states, params, sequences, (pre,) = packing.saved(ctx)
    lengths, input, input_weight = first
    if all(grad is None for grad in grads):
        return packing.no_gradients(needs)
    if not context.runs_directly([pre, *(grad for grad in grads if grad is not None)]):
        given = [[input], [input_weight], *biases, weights, states, params]
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            found = _by_masks(cell, given, lengths, needs[2:], grads, again)
        return None, None, *found
    count = len(states)
    dpre, dstates, dparams, _ = contract.load("cpp").backward(
        cell,
        weights,
        states,
        params,
        [],
        sequences,
        pre,
        list(grads[:count]),
        None,
        list(grads[count + 1 :]),
        False,
        lengths,
    )
    kept = (weights, states, params, sequences, pre, dpre)
    own = _gradients_of_weights(cell, needs[1:], lengths, input, input_weight, *kept)
    return None, None, *own, dstates, dparams


def _gradients_of_weights(
    cell, needs, lengths, input, input_weight, weights, states, params, sequences, pre, dpre
):
    """``cpu_layer.gradients_of_weights`` from the rows within the lengths alone.

    They become the rows of one step, whose states before it are theirs.
    """
    within = torch.arange(len(input))[:, None] < lengths
    if cell.reads_time or 10 * int(lengths.sum()) > 9 * within.numel():
        kept = (weights, states, params, [], sequences, pre, dpre)
        return cpu_layer.gradients_of_weights(cell, needs, input, input_weight, *kept)
    rows = within.flatten().nonzero()[:, 0]

    def of_rows(sequence):
        return sequence.flatten(0, 1).index_select(0, rows).unsqueeze(0)

    # A source of one state is taken as it is; others are put together from all states and gates.
    sources = [stage.source for stage in cell.stages]
    plain = all(not callable(source) and len(source) == 1 for source in sources)
    read = {source[0] for source in sources} if plain else cell.states
    before = [
        of_rows(previous(sequence, state, False))[0].transpose(0, 1) if name in read else state
        for name, sequence, state in zip(cell.states, sequences, states, strict=True)
    ]
    if not plain:
        sequences, pre = [of_rows(sequence) for sequence in sequences], of_rows(pre)
    kept = (weights, before, params, [], sequences, pre, of_rows(dpre))
    dinput, *own = cpu_layer.gradients_of_weights(cell, needs, of_rows(input), input_weight, *kept)
    if dinput is not None:
        dinput = torch.zeros_like(input).flatten(0, 1).index_copy_(0, rows, dinput[0])
        dinput = dinput.view(input.shape)
    return dinput, *own


_differentiable = eager.differentiable(
    _run_forward, _setup_context, torch_func.each_cotangent(_pull_back)
)


def _by_masks(cell, groups, lengths, needs, grads, again):
    """Gradients by the walk with masks, which runs in every mode and can be differentiated."""
    # Views: a tensor that was passed twice has a gradient for each place.
    groups = [[tensor.view_as(tensor) for tensor in group] for group in groups]
    (input,), (input_weight,), own, recurrent, weights, states, params = groups
    rows = segments.Segments(len(input), len(states[0]), lengths, None)
    masked, carried, streams, _ = rows.carried_by(cell, states, input, False, True)
    sequences, finals = run_one_layer(
        masked,
        input,
        [input_weight],
        own,
        recurrent,
        weights,
        carried,
        params,
        streams,
        all_states=True,
        chosen="sequence",
    )
    count = len(states)
    outputs = [*sequences, *finals]
    cotangents = [*grads[:count], *grads[count + 1 :]]
    pairs = [pair for pair in zip(outputs, cotangents, strict=True) if pair[1] is not None]
    listed = [need if isinstance(need, list) else [need] for need in needs]
    wanted = [
        tensor
        for group, need in zip(groups, listed, strict=True)
        for tensor, is_wanted in zip(group, need, strict=True)
        if is_wanted
    ]
    outputs, cotangents = zip(*pairs, strict=True)
    gradients = torch.autograd.grad(
        outputs, wanted, cotangents, create_graph=again, allow_unused=True
    )
    found = iter(gradients)
    results = [[next(found) if is_wanted else None for is_wanted in need] for need in listed]
    return [r if isinstance(n, list) else r[0] for r, n in zip(results, needs, strict=True)]
