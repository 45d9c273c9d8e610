"""Checks of a module's arguments, when it is made and called; and their display."""

from __future__ import annotations

import inspect
import numbers
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, SupportsIndex, TypeVar

import torch
from torch import Tensor

from ..cells import Cell, graphs

_Function = TypeVar("_Function", bound=Callable)
_Arguments = ParamSpec("_Arguments")


def check_arguments(
    input_size: int,
    hidden_size: int,
    num_layers: int,
    bias: bool,
    batch_first: bool,
    dropout: float,
    bidirectional: bool,
    recompute: bool,
) -> tuple[int, int, int, float]:
    """Check arguments as torch.nn's layers do, with their exception types.

    Returns:
        input_size, hidden_size, num_layers as Python's ints, and dropout as a float.
    """
    check_flags(
        bias=bias, batch_first=batch_first, bidirectional=bidirectional, recompute=recompute
    )
    input_size = whole_number("input_size", input_size, 1)
    hidden_size = whole_number("hidden_size", hidden_size, 1)
    num_layers = whole_number("num_layers", num_layers, 1)
    is_number = isinstance(dropout, numbers.Real) and not isinstance(dropout, bool)
    if not is_number or not 0 <= dropout <= 1:
        raise ValueError(f"dropout: expected a probability from 0 to 1, got {dropout!r}")
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            f"dropout={dropout} acts between layers, so it does nothing with num_layers=1",
            stacklevel=4,
        )
    return input_size, hidden_size, num_layers, float(dropout)


def check_flags(**flags: object) -> None:
    """Check that arguments are bools."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name}: expected bool, got {type(value).__name__}")


def whole_number(name: str, value: SupportsIndex, least: int | None = None) -> int:
    """Convert an argument to int; accepts numpy's integers, but no bool."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected int, got {type(value).__name__}") from None
    if least is not None and number < least:
        wanted = "a number greater than zero" if least else "zero or a greater number"
        raise ValueError(f"{name}: expected {wanted}, got {number}")
    return number


def check_projection(cell: Cell, size: int, hidden: int) -> int:
    """Check as torch.nn does, and that only the products read the projected state."""
    size = whole_number("proj_size", size)
    if size < 0 or size >= hidden:
        raise ValueError(
            f"proj_size: expected 0 or a size smaller than hidden_size {hidden}, got {size}"
        )
    if not size:
        return 0
    output = cell.states[0]
    alone = cell.stages and all(
        stage.source == (output,) and not stage.fixed for stage in cell.stages
    )
    inputs = all(gate in cell.x_gates for gate in cell.recurrent_gates)
    if not alone or not inputs or not graphs.zeros(cell, "step_vjp")[len(cell.gates)]:
        raise ValueError(
            f"proj_size: cell {cell.name!r} cannot have a projection, since its gates do not read "
            f"{output} by products with its input's gates only; got {size}"
        )
    return size


def check_heads(
    cell: Cell, num_heads: int | Sequence[int], hidden: int, proj_size: int = 0
) -> tuple[int, ...]:
    """Check ``num_heads`` of a module or of ``scan``; returns the number of each matrix.

    Raises:
        TypeError: it is neither an int nor a sequence of one int per matrix.
        ValueError: a number is below 1 or does not divide ``hidden``; or several heads of a cell
            without products, with a stage whose matrix a function makes, or with a projection.
    """
    if isinstance(num_heads, Sequence):
        given = tuple(num_heads)
        if len(given) != len(cell.matrices):
            raise ValueError(
                f"num_heads: cell {cell.name!r} expected one number or one for each of its "
                f"{len(cell.matrices)} recurrent matrices, got {given}"
            )
    else:
        given = (num_heads,) * max(1, len(cell.matrices))
    counts = tuple(whole_number("num_heads", count, 1) for count in given)
    for count in counts:
        if hidden % count:
            raise ValueError(
                f"num_heads: expected numbers that divide hidden_size {hidden}, got {num_heads}"
            )
    several = max(counts, default=1) > 1
    if several and not cell.matrices:
        raise ValueError(
            f"num_heads: cell {cell.name!r} has no recurrent product to split into heads; "
            f"expected 1, got {num_heads}"
        )
    for s, stage in enumerate(cell.stages):
        count = counts[cell.weight_index[s]]
        if count > 1 and callable(stage.weight):
            raise ValueError(
                f"num_heads: a function makes the matrix of stage {stage.gates} of cell "
                f"{cell.name!r} from a full one; expected 1, got {count}"
            )
    if several and proj_size:
        raise ValueError(
            f"num_heads: expected 1 with proj_size={proj_size}, which mixes the units of all "
            f"heads, got {num_heads}"
        )
    return counts[: len(cell.matrices)]


