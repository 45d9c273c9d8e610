"""Turn the recurrent modules of torch.nn inside a model into those of this package, and back.

A module stays the same object and changes its class. So parameters, optimizers, hooks,
parametrizations, tied weights and all other references to the module stay valid.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.jit import _script

from .. import cells
from ..context import check_name
from ..engines import aten
from . import gru, lstm, recurrent, recurrent_cell, rnn, torch_classes, xlstm
from .holders import asks_for

logger = logging.getLogger("fused_rnn")

# torch.nn's class, ours, and ours as a subclass of torch.nn's.
_KINDS = (
    (nn.RNN, rnn.RNN, torch_classes.RNN),
    (nn.LSTM, lstm.LSTM, torch_classes.LSTM),
    (nn.GRU, gru.GRU, torch_classes.GRU),
    (nn.RNNCell, rnn.RNNCell, torch_classes.RNNCell),
    (nn.LSTMCell, lstm.LSTMCell, torch_classes.LSTMCell),
    (nn.GRUCell, gru.GRUCell, torch_classes.GRUCell),
)
_BY_CLASS = {kind: kinds for kinds in _KINDS for kind in kinds}
_BASES = (nn.RNNBase, nn.RNNCellBase)
_NAMES = {theirs.__name__ for theirs, _, _ in _KINDS}
_LAYERS = (recurrent.Recurrent, recurrent_cell.RecurrentCell)
_OURS = (*_LAYERS, xlstm.Fused)

Rules = Mapping[type, type | Callable[[nn.Module], nn.Module | None]]


@dataclass(frozen=True)
class Conversion:
    """The outcome of ``convert`` or ``revert`` for one recurrent module.

    Attributes:
        name: of the module in the model, as in ``named_modules``; "" for the model itself.
        before: its class before, with the class's module.
        after: its class now; None if it was left as it is.
        reason: why it was left, or why this class was chosen; "" if there is nothing to say.
    """

    name: str
    before: str
    after: str | None
    reason: str = ""

    def __str__(self):
        what = "left as it is" if self.after is None else self.after
        return f"{self.name or 'the model'} ({self.before}): {what}" + (
            f", {self.reason}" if self.reason else ""
        )


def convert(
    model: nn.Module,
    *,
    backend: str | None = None,
    torch_classes: bool | None = None,
    rules: Rules | None = None,
    report: list[Conversion] | None = None,
) -> nn.Module:
    """Turn every nn.RNN, LSTM, GRU and RNNCell, LSTMCell, GRUCell in ``model`` into ours.

    In place; the keys and values of ``state_dict`` stay the same. Subclasses may have changed what
    a module does, so they are left unless a rule names them, except those that
    ``torch.nn.utils.parametrize`` makes. The logger "fused_rnn" names each converted module at
    level INFO. One warning names the modules that were left, or says that none was found.

    The sLSTM cells of the packages xlstm and tirex-ts, the recurrences of their blocks, are
    converted too: ``fused_rnn.nn.xlstm`` says how.

    Args:
        model: any module, including one of these classes.
        backend: of the modules, see ``fused_rnn.use_backend``.
        torch_classes: whether the modules become instances of torch.nn's own classes
            (``fused_rnn.torch_classes``), for code that asks ``isinstance(m, nn.LSTM)``.
            ``torch.compile`` breaks its graph at such layers unless
            ``torch._dynamo.config.allow_rnn`` is set, but not at cells. Default: cells, and layers
            inside a module whose class asks that question outside of its initialisation.
        rules: what to do with further classes, by the exact class. A subclass of
            ``fused_rnn.Recurrent`` or ``RecurrentCell`` takes its place, in place, if it adds
            nothing that must be set up. A function is called with the module and returns the one to
            put in its place, or None to leave it.
        report: a list to which one ``Conversion`` is added for each recurrent module.

    Returns:
        ``model``, or what a rule returned for it.

    Raises:
        TypeError: ``model`` is no module, or a rule or an argument is of a wrong type.
        ValueError: an unknown backend.
    """
    if backend is not None:
        check_name(backend)
    if not (torch_classes is None or isinstance(torch_classes, bool)):
        raise TypeError(f"torch_classes: expected bool or None, got {type(torch_classes).__name__}")

    def decide(module, kind, holders):
        if xlstm.is_known(kind):
            reason = xlstm.why_not(module)
            return (None, reason) if reason else (xlstm.fused(kind), "")
        theirs = _BY_CLASS[kind][0] if kind in _BY_CLASS else None
        if theirs is None or (kind is not theirs and torch_classes is None):
            return None, _why_not_converted(module, kind)
        chosen, reason = torch_classes, ""
        if chosen is None:
            chosen = issubclass(theirs, nn.RNNCellBase)
            holder = next((type(h) for h in holders if asks_for(type(h), theirs)), None)
            if holder is not None and not chosen:
                chosen, reason = True, f"since {_name(holder)} asks for {_name(theirs)}"
        return _BY_CLASS[kind][2 if chosen else 1], reason

    return _Walk(decide, rules, report, backend).run(model, "convert")


def revert(
    model: nn.Module, *, rules: Rules | None = None, report: list[Conversion] | None = None
) -> nn.Module:
    """Undo ``convert``: each module of ours that another package has becomes that one, in place.

    Others, such as a GRU whose reset gate acts before the product, stay as they are; one warning
    names them.

    Args:
        model: any module.
        rules, report: as in ``convert``; a class in ``rules`` is a subclass of torch.nn's here.

    Returns:
        ``model``, or what a rule returned for it.

    Raises:
        TypeError: ``model`` is no module, or a rule is of a wrong type.
    """

    def decide(module: Any, kind, holders):
        if isinstance(module, xlstm.Fused):
            return xlstm.original(kind), ""
        ours = isinstance(module, _LAYERS)
        more = ours and (module._by_heads or module.learn_h0 or any(module._regularizers))
        known = not ours or (aten.has(module.cell, module.proj_size > 0) and not more)
        if kind in _BY_CLASS and known:
            return _BY_CLASS[kind][0], ""
        return None, _why_not_reverted(module, kind)

    return _Walk(decide, rules, report).run(model, "revert")


class _Walk:
    """Walks through a model, turns or replaces its recurrent modules, and reports the outcome."""

    def __init__(self, decide, rules, report, backend=None):
        self.decide, self.rules, self.backend = decide, _checked(rules), backend
        self.seen, self.done, self.report = {}, [], report
        if not (report is None or isinstance(report, list)):
            raise TypeError(f"report: expected a list or None, got {type(report).__name__}")

    def run(self, model, verb):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
        result = self.visit(model, "", ())
        left = [entry for entry in self.done if entry.after is None and entry.reason]
        for entry in self.done:
            logger.info("%s: %s", verb, entry)
        if left:
            lines = "".join(f"\n  {entry}" for entry in left)
            warnings.warn(f"{verb}: not everything was turned:{lines}", stacklevel=3)
        elif not self.done:
            warnings.warn(
                f"{verb}: {_name(type(model))} has no recurrent module of torch.nn or fused_rnn",
                stacklevel=3,
            )
        if self.report is not None:
            self.report.extend(self.done)
        return result

    def visit(self, module, name, holders):
        """Turn a module and its children; returns the module to put in its place."""
        if id(module) in self.seen:
            return self.seen[id(module)]
        self.seen[id(module)] = module  # a module may hold itself
        kind, before = _kind(module), _name(type(module))
        if kind in self.rules:
            rule = self.rules[kind]
            new = module if isinstance(rule, type) else rule(module)
            if not (new is None or isinstance(new, nn.Module)):
                raise TypeError(
                    f"rules: expected a module or None for {before} {name!r}, "
                    f"got {type(new).__name__}"
                )
            if isinstance(rule, type):
                _turn(module, kind, rule, self.backend)
            after = None if new is None else _name(type(new))
            self.done.append(Conversion(name, before, after, "by a rule"))
            self.seen[id(module)] = module if new is None else new
            return self.seen[id(module)]
        new, reason = self.decide(module, kind, holders)
        if new is not None and new is not kind:
            _turn(module, kind, new, self.backend)
            self.done.append(Conversion(name, before, _name(new), reason))
        elif new is not None or reason is not None:
            self.done.append(Conversion(name, before, None, reason if new is None else ""))
        if not isinstance(module, torch.jit.ScriptModule):
            for key, child in list(module._modules.items()):
                if child is not None:
                    new = self.visit(child, f"{name}.{key}" if name else key, (*holders, module))
                    if new is not child:
                        module._modules[key] = new
        return module


def _checked(rules):
    if not (rules is None or isinstance(rules, Mapping)):
        raise TypeError(f"rules: expected a mapping from classes, got {type(rules).__name__}")
    rules = {} if rules is None else dict(rules)
    for kind, rule in rules.items():
        if not isinstance(kind, type):
            raise TypeError(f"rules: expected classes as keys, got {kind!r}")
        if isinstance(rule, type):
            _pair_of(kind, rule)
        elif not callable(rule):
            raise TypeError(
                f"rules: expected a class or a function for {_name(kind)}, got {rule!r}"
            )
    return rules


def _kind(module):
    """The class of a module, before ``torch.nn.utils.parametrize`` made one of its own."""
    kind = type(module)
    return kind.__base__ if nn.utils.parametrize.is_parametrized(module) else kind


def _pair_of(old, new):
    """torch.nn's class that both correspond to.

    Raises:
        TypeError: there is none, or neither is ours.
    """
    for theirs, plain, _ in _KINDS:
        both = all(issubclass(kind, (theirs, plain)) for kind in (old, new))
        if both and (issubclass(old, plain) or issubclass(new, plain)):
            return theirs
    raise TypeError(
        f"rules: expected subclasses of one recurrent class of torch.nn and of its counterpart in "
        f"fused_rnn, got {_name(old)} and {_name(new)}; give a function that returns a module"
    )


def _turn(module, old, new, backend=None):
    """Change the class, and the attributes that only one of the packages has."""
    if issubclass(new, xlstm.Fused):
        module._fused_backend = backend
        return _set_class(module, old, new)
    if issubclass(old, xlstm.Fused):
        del module._fused_backend
        return _set_class(module, old, new)
    theirs = _pair_of(old, new)
    plain = _BY_CLASS[theirs][1]
    taken, given = issubclass(old, plain), issubclass(new, plain)
    weights = mode = None
    if given and not taken:
        _adopt(module, theirs, backend)
    elif taken and not given:
        weights = module._all_weights if issubclass(theirs, nn.RNNBase) else None
        mode = module.mode if weights else None
        for name in ("backend", "cell", "recompute", "reset_after", "num_heads", "_heads"):
            vars(module).pop(name, None)
    _set_class(module, old, new)
    if weights is not None:
        module.mode, module._all_weights = mode, weights
        module._flat_weights_names = [name for group in weights for name in group]
        module._init_flat_weights()


def _adopt(module, theirs, backend):
    """Replace the attributes of torch.nn's classes by those of ours."""
    own = vars(module)
    for name in [n for n in own if n.startswith("_flat_weight") or n in ("_all_weights", "mode")]:
        del own[name]  # they would keep the old weights after a move
    name = theirs.__name__.removesuffix("Cell").lower()
    module.cell = cells.get(f"rnn_{module.nonlinearity}" if name == "rnn" else name)
    module.backend, module.recompute = backend, False
    if name == "gru":
        module.reset_after = True


