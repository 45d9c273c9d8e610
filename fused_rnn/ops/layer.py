"""One layer in all its directions: input projection and recurrence."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import context, products
from ..cells import Cell
from ..engines import choose
from . import cpu_layer, recurrence
from . import recompute as without_gates


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
    reverse: bool = False,
    all_states: bool = False,
    recompute: bool = False,
    chosen: str,
) -> tuple[list[Tensor], list[Tensor]]:
    """``recurrence.run`` from the input (T, B, I) of a layer, see ``products.input_part``.

    Args:
        input_weights: per direction ((X - raw gates)·H, I), or nothing where all are raw.
        input_biases, recurrent_biases: per direction (X·H,) and (R·H,), or nothing.
        added: (T, B, D, X, H), to the input parts, or None.
        reverse: walk from the last step to the first, and the second direction the other way.
        all_states: return the sequences of all states, not only of the first.
        recompute: keep no gates. Inside transforms of torch.func, which derive the layer from
            within, by the reference, and with ``added``, as large as the gates, it has no effect.
        chosen: the engine, by ``choose.layer``.
    """
    several = len(input_weights) > 1
    input_weight = products.cat(input_weights) if several else next(iter(input_weights), None)
    groups = (weights, states, params, streams)
    tensors = [input, *input_weights, *input_biases, *recurrent_biases]
    tensors += [*weights, *states, *params, *streams]
    differentiated = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    shown = len(states) if all_states else 1
    anew = recompute and added is None and _can_recompute(chosen)
    anew = anew and (differentiated or context.recording())
    takes = not anew and added is None and choose.takes_input(chosen, cell, tensors)
    if takes and input_weight is not None:
        own = (input, input_weight, input_biases, recurrent_biases)
        sequences, finals = cpu_layer.run(
            cell, *own, *groups, save=all_states or differentiated, reverse=reverse
        )
        return sequences[:shown], finals
    input_bias = products.input_bias(cell, input_biases, recurrent_biases)
    bias = products.recurrent_bias(cell, recurrent_biases)
    if anew:
        out = without_gates.forward_without_gates(
            cell.key, input, input_weight, input_bias, weights, bias, *groups[1:], reverse, chosen
        )
        return [s.to(input.dtype) for s in out[:shown]], out[len(states) :]
    x = products.input_part(cell, input, input_weight, input_bias, states)
    x = x if added is None else x + added
    given = (x, weights, bias, states, params, streams)
    return recurrence.run(cell, *given, reverse=reverse, all_states=all_states, chosen=chosen)


def _can_recompute(chosen):
    return chosen not in ("onnx", "reference") and not context.inside_transform()
