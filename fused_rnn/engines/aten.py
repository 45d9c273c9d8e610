"""torch.nn's own kernels, cuDNN's on a GPU: when a ``Recurrent`` runs them, and how.

In a compiled graph they are one operation, where nothing is differentiated. Traced, they would
become operations per step, in a graph that grows with T. Their derivatives need a workspace of a
size that only oneDNN knows, so what is differentiated takes another road there.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from .. import cells, context
from ..cells import Cell
from ..checks import boundary
from ..plan import tuned
from . import choose, cpu_race

# By the name of the cell.
_KERNELS = {
    "rnn_tanh": torch._VF.rnn_tanh,
    "rnn_relu": torch._VF.rnn_relu,
    "lstm": torch._VF.lstm,
    "gru": torch._VF.gru,
}

# Those of one step, by the cell.
_STEPS = {
    cells.RNN_TANH: torch._VF.rnn_tanh_cell,
    cells.RNN_RELU: torch._VF.rnn_relu_cell,
    cells.LSTM: torch._VF.lstm_cell,
    cells.GRU: torch._VF.gru_cell,
}
_STEP_NAMED = {cell.name: kernel for cell, kernel in _STEPS.items()}


def has(cell: Cell) -> bool:
    """Whether torch.nn has kernels for a cell."""
    return cell.name in _KERNELS and cell is cells.get(cell.name)


def has_step(cell: Cell, dtype: torch.dtype) -> bool:
    """Whether "auto" takes torch.nn's function of one step for a cell in a plain call: it rounds
    16-bit gates at each operation."""
    return dtype in (torch.float32, torch.float64) and has(cell)


def _expect_kernels(cell):
    if not has(cell):
        raise RuntimeError(
            f'backend "aten" cannot run cell {cell.name!r}: torch.nn has kernels for '
            f"{', '.join(_KERNELS)} only"
        )


def is_chosen(
    module,
    input: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    plain: bool,
    sizes: Tensor | None = None,
) -> bool:
    """Whether a ``Recurrent`` runs them for these.

    Args:
        input: (T, B, I), or (rows, I) if it is packed.
        states: per state (L·D, B, H).
        weights: of all layers and directions, in torch.nn's order.
        plain: whether nothing is asked for that they do not have.
        sizes: of the batch at each step, where ``input`` is packed.

    Raises:
        RuntimeError: backend "aten" cannot run what it is asked for.
    """
    backend = choose.requested(module.backend)
    if context.exporting_the_old_way():  # it knows torch.nn's kernels, and none of our ops
        return plain and backend in ("auto", "aten") and has(module.cell)
    if context.exporting():
        return False
    if backend == "aten":
        if not plain:
            raise RuntimeError(
                'backend "aten" cannot run lengths, reset and return_states; use another '
                "backend, or a PackedSequence"
            )
        _expect_kernels(module.cell)
        return True
    compiling, packed = torch.compiler.is_compiling(), sizes is not None
    if (
        not plain
        or backend != "auto"
        or module.recompute
        or context.inside_transform()
        or context.recording()
        # A counter of operations sees more of our ops. Dynamo cannot trace this question.
        or (not compiling and torch._C._len_torch_dispatch_stack())
        or (compiling and (packed or not _is_one_op(module, input, states, weights)))
        or not has(module.cell)
    ):
        return False
    training = torch.is_grad_enabled() and any(
        tensor.requires_grad for tensor in itertools.chain((input, *states), weights)
    )
    if input.device.type == "cpu" and not context.interpreted():
        T, B = (len(sizes), int(sizes[0])) if packed else input.shape[:2]
        if compiling or type(T) is not int or type(B) is not int:  # or they are symbols
            return _in_graphs(module.cell.name, input.dtype, training, module.hidden_size)
        return on_cpu(module, input.dtype, training, T, B, packed, context.possible([input])).aten
    # Not measured are projections and rows of different lengths; compiling reads no files; and
    # cuDNN has no backward in evaluation.
    if module.proj_size or packed or compiling or (training and not module.training):
        return False
    directions = 2 if module.bidirectional else 1
    return tuned.aten_is_faster(module.cell, input, module.hidden_size, directions, training)


def on_cpu(
    module, dtype: torch.dtype, training: bool, T: int, B: int, packed: bool, may_time: bool
) -> cpu_race.Choice:
    """What "auto" runs a ``Recurrent`` with on CPU tensors, in a plain call; see ``choice``."""
    directions, H = 2 if module.bidirectional else 1, module.hidden_size
    features = module.input_size if module.num_layers == 1 else directions * H
    more = {"I": features, "directions": directions, "P": module.proj_size, "packed": packed}
    kind = cpu_race.kind_of(module.cell.name, dtype, training, T, B, H, **more)
    return cpu_race.choose(kind, T, B, H, may_time)


def _in_graphs(cell: str, dtype: torch.dtype, training: bool, H: int) -> bool:
    """The same for a graph: no size may be asked for, since one graph serves all."""
    T, B = 50, 8
    kind = cpu_race.kind_of(cell, dtype, training, T, B, H)
    return cpu_race.choose(kind, T, B, H, may_time=False).aten


# Called by torch.compile when it traces it, as a constant.
_in_graphs._dynamo_marked_constant = True


def forward(
    module,
    input: Tensor,
    states: list[Tensor],
    weights: list[Tensor],
    sizes: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """All layers of a ``Recurrent``.

    Args:
        input, states, weights: see ``is_chosen``.
        sizes: of the batch at each step, where ``input`` is packed.

    Returns:
        The output (T, B, D·H), or packed, and per state (L·D, B, H).
    """
    flat = weights
    if flat[0].dtype != input.dtype:  # under autocast
        flat = [weight.to(input.dtype) for weight in flat]
    hx, shape = one_or_all(states), (module.bias, module.num_layers)
    options = (*shape, module.dropout, module.training, module.bidirectional)
    kernel = _KERNELS[module.cell.name]
    if (
        torch.compiler.is_compiling()
        and sizes is None
        and _is_one_op(module, input, states, weights)
    ):
        options = (*shape, module.bidirectional)
        output, *finals = _run(module.cell.name, input, states, flat, *options)
    elif sizes is None:
        output, *finals = kernel(input, hx, flat, *options, False)
    else:
        output, *finals = kernel(input, sizes, hx, flat, *options)
    return output, finals


def way_of_step(module, input: Tensor, states: list[Tensor], autocast: bool) -> str:
    """How a ``RecurrentCell`` takes its step: "aten", torch.nn's function of one step; "step", in
    PyTorch's operations, see ``step``; or "layer", as a layer of one step.

    Args:
        input: (B, I).
        states: per state (B, H).

    Raises:
        RuntimeError: backend "aten" cannot run the module's cell.
    """
    if context.exporting():
        return "layer"
    backend = choose.requested(module.backend)
    if backend == "aten":
        _expect_kernels(module.cell)
        return "aten"
    if backend != "auto" or input.is_cuda:
        return "layer"
    # The function works in place: so transforms, and tensors that are more than plain ones, take
    # the operations.
    simple = not autocast and has_step(module.cell, input.dtype) and not context.inside_transform()
    if torch.compiler.is_compiling():  # an op, so that no cell's own function is compiled
        return "aten" if simple else "layer"
    return "aten" if simple and context.are_plain((input, *states)) else "step"


def quick_step(module, input: Tensor, hx) -> Tensor | tuple[Tensor, ...] | None:
    """What a ``RecurrentCell`` returns, if torch.nn's function is certain to be right and chosen;
    otherwise None, whatever is the matter.

    That function takes a few dozen microseconds, in which each further question shows: so the usual
    call is asked the least that will do, here, before everything else.
    """
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    kernel = None if recorded else _STEPS.get(module.cell)
    if (
        kernel is None
        or not module.bias
        or type(input) is not Tensor
        or not input.is_cpu
        or choose.requested(module.backend) != "auto"
        or torch.is_autocast_enabled("cpu")
        or context.inside_transform()
    ):
        return None
    get, dtype, shape = module._parameters.get, input.dtype, input.shape
    weights = get("weight_ih"), get("weight_hh"), get("bias_ih"), get("bias_hh")
    if (
        (dtype is not torch.float32 and dtype is not torch.float64)
        or len(shape) != 2
        or shape[1] != module.input_size
        or weights[0] is None
        or weights[0].dtype is not dtype
    ):
        return None
    for weight in weights:  # none is parametrized, nor of a subclass
        if type(weight) is not nn.Parameter or not weight.is_cpu:
            return None
    wanted, states = (shape[0], module.hidden_size), (hx,) if type(hx) is Tensor else hx
    if type(states) not in (tuple, list) or len(states) != len(module.cell.states):
        return None
    for state in states:
        if type(state) is not Tensor or state.dtype is not dtype or state.shape != wanted:
            return None
        if not state.is_cpu:
            return None
    return kernel(input, states[0] if len(states) == 1 else states, *weights)


def step(module, input: Tensor, states: list[Tensor]) -> list[Tensor]:
    """One step of a ``RecurrentCell`` by torch.nn's function; arguments as ``way_of_step``'s."""
    own = module._parameters
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if module.bias else 2]
    weights = [own.get(name) for name in names]
    if any(weight is None for weight in weights):  # parametrized
        weights = [getattr(module, name) for name in names]
    if weights[0].dtype != input.dtype:  # under autocast
        weights = [weight.to(input.dtype) for weight in weights]
    kernel = _STEP_NAMED[module.cell.name]  # Dynamo hashes no Cell
    new = kernel(input, one_or_all(states), *weights)
    return [new] if isinstance(new, Tensor) else list(new)


def one_or_all(states):
    """States as torch.nn has them: one tensor, or a tuple of several."""
    return states[0] if len(states) == 1 else tuple(states)


def _is_one_op(module, input, states, weights) -> bool:
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
    """``torch._VF.lstm`` and its kin, without dropout.

    Args:
        kind: its name there, which is that of the cell.
        input: (T, B, I).
        states: per state (L·D, B, H).
        weights: of all layers and directions, in torch.nn's order.

    Returns:
        The output (T, B, D·H), and per state (L·D, B, H).
    """
    if kind not in _KERNELS:
        raise ValueError(f"kind: expected one of {', '.join(_KERNELS)}, got {kind!r}")
    sizes = (bias, num_layers, bidirectional)
    boundary.aten(cells.get(kind), input, states, weights, *sizes)
    hx = one_or_all(states)
    options = (bias, num_layers, 0.0, False, bidirectional, False)
    return list(_KERNELS[kind](input, hx, weights, *options))


@_run.register_fake
def _(kind, input, states, weights, bias, num_layers, bidirectional):
    width = states[0].shape[2] * (2 if bidirectional else 1)
    finals = [torch.empty_like(s, memory_format=torch.contiguous_format) for s in states]
    return [input.new_empty(*input.shape[:2], width), *finals]
