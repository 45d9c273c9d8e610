"""Which engine runs a call, and why: the only place that decides.

- ``module``: a whole module of layers, by torch.nn's kernels or layer by layer.
- ``layer``: one layer, or ``scan``, as far as a graph may know: "auto" leaves the rest to
- ``at_run_time``: what runs an op, asked when it runs, outside compiled graphs.

Modules of one step ask ``choose_step``. ``explain`` asks the same functions and prints their
reasons.
"""

from __future__ import annotations

import itertools
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import context, once
from ..cells import Cell
from ..plan import plan, tuned
from ..self_check import admission
from . import aten, cpu_race, onnx
from .contract import TAKES, load, why_not


class Choice(NamedTuple):
    """
    Attributes:
        engine: its name.
        reason: why, in words when printed.
    """

    engine: str
    reason: object


ASKED = "the backend asked for"
_ONNX = Choice("onnx", "a model is being exported to ONNX")
_NOTHING = frozenset()


def module(
    module: Any,
    input: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    asked: frozenset[str] = _NOTHING,
    sizes: Tensor | None = None,
) -> Choice:
    """The engine of a ``Recurrent``: "aten" for the whole of it, or that of each of its layers, see
    ``layer``.

    Args:
        input: (T, B, I), or (rows, I) if it is packed.
        states: per state (L·D, B, H).
        weights: of all layers and directions, in torch.nn's order.
        asked: of ``contract.OPTIONS``, beyond what the module says of itself.
        sizes: of the batch at each step, where ``input`` is packed.

    Raises:
        RuntimeError: the backend asked for cannot serve this; says why.
    """
    backend, exported = context.requested(module.backend), context.exported_by()
    forward_mode = context.in_forward_mode()
    of_layers = (backend, module.cell, input.device, input.dtype, exported, forward_mode)
    lacking = asked and TAKES["aten"].lacks(asked)
    if exported:
        if exported == "new" or lacking or backend not in ("auto", "aten"):
            return of_layer(*of_layers)
        if not aten.has(module.cell, module.proj_size > 0):
            return of_layer(*of_layers)
        return Choice("aten", "this exporter knows torch.nn's kernels, and no other op")
    if backend == "aten":
        if lacking:
            raise RuntimeError(
                f'backend "aten" cannot run {", ".join(lacking)}; use another backend, or for '
                "lengths a PackedSequence"
            )
        expect_torch_nn_has(module.cell, module.proj_size > 0)
        return Choice("aten", ASKED)
    compiling, packed = torch.compiler.is_compiling(), sizes is not None
    if (
        backend != "auto"
        or lacking
        or module.recompute
        or context.inside_transform()
        or context.recording()
        # A counter of operations sees more of our ops. Dynamo cannot trace this question.
        or (not compiling and torch._C._len_torch_dispatch_stack())
        or (compiling and (packed or not aten.is_one_op(module, input, states, weights)))
    ):
        return of_layer(*of_layers)
    training = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in itertools.chain((input, *states), weights)
    )
    T, B = input.shape[:2] if sizes is None else (len(sizes), int(sizes[0]))
    raced = input.device.type == "cpu" and not context.interpreted()  # see ``plain``
    if compiling or type(T) is not int or type(B) is not int:  # or they are symbols
        if raced and aten.has(module.cell, module.proj_size > 0):
            kind = (module.cell.name, input.dtype, training, module.hidden_size)
            if _in_graphs(*kind):
                return Choice("aten", "as for a layer of middling size")
        return of_layer(*of_layers)
    # Off the CPU, projections and packed rows are not measured, and cuDNN has no backward in
    # evaluation.
    in_evaluation = training and not module.training
    if not raced and (module.proj_size or packed or in_evaluation):
        return of_layer(*of_layers)
    may_time = context.possible([input])
    found = plain(module, input.dtype, input.device, T, B, training, may_time, packed)
    return found if found.engine == "aten" else of_layer(*of_layers)


