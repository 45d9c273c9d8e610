"""Which engine runs a module of one step, and why.

- ``step``: whatever it is called with.
- ``usual_step``: the usual call, asked first, since it takes a few dozen microseconds.
- ``plain_step``: the answer of both for a call with nothing special, which ``explain`` prints.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import context
from . import aten, choose
from .choose import Choice
from .contract import TAKES, step_of


def step(
    module: Any, input: Tensor, states: list[Tensor], autocast: bool, draws: bool = False
) -> Choice:
    """The engine of a ``RecurrentCell``: "aten", torch.nn's function of one step; "step", in
    PyTorch's operations; or that of a layer of one step, see ``choose.layer``.

    Args:
        input: (B, I).
        states: per state (B, H).
        draws: whether the cell that runs draws: in an engine's loop that costs the least.

    Raises:
        RuntimeError: backend "aten" cannot run the module's cell.
    """
    backend, exported = context.requested(module.backend), context.exported_by()
    forward_mode = context.in_forward_mode()
    asked = (backend, module.cell, input.device, input.dtype, exported, forward_mode)
    lacking = TAKES["aten step"].lacks(module._own_options)
    if backend == "aten" and not exported:
        choose.expect_torch_nn_has(module.cell)
        if lacking:
            raise RuntimeError(f'backend "aten" cannot run {lacking[0]}; use another backend')
        return Choice("aten", choose.ASKED)
    if exported or backend != "auto" or input.is_cuda:
        return choose.of_layer(*asked)
    # The function works in place: so transforms, and tensors that are more than plain ones, take
    # the operations.
    found = plain_step(module, input.dtype)
    if lacking or autocast or context.inside_transform():
        found = _OPERATIONS
    if torch.compiler.is_compiling():  # an op, so that no cell's own function is compiled
        return found if found.engine == "aten" else choose.of_layer(*asked)
    if not context.are_plain((input, *states)):
        return _OPERATIONS
    return choose.of_layer(*asked) if draws else found


_OPERATIONS = Choice("step", "a single step runs PyTorch's operations as they are")
_FUNCTION = Choice("aten", "torch.nn's own function takes a single step")
# Of the batch: with more of them, FEW_ROWS in products.h, the loop packs the weights.
MOST_ROWS = 4
_LOOP_ONCE = Choice(
    "cpp", f"without gradients the C++ loop takes a single step of up to {MOST_ROWS} rows"
)


def plain_step(module: Any, dtype: torch.dtype, B: int = 0, training: bool = True) -> Choice:
    """The same on the CPU for a call with nothing special, by its rows and whether it is
    differentiated."""
    cell, takes = module.cell, TAKES["aten step"]
    special = training or _is_special(module)
    if not special and B <= MOST_ROWS and cell.made[step_of, dtype] is not None:
        return _LOOP_ONCE
    lacking = takes.lacks(module._own_options)
    has = dtype in takes.dtypes and aten.has(cell) and not lacking
    return _FUNCTION if has else _OPERATIONS


def usual_step(module: Any, input: object, hx: Any) -> tuple[Callable, tuple] | None:
    """A function that takes the whole step, and its arguments, where all of them are in order and
    nothing but autograd sees the call; otherwise None.

    Such a function takes a few dozen microseconds, in which each further question shows: so the
    usual call is asked the least that will do, here, before everything else.
    """
    recorded = torch.compiler.is_compiling() or torch._C._is_tracing()
    if (
        recorded
        or _is_special(module)
        or type(input) is not Tensor
        or not input.is_cpu
        or context.requested(module.backend) != "auto"
        or torch.is_autocast_enabled("cpu")
        or context.inside_transform()
    ):
        return None
    cell, dtype, shape = module.cell, input.dtype, input.shape
    if (
        (dtype is not torch.float32 and dtype is not torch.float64)
        or len(shape) != 2
        or shape[1] != module.input_size
    ):
        return None
    wanted, count = (shape[0], module.hidden_size), len(cell.states)
    states = (hx,) if count == 1 else hx
    if count > 1 and (type(hx) not in (tuple, list) or len(hx) != count):
        return None
    for state in states:
        if type(state) is not Tensor or state.dtype is not dtype or state.shape != wanted:
            return None
        if not state.is_cpu:
            return None
    own = module._parameters
    names = _NAMES if module.bias else _NAMES[:2]
    weights = [own.get(name) for name in (*names, *cell.params)]
    for weight in weights:  # none is parametrized, nor of a subclass
        if type(weight) is not nn.Parameter or weight.dtype is not dtype or not weight.is_cpu:
            return None
    given = input, states[0] if count == 1 else states
    if not module.bias:
        weights[2:2] = None, None
    if shape[0] <= MOST_ROWS and _in_the_loop(input, *states, *weights):
        step = cell.made[step_of, dtype]
        if step is not None and step.fits(shape[1], wanted[1], *weights):
            return step, (*given, *weights)
    kernel = aten.STEPS.get(cell) if module.bias else None
    return None if kernel is None else (kernel, (*given, *weights))


def _is_special(module) -> bool:
    return module._by_heads or any(module._regularizers)


_NAMES = "weight_ih", "weight_hh", "bias_ih", "bias_hh"


def _in_the_loop(*tensors: Tensor | None) -> bool:
    """Whether the C++ loop may read a step's tensors where they are."""
    if torch._C._len_torch_dispatch_stack():
        return False
    differentiable = torch.is_grad_enabled()
    for tensor in tensors:  # a generator would take a microsecond more
        if tensor is None:
            continue
        if differentiable and tensor.requires_grad:
            return False
        if not tensor.is_contiguous() or tensor.is_neg() or not tensor.data_ptr():
            return False
    return True