def expect_rows(
    tensor: Tensor, name: str, fits: bool, kind: str, shape: tuple[int, ...], input: Tensor
) -> None:
    """Check the shape of ``lengths`` or ``reset``; ``fits`` says whether its type is right."""
    if not fits:
        got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name}: expected a tensor of {kind}, got {got}")
    expect(tensor, name, shape, input, any_dtype=True)


def signed(lengths: Tensor, steps: int) -> Tensor:
    """Convert lengths to a dtype that PyTorch promotes; uint16, uint32 and uint64 are none."""
    if lengths.dtype not in (torch.uint16, torch.uint32, torch.uint64):
        return lengths
    lengths = lengths.to(torch.int64)
    return lengths.masked_fill(lengths < 0, steps)  # uint64 beyond int64


def given_states(hx: object, names: tuple[str, ...]) -> list[Tensor]:
    """Convert ``hx`` to a list of one tensor per state.

    Raises:
        TypeError: it is neither a tensor nor, of several states, a tuple or list of tensors.
        RuntimeError: the number of tensors is wrong.
    """
    wanted = f"a tuple of {len(names)} tensors {names}" if len(names) > 1 else "a Tensor"
    if isinstance(hx, Tensor):
        given = [hx]
    elif isinstance(hx, tuple | list) and len(names) > 1:
        given = list(hx)
    else:
        raise TypeError(f"hx: expected {wanted}, got {type(hx).__name__}")
    if len(given) != len(names):
        raise RuntimeError(f"hx: expected {len(names)} states {names}, got {len(given)}")
    for name, state in zip(names, given, strict=True):
        if not isinstance(state, Tensor):
            raise TypeError(f"hx: state {name}: expected a Tensor, got {type(state).__name__}")
        expect_dense(state, f"hx: state {name}")
    return given


def expect_dense(tensor: Tensor, name: str) -> None:
    """Check that a tensor is neither sparse nor nested.

    Raises:
        RuntimeError: it is, as in torch.nn.
    """
    if tensor.layout is not _DENSE:
        raise RuntimeError(f"{name}: expected a dense tensor, got one of layout {tensor.layout}")


_DENSE = torch.strided


def takes_arguments_of(base: type) -> Callable[[_Function], _Function]:
    """Decorate an ``__init__`` that passes ``*args`` and ``**kwargs`` on to that of ``base``.

    ``help`` and ``inspect.signature`` then show all arguments.
    """

    def decorate(function: Any) -> Any:
        own = list(inspect.signature(function, eval_str=True).parameters.values())
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        own = [p for p in own if p.kind not in variable]
        inherited = inspect.signature(base.__init__, eval_str=True).parameters
        known = {p.name: inherited.get(p.name, p).replace(default=p.default) for p in own}
        rest = [p for name, p in inherited.items() if name not in known and name != "cell"]
        both = [*known.values(), *rest]
        function.__signature__ = inspect.Signature(sorted(both, key=lambda p: p.kind))
        return function

    return decorate


def takes_all_arguments_of(
    base: Callable[Concatenate[Any, _Arguments], object],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, _Arguments], None]]:
    """``takes_arguments_of`` for one without arguments of its own; type checkers see them all."""
    kind: Any = base
    return takes_arguments_of(kind)


def show(module: torch.nn.Module, *values: str, **defaults: object) -> str:
    """Format the arguments of a module as in a call, without those that have their defaults.

    Args:
        values: the first arguments, as text.
        defaults: by the names of attributes.
    """
    parts = list(values)
    for name, default in defaults.items():
        value = getattr(module, name, default)
        if value != default:
            parts.append(f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}")
    return ", ".join(parts)


def expect(
    tensor: Tensor, name: str, shape: tuple[int, ...], like: Tensor, any_dtype: bool = False
) -> None:
    """Check a tensor argument.

    Raises:
        RuntimeError: its shape is not ``shape``, or its device not that of ``like``.
        ValueError: its dtype is not that of ``like``, unless any will do.
    """
    if tuple(tensor.shape) != tuple(shape):
        raise RuntimeError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.device != like.device:
        raise RuntimeError(f"{name}: expected device {like.device}, got {tensor.device}")
    if tensor.dtype != like.dtype and not any_dtype:
        raise ValueError(f"{name}: expected dtype {like.dtype}, got {tensor.dtype}")


def check_key(key: Tensor, name: str, rows: int, like: Tensor) -> None:
    """Check the key of what a cell draws for ``rows`` rows.

    Raises:
        RuntimeError: a wrong shape or device.
        ValueError: its dtype is not int64; ``cells.draw_key`` makes one.
    """
    expect(key, name, (2 + rows,), like, any_dtype=True)
    if key.dtype != torch.int64:
        raise ValueError(f"{name}: expected a key by cells.draw_key in int64, got {key.dtype}")
