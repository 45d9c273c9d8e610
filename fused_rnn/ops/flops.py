"""The floating-point operations of our ops, for ``torch.utils.flop_counter``.

A counter looks them up in a table when it is made. Importing the table's module takes a second, so
ours are added when something else imports it.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable

import torch


def when_imported(name: str, act: Callable[[], None]) -> None:
    """Call ``act`` once the module ``name`` is imported: at once if it is."""
    if name in sys.modules:
        act()
    else:
        sys.meta_path.insert(0, _Finder(name, act))


class _Finder:
    """Lets the other finders find a module, and acts after it was loaded."""

    def __init__(self, name, act):
        self.name, self.act = name, act

    def find_spec(self, name, path=None, target=None):
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run, act = spec.loader.exec_module, self.act

            def exec_module(module):
                run(module)
                act()

            spec.loader.exec_module = exec_module
        return spec


def register() -> None:
    """Tell PyTorch's counter."""
    from torch.utils import flop_counter

    ops, register = torch.ops.fused_rnn, flop_counter.register_flop_formula
    register(ops.forward)(_flops_forward)
    register(ops.backward, get_raw=True)(_flops_backward)  # tensors, not their shapes
    register(ops.forward_without_gates)(_flops_of_layer)
    register(ops.aten)(_flops_of_aten)


def _flops_forward(cell, x, weights, *_, **__) -> int:
    """The recurrent products, as those of torch.nn: per step, row and value of each matrix an
    addition and a multiplication."""
    return 2 * math.prod(x[:2]) * sum(map(math.prod, weights))


def _flops_backward(cell, weights, states, params, streams, sequences, pre, *_, **__) -> int:
    """As many, but for the first step's where no initial state needs a gradient, as in torch.nn.
    The products for the weights' gradients come as operations of their own."""
    steps, batch = pre.shape[:2]
    steps -= not any(state.requires_grad for state in states)
    return 2 * steps * batch * sum(weight.numel() for weight in weights)


def _flops_of_layer(cell, input, input_weight, input_bias, weights, *_, **__) -> int:
    own = 0 if input_weight is None else math.prod(input_weight)
    return 2 * math.prod(input[:2]) * (own + sum(map(math.prod, weights)))


def _flops_of_aten(kind, input, states, weights, *_, **__) -> int:
    matrices = [weight for weight in weights if len(weight) == 2]
    return 2 * math.prod(input[:2]) * sum(map(math.prod, matrices))