def _set_class(module, old, new):
    """Set the class, keeping the properties that a parametrization added to the old one."""
    given = type(module)
    if given is not old:
        own = {k: v for k, v in vars(given).items() if k not in ("__dict__", "__weakref__")}
        new = type(f"Parametrized{new.__name__}", (new,), own)
    module.__class__ = new


def _why_not_converted(module, kind):
    """Why a module that looks recurrent is left; None for any other module."""
    if isinstance(module, torch.jit.ScriptModule):
        names = sorted({str(m.original_name) for m in module.modules()} & _NAMES)
        if names or kind is not _script.RecursiveScriptModule:
            what = f"has a scripted {', '.join(names)}" if names else "is scripted"
            return f"it {what}: convert the model that it was scripted from, and trace that"
        return None
    if isinstance(module, _OURS):
        return ""
    if isinstance(module, _BASES):
        parents = [base for base in kind.__mro__ if base in _BY_CLASS or base in _BASES]
        return (
            f"it is a subclass of {_name(parents[0])}, which may change what that does: "
            f"give rules={{{kind.__name__}: ...}}"
        )
    if kind.__module__.startswith("torch.ao.nn") and kind.__name__ in _NAMES:
        return "it is quantised"
    return None


def _why_not_reverted(module: Any, kind):
    if not isinstance(module, _LAYERS):
        return None
    if not getattr(module, "reset_after", True):
        return "torch.nn has no GRU with reset_after=False"
    if module._by_heads:
        return "torch.nn has no num_heads"
    if module.learn_h0:
        return "torch.nn has no learn_h0"
    if any(module._regularizers):
        return "torch.nn has no zoneout, dropout within a layer or cell_clip"
    if module.proj_size and aten.has(module.cell):
        return f"torch.nn has no projection of cell {module.cell.name!r}"
    if kind not in _BY_CLASS and any(issubclass(kind, plain) for _, plain, _ in _KINDS):
        return f"it is a subclass: give rules={{{kind.__name__}: ...}}"
    return f"torch.nn has no cell {module.cell.name!r}"


def _name(kind):
    return f"{kind.__module__}.{kind.__qualname__}"
