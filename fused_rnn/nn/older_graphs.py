"""Support of PyTorch's older recorders of graphs.

``torch.fx.symbolic_trace`` records one node per module. ``torch.jit.script`` raises an error that
names the alternatives. ``engines.choose`` handles ``torch.onnx.export(dynamo=False)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from torch import fx, nn

from .. import cells

if TYPE_CHECKING:
    from .layer import Layer


def as_leaf(module: nn.Module, input: object, hx: object = None, **options: object) -> fx.Proxy:
    """Record a module as one node of the graph, as ``torch.fx`` does for torch.nn's own layers.

    Otherwise fx would trace into the module, whose checks and choices need a tensor.

    Args:
        module: the module that is called.
        input: its first argument, of any type.
        hx, options: its further arguments; None and False are left out.

    Raises:
        TypeError: ``input`` is no proxy of fx.
        NotImplementedError: the module is the one that is traced, or has hooks.
    """
    name = type(module).__name__
    if not isinstance(input, fx.Proxy):
        raise TypeError(f"{name}: input: expected a Tensor, got {type(input).__name__}")
    tracer: Any = input.tracer
    if module is getattr(tracer, "root", None):
        raise NotImplementedError(
            f"torch.fx: {name} is one node of a graph and cannot be traced by itself, as in "
            "torch.nn; trace a model that holds it"
        )
    if module._forward_hooks or module._forward_pre_hooks:  # they would run in the node, too
        raise NotImplementedError(
            f"torch.fx: {name} has forward hooks, which would run twice; remove them before "
            "symbolic_trace, and register them on the traced model"
        )
    given = (input,) if hx is None else (input, hx)
    options = {
        key: value for key, value in options.items() if not (value is None or value is False)
    }
    return tracer.create_proxy("call_module", tracer.path_of_module(module), given, options)


def refuse_script(module: Layer) -> NoReturn:
    """Raise the error of ``torch.jit.script`` for a module.

    Raises:
        NotImplementedError: always.
    """
    has = module.cell in (cells.RNN_TANH, cells.RNN_RELU, cells.LSTM, cells.GRU)
    way = (
        "fused_rnn.revert(model) first, for torch.nn's module with the same weights; or "
        if has
        else ""
    )
    raise NotImplementedError(
        f"torch.jit.script cannot take {type(module).__name__}, whose engine is chosen in Python; "
        f"use {way}torch.jit.trace, torch.export or torch.compile"
    )