def plain(
    what: Any,
    dtype: torch.dtype,
    device: torch.device,
    T: int,
    B: int,
    training: bool,
    may_time: bool,
    packed: bool = False,
) -> Choice:
    """Whether torch.nn's kernels run a module that is called with nothing special, by what was
    measured: "aten", or "layers" for the engines of its layers.

    Args:
        what: a ``Recurrent``, or a (cell, H) for one layer in one direction.
        may_time: False where nothing else may run now.
    """
    if isinstance(what, tuple):
        (cell, H), directions, more = what, 1, {}
    else:
        cell, H, directions = what.cell, what.hidden_size, 2 if what.bidirectional else 1
        features = what.input_size if what.num_layers == 1 else directions * H
        more = {"I": features, "directions": directions, "P": what.proj_size, "packed": packed}
    lacking = [] if isinstance(what, tuple) else TAKES["aten"].lacks(what._own_options)
    if lacking:
        return Choice("layers", f"torch.nn's kernels have no {', '.join(lacking)}")
    if not aten.has(cell, more.get("P", 0) > 0):
        return Choice("layers", "torch.nn has no such cell")
    if device.type == "cpu" and not context.interpreted():
        kind = cpu_race.kind_of(cell.name, dtype, training, T, B, H, **more)
        found = cpu_race.settle(kind, T, B, H, may_time)
        return Choice("aten" if found.aten else "layers", found)
    known = tuned.find(cell, T, B, H, dtype, device, directions, training)
    if known is not None and known.aten_is_fastest:
        return Choice("aten", known)
    return Choice("layers", "the kernels of torch.nn were not the fastest that was measured")


def _in_graphs(cell: str, dtype: torch.dtype, training: bool, H: int) -> bool:
    """Whether a graph has torch.nn's kernels: no size may be asked for, since one serves all."""
    T, B = 50, 8
    kind = cpu_race.kind_of(cell, dtype, training, T, B, H)
    return cpu_race.settle(kind, T, B, H, may_time=False).aten


# Called by torch.compile when it traces it, as a constant.
_in_graphs._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def layer(backend: str | None, cell: Cell, device: torch.device, dtype: torch.dtype) -> Choice:
    """Select the engine of one layer: "onnx", "reference", or the backend that an op takes.

    That is "triton", "cpp", "sequence", or "auto" if the op is to decide by ``at_run_time``.

    Raises:
        RuntimeError: the backend asked for cannot serve this cell, device or dtype; says why.
        NotImplementedError: the older exporter to ONNX is at work.
    """
    surroundings = context.exported_by(), context.in_forward_mode()
    return of_layer(context.requested(backend), cell, device, dtype, *surroundings)


def of_layer(
    backend: str,
    cell: Cell,
    device: torch.device,
    dtype: torch.dtype,
    exported: str | None,
    forward_mode: bool,
) -> Choice:
    """``layer`` where it is known what surrounds the call, as ``context`` says."""
    if exported:
        # For every backend: one that cannot serve here does not matter.
        context.expect_new_exporter(exported)
        return _ONNX
    if backend == "aten":
        raise RuntimeError(
            f'backend "aten" cannot run cell {cell.name!r} here: it runs whole modules of '
            "rnn_tanh, rnn_relu, lstm and gru; use another backend"
        )
    if backend == "reference":
        return Choice(backend, ASKED)
    if forward_mode:
        if backend == "auto":
            return Choice("reference", "only plain operations have forward-mode derivatives")
        raise RuntimeError(
            f'backend "{backend}" cannot run cell {cell.name!r} here: inside forward-mode '
            'differentiation (jvp, jacfwd, hessian); use "auto" or "reference"'
        )
    if device.type == "meta":
        return Choice("sequence", "nothing runs: any engine has these shapes")
    if backend == "cpp" and device.type != "cpu":
        raise RuntimeError(
            f'backend "cpp" cannot run cell {cell.name!r} here: the tensors are on {device}'
        )
    if backend in ("cpp", "sequence"):
        return Choice(backend, ASKED)
    if backend == "auto" and device.type == "cpu" and not context.interpreted():
        return Choice(backend, "the C++ loop, if it can be built")
    reason = why_not("triton", cell, device, dtype)
    if backend == "triton" and reason:
        raise RuntimeError(f'backend "triton" cannot run cell {cell.name!r} here: {reason}')
    if reason:
        return Choice("sequence", f'backend "triton" cannot serve: {reason}')
    return Choice(backend, "the kernels, if they pass their self-check")


def is_operator(module: Any, input: Tensor, rows: Any, all_states: bool) -> bool:
    """Whether a layer, of engine "onnx", becomes one operator of the model that is recorded.

    Args:
        rows: ``segments.Segments`` or None.
        all_states: whether the sequences of all states are wanted.
    """
    takes = TAKES["onnx operator"]
    given = {
        "proj_size": bool(module.proj_size),
        "return_states": all_states and len(module.cell.states) > 1,
        "reset": rows is not None and rows.ends is not None,
    }
    asked = module._own_options.union(option for option, is_given in given.items() if is_given)
    return module.cell in onnx.OPERATORS and input.dtype in takes.dtypes and not takes.lacks(asked)


