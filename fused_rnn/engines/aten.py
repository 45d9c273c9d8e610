"""torch.nn's own kernels, cuDNN's on a GPU, as an engine of whole modules.

In a compiled graph they are one operation, if nothing is differentiated. Traced, they would
become operations per step, in a graph that grows with T. Their derivatives need a workspace of a
size that only oneDNN knows, so calls that are differentiated do not use them there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import cells
from ..cells import Cell
from ..checks import boundary


class OfTorch(NamedTuple):
    """What torch.nn has for a cell.

    Attributes:
        layer, step: its modules.
        options: their arguments that select the cell.
        run, run_step: the functions that they call.
    """

    layer: type[nn.RNNBase]
    step: type[nn.RNNCellBase]
    options: dict[str, str]
    run: Callable
    run_step: Callable


_VF = torch._VF
# By the name of the cell: the only table of torch.nn's cells.
TORCH = {
    "rnn_tanh": OfTorch(
        nn.RNN, nn.RNNCell, {"nonlinearity": "tanh"}, _VF.rnn_tanh, _VF.rnn_tanh_cell
    ),
    "rnn_relu": OfTorch(
        nn.RNN, nn.RNNCell, {"nonlinearity": "relu"}, _VF.rnn_relu, _VF.rnn_relu_cell
    ),
    "lstm": OfTorch(nn.LSTM, nn.LSTMCell, {}, _VF.lstm, _VF.lstm_cell),
    "gru": OfTorch(nn.GRU, nn.GRUCell, {}, _VF.gru, _VF.gru_cell),
}
STEPS = {cells.get(name): theirs.run_step for name, theirs in TORCH.items()}


def has(cell: Cell, projected: bool = False) -> bool:
    """Whether torch.nn has kernels for a cell, with a projection if ``projected``."""
    if cell.name not in TORCH or cell is not cells.get(cell.name):
        return False
    return not projected or TORCH[cell.name].layer is nn.LSTM


def forward(
    module: Any,
    input: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    sizes: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """All layers of a ``Recurrent``.

    Args:
        input, states, weights: see ``choose.module``.
        sizes: of the batch at each step, where ``input`` is packed.

    Returns:
        The output (T, B, D·H), or packed, and per state (L·D, B, H).
    """
    flat = weights
    if flat[0].dtype != input.dtype:  # under autocast
        flat = [weight.to(input.dtype) for weight in flat]
    hx, shape = one_or_all(states), (module.bias, module.num_layers)
    options = (*shape, module.dropout, module.training, module.bidirectional)
    kernel = TORCH[module.cell.name].run
    if (
        torch.compiler.is_compiling()
        and sizes is None
        and is_one_op(module, input, states, weights)
    ):
        options = (*shape, module.bidirectional)
        output, *finals = _run(module.cell.name, input, states, flat, *options)
    elif sizes is None:
        output, *finals = kernel(input, hx, flat, *options, False)
    else:
        output, *finals = kernel(input, sizes, hx, flat, *options)
    return output, finals


def step(module: Any, input: Tensor, states: list[Tensor]) -> list[Tensor]:
    """One step of a ``RecurrentCell`` by torch.nn's function; arguments as in ``choose_step``."""
    own = module._parameters
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if module.bias else 2]
    weights = [own.get(name) for name in names]
    if any(weight is None for weight in weights):  # parametrized
        weights = [getattr(module, name) for name in names]
    if weights[0].dtype != input.dtype:  # under autocast
        weights = [weight.to(input.dtype) for weight in weights]
    kernel = TORCH[module.cell.name].run_step  # Dynamo hashes no Cell
    new = kernel(input, one_or_all(states), *weights)
    return [new] if isinstance(new, Tensor) else list(new)


def one_or_all(states: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
    """States as torch.nn has them: one tensor, or a tuple of several."""
    return states[0] if len(states) == 1 else tuple(states)


def is_one_op(
    module: Any, input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> bool:
    """Whether they can be one op of a compiled graph: it has no derivative and draws no dropout.
    An exported graph has none of them, since it may be differentiated."""
    if torch.compiler.is_exporting() or (module.training and module.dropout):
        return False
    tensors = (input, *states, *weights)
    return not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))


@torch.library.custom_op("fused_rnn::aten", mutates_args=())
def _run(
    kind: str,
    input: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    bias: bool,
    num_layers: int,
    bidirectional: bool,
) -> list[Tensor]:
    """Call ``torch._VF.lstm`` or a function like it, without dropout.

    Args:
        kind: its name there, which is that of the cell.
        input: (T, B, I).
        states: per state (L·D, B, H).
        weights: of all layers and directions, in torch.nn's order.

    Returns:
        The output (T, B, D·H), and per state (L·D, B, H).
    """
    if kind not in TORCH:
        raise ValueError(f"kind: expected one of {', '.join(TORCH)}, got {kind!r}")
    sizes = (bias, num_layers, bidirectional)
    boundary.aten(cells.get(kind), input, states, weights, *sizes)
    hx = one_or_all(states)
    options = (bias, num_layers, 0.0, False, bidirectional, False)
    return list(TORCH[kind].run(input, hx, weights, *options))


@_run.register_fake
def _(kind, input, states, weights, bias, num_layers, bidirectional):
    width = states[0].shape[2] * (2 if bidirectional else 1)
    finals = [torch.empty_like(s, memory_format=torch.contiguous_format) for s in states]
    return [input.new_empty(*input.shape[:2], width), *finals]
