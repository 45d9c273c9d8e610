"""Turn the recurrent modules of torch.nn inside a model into those of this package, and back.

A module stays the object that it is and changes its class: so parameters, optimizers, hooks,
parametrizations, tied weights and whoever else holds the module keep what they have.
"""

from __future__ import annotations

from torch import nn

from . import backends, cells, modules, one_step

_PAIRS = (
    (nn.RNN, modules.RNN),
    (nn.LSTM, modules.LSTM),
    (nn.GRU, modules.GRU),
    (nn.RNNCell, one_step.RNNCell),
    (nn.LSTMCell, one_step.LSTMCell),
    (nn.GRUCell, one_step.GRUCell),
)
_OURS, _THEIRS = dict(_PAIRS), {mine: theirs for theirs, mine in _PAIRS}


def convert(model: nn.Module, *, backend: str | None = None) -> nn.Module:
    """Turn every nn.RNN, LSTM, GRU and RNNCell, LSTMCell, GRUCell in ``model`` into ours.

    In place; the keys and values of ``state_dict`` stay the same. Subclasses, which may have
    changed what a module does, stay as they are, except those that
    ``torch.nn.utils.parametrize`` makes.

    Args:
        model: any module, also one of those itself.
        backend: of the modules, see ``fused_rnn.use_backend``.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: an unknown backend.
    """
    if backend is not None:
        backends.check_name(backend)
    for module, kind in _found(model, _OURS):
        module.backend = backend
        module.recompute = False
        module.cell = cells.get(_cell_name(module, kind))
        for name in [n for n in vars(module) if n.startswith("_flat_weight")]:
            delattr(module, name)  # they would hold the weights of before a move
        for name in ("_all_weights", "mode"):
            vars(module).pop(name, None)
        if kind is nn.GRU:
            module.reset_after = True
        elif kind is nn.RNN:
            module.nonlinearity = module.cell.name.removeprefix("rnn_")
        _turn(module, kind, _OURS[kind])
    return model


def revert(model: nn.Module) -> nn.Module:
    """Undo ``convert``: every module of ours that torch.nn has too becomes torch.nn's, in place.

    Others, such as a GRU whose reset gate acts before the product, stay as they are.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is no module.
    """
    for module, kind in _found(model, _THEIRS):
        if not getattr(module, "reset_after", True):
            continue
        theirs, weights = _THEIRS[kind], None
        if issubclass(theirs, nn.RNNBase):
            module.mode = module.cell.name.upper()
            weights = modules.weight_names(module)
        for name in ("backend", "cell", "recompute", "reset_after"):
            vars(module).pop(name, None)
        _turn(module, kind, theirs)
        if weights is not None:
            module._all_weights = weights
            module._flat_weights_names = [name for group in weights for name in group]
            module._init_flat_weights()
    return model


def _found(model, kinds):
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    found = []
    for module in model.modules():
        kind = type(module)
        if nn.utils.parametrize.is_parametrized(module):
            kind = kind.__base__
        if kind in kinds:
            found.append((module, kind))
    return found


def _turn(module, old, new):
    """The class ``new``; the properties that a parametrization gave the old one go with it."""
    given = type(module)
    if given is not old:
        own = {k: v for k, v in vars(given).items() if k not in ("__dict__", "__weakref__")}
        new = type(f"Parametrized{new.__name__}", (new,), own)
    module.__class__ = new


def _cell_name(module, kind):
    if kind in (nn.RNN, nn.RNNCell):
        return f"rnn_{module.nonlinearity}"
    return "lstm" if kind in (nn.LSTM, nn.LSTMCell) else "gru"
