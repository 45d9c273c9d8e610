"""torch.nn.functional.linear by the C++ engine's product, faster where there are many rows.

Only for plain calls, see ``direct``: double backward is made of PyTorch's operations.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import direct, engines
from .cells import Cell

# Multiplications below which calling it takes longer than it saves.
_LEAST = 1 << 24


def linear(backend: str, cell: Cell, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The input part of a cell's gates, by what runs the cell.

    Args:
        backend: as the ops are given it, see ``engines``.
        input: (T, B, I).
        weight: (N, I).
        bias: (N,) or None.
    """
    tensors = (input, weight) if bias is None else (input, weight, bias)
    if (
        direct.possible(tensors)
        and input.numel() * len(weight) >= _LEAST
        and input.dtype in (torch.float32, torch.float64)
        and engines.runs_in_cpp(backend, cell, input)
    ):
        return _Linear.apply(input, weight, bias)
    return functional.linear(input, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, weight, bias):
        ctx.save_for_backward(input, weight)
        rows = input.flatten(0, 1)
        return engines.cpu().product(rows, weight.t(), bias).unflatten(0, input.shape[:2])

    @staticmethod
    def backward(ctx, grad):
        input, weight = ctx.saved_tensors
        needs, rows = ctx.needs_input_grad, grad.flatten(0, 1)
        dinput = dweight = dbias = None
        if needs[0]:
            once = not torch.is_grad_enabled()
            dinput = engines.cpu().product(rows, weight, None) if once else rows @ weight
            dinput = dinput.view_as(input)
        if needs[1]:
            dweight = rows.t() @ input.flatten(0, 1)
        if needs[2]:
            dbias = rows.sum(0)
        return dinput, dweight, dbias
