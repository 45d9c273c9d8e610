"""Layers in the operators of ONNX, while ``torch.onnx.export(..., dynamo=True)`` records a model.

Where ONNX has the cell, a layer in all its directions is one of its operators: RNN, LSTM or GRU.
Any other layer is ONNX's Scan in each direction, with the cell's own step in its body.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .. import cells
from ..cells import Cell, draws, reference


def run_operator(
    cell: Cell,
    input: Tensor,
    weights: list[dict[str, Tensor]],
    states: list[Tensor],
    rows: Any,
    zeros: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """A layer as one operator.

    Args:
        input: (T, B, I).
        weights: per direction ``weight_ih``, ``weight_hh`` and so on, see ``Recurrent``.
        states: per state (D, B, H).
        rows: ``segments.Segments`` of lengths, or None.
        zeros: whether the states are known to be zeros.

    Returns:
        The sequence of h (T, B, D, H), and per state (D, B, H) after the last step.
    """
    operator, blocks, attributes = OPERATORS[cell]
    directions, (steps, batch, _) = len(weights), input.shape
    hidden = states[0].shape[2]

    def arranged(name):
        return _stack([_arranged(w[name], blocks, hidden) for w in weights])

    bias = lengths = peepholes = None
    if "bias_ih" in weights[0]:
        bias = torch.cat([arranged("bias_ih"), arranged("bias_hh")], 1)
    if rows is not None:
        lengths = rows.valid.sum(0, dtype=torch.int32)
    if cell.params:
        none = torch.zeros_like(weights[0][cell.params[0]])
        peepholes = _stack([torch.cat([w.get(f"p_{g}", none) for g in "iof"]) for w in weights])
    given = [input, arranged("weight_ih"), arranged("weight_hh"), bias, lengths]
    given += [None] * len(states) if zeros else states
    shapes = [(steps, directions, batch, hidden), *[(directions, batch, hidden) for _ in states]]
    results = torch.onnx.ops.symbolic_multi_out(
        operator,
        [*given, peepholes] if cell.params else given,
        {
            "hidden_size": hidden,
            "direction": "bidirectional" if directions == 2 else "forward",
            **attributes(directions),
        },
        dtypes=[input.dtype] * len(shapes),
        shapes=shapes,
    )
    output, *finals = (result.to(input.device) for result in results)  # they come on the CPU
    if lengths is not None and not zeros:  # onnxruntime has zeros after no step
        some = (lengths > 0).unsqueeze(-1)
        finals = [torch.where(some, *pair) for pair in zip(finals, states, strict=True)]
    return [output.transpose(1, 2)], finals


def run_scan(
    cell: Cell,
    x: Tensor,
    weights: list[Tensor],
    bias: Tensor | None,
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    reverse: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """What ``reference.forward`` computes, as a Scan in each direction; shapes are those there."""
    time = torch.arange(x.shape[0], device=x.device)
    streams = draws.with_values(cell, streams, x.shape[0], x.shape[2], x)
    runs = [
        _scan(
            cell,
            time,
            x[:, :, d].unbind(2),
            [weight[d] for weight in weights],
            None if bias is None else bias[d],
            [state[d] for state in states],
            [param[d] for param in params],
            [stream[:, :, d] for stream in streams],
            reverse ^ (d == 1),
        )
        for d in range(x.shape[2])
    ]
    sequences = [_stack(run, 2) for run in zip(*(run[0] for run in runs), strict=True)]
    finals = [_stack(run) for run in zip(*(run[1] for run in runs), strict=True)]
    return sequences, finals


def _scan(cell, time, x, weights, bias, states, params, streams, reverse):
    from torch._higher_order_ops.scan import scan_op

    if reverse:
        x, streams = ([sequence.flip(0) for sequence in group] for group in (x, streams))
    walked, walked_form = pytree.tree_flatten((list(x), streams, time))
    fixed, fixed_form = pytree.tree_flatten((weights, [] if bias is None else [bias], params))

    def body(*tensors):
        """No size of the batch may come up in here: ``scan_op`` would lose its way with it."""
        state, rest = tensors[: len(states)], list(tensors[len(states) :])
        now, streams, t = pytree.tree_unflatten(rest[: len(walked)], walked_form)
        weights, own, params = pytree.tree_unflatten(rest[len(walked) :], fixed_form)
        bias = own[0] if own else None
        new = reference.step(cell, now, weights, bias, state, params, streams, t)
        return [copy.clone() for copy in (*new, *new)]

    def apart(tensors):
        """Copies: no two of what ``scan_op`` takes or returns may share their memory.

        Without gradients: ``scan_op`` would record its own, in which the batch's size comes up.
        """
        return [tensor.detach().clone() for tensor in tensors]

    out = list(scan_op(body, apart(states), apart(walked), tuple(apart(fixed))))
    sequences = out[len(states) :]
    return [s.flip(0) if reverse else s for s in sequences], out[: len(states)]


def _arranged(weight, blocks, hidden):
    """The blocks of rows of some gates, one below the other."""

    def block(b):
        return weight[b * hidden : (b + 1) * hidden] if b >= 0 else -block(~b)

    return torch.cat([block(b) for b in blocks])


def _stack(tensors, dim=0):
    """As torch.stack, which becomes operators on ONNX's sequences that are not folded."""
    return torch.cat([tensor.unsqueeze(dim) for tensor in tensors], dim)


# The operator of each cell; for its gates our blocks of rows, ``~b`` for block b negated; and its
# attributes for d directions. ONNX has the gates in the order i o f c and z r h. Its coupled
# gate is f = 1 - i, ours i = 1 - f: the input gate is ours of -f.
OPERATORS = {
    cells.RNN_TANH: ("RNN", (0,), lambda d: {"activations": ["Tanh"] * d}),
    cells.RNN_RELU: ("RNN", (0,), lambda d: {"activations": ["Relu"] * d}),
    cells.LSTM: ("LSTM", (0, 3, 1, 2), lambda d: {}),
    cells.CIFG_LSTM: ("LSTM", (~0, 2, 0, 1), lambda d: {"input_forget": 1}),
    cells.GRU: ("GRU", (1, 0, 2), lambda d: {"linear_before_reset": 1}),
    cells.GRU_RESET_BEFORE: ("GRU", (1, 0, 2), lambda d: {"linear_before_reset": 0}),
    **{
        cells.peephole_lstm(gates): ("LSTM", (0, 3, 1, 2), lambda d: {})
        for gates in ("i", "f", "o", "if", "io", "fo", "ifo")
    },
}