def takes_input(
    chosen: str,
    cell: Cell,
    tensors: list[Tensor],
    starts_differ: bool = False,
) -> bool:
    """Whether the C++ engine runs a layer's input product and its recurrence in one call.

    Args:
        chosen: by ``layer``.
        tensors: all that the layer takes, its input first.
        starts_differ: whether rows start at different steps, as in the backward direction of packed
            input; the engine counts steps for all rows alike.
    """
    return (
        chosen in ("auto", "cpp")
        and tensors[0].dtype in TAKES["cpp layer"].dtypes
        and bool(cell.x_gates)
        and not cell.raw_gates
        and not (starts_differ and cell.reads_time)
        and not context.inside_transform()
        and context.possible(tensors)
        and at_run_time(chosen, cell, tensors[0], "input").engine == "cpp"
    )


_SEQUENCE = Choice("sequence", ASKED)
_SECOND = Choice("sequence", "only its backward takes a gradient of the gates")
_LOOP = Choice("cpp", "the C++ loop serves")


def at_run_time(
    backend: str, cell: Cell, like: Tensor, what: str = "forward", save: bool = True
) -> Choice:
    """The engine of an op, asked when it runs, so that no compiled graph depends on the answer.

    Args:
        backend: as the op was given it: "triton", "cpp" or "sequence"; "auto" is the kernels where
            their self-check agrees, on the CPU the C++ loop where it can be built, and otherwise
            "sequence".
        like: a tensor (T, B, D, ..., H) of the problem.
        what: "forward", "backward", "backward of gates" with a gradient of the gates, or "input",
            a whole layer, of which ``like`` is the input.
        save: whether a backward follows.

    Raises:
        RuntimeError: "cpp" cannot serve; says why.
    """
    if what == "backward of gates":
        return _SECOND
    by_auto = backend == "auto" and like.is_cpu and not context.interpreted()
    if backend == "cpp" or by_auto:
        reason = why_not("cpp", cell, like.device, like.dtype)
        if reason is None:
            return _LOOP
        if backend == "cpp":
            raise RuntimeError(f'backend "cpp" cannot run cell {cell.name!r} here: {reason}')
        _say_once(reason)
        return Choice("sequence", f'backend "cpp" cannot serve: {reason}')
    if backend == "sequence" or what == "input":
        return _SEQUENCE
    if not admission.admits(backend, cell, what, like, save):
        return Choice("sequence", "the kernels did not pass their self-check")
    return Choice("triton", _Strategy(cell, like, what, save))


class _Strategy(NamedTuple):
    """The reason for the kernels, in words when printed."""

    cell: Cell
    like: Tensor
    what: str
    save: bool

    def __str__(self):
        (T, B, D), H = self.like.shape[:3], self.like.shape[-1]
        planned = plan(self.cell, T, B, H, self.like.dtype, self.like.device, D, self.save)
        strategy = getattr(planned, self.what).strategy
        return f'the fused kernels, with strategy "{strategy}"'


def expect_torch_nn_has(cell: Cell, projected: bool = False) -> None:
    """Refuse a cell of which torch.nn has no kernels, with a projection if ``projected``."""
    if not aten.has(cell, projected):
        what = f"a projection of cell {cell.name!r}" if aten.has(cell) else f"cell {cell.name!r}"
        raise RuntimeError(
            f'backend "aten" cannot run {what}: torch.nn has kernels for '
            f"{', '.join(TAKES['aten'].cells or ())} only, with projections for lstm only"
        )


@once.once
def _say_once(reason):
    """Warn of a compiler that is absent or fails, but not of a cell that the loop does not take."""
    loop: Any = load("cpp")
    if isinstance(reason, loop.compiler.Fault):
        warnings.warn(
            'fused_rnn: backend "auto" runs "sequence" where its C++ cannot be built. Please '
            f"report this: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    elif reason == loop.compiler.why_not():
        warnings.warn(
            'fused_rnn: backend "auto" runs "sequence", which is slower, in place of the C++ loop: '
            f"{reason}. Install GCC or Clang, set FUSED_RNN_CXX to one, or ask for "
            'backend="sequence", which does not warn.',
            RuntimeWarning,
            stacklevel=2,
        )
