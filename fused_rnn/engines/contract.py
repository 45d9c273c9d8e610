"""The contract of an engine: what it takes, and the functions that it has.

An engine is a row of ``TAKES`` and, where it runs a recurrence in ops, a module with the functions
of ``Engine``, named in ``load``. An option that not every engine has is a name in ``OPTIONS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, overload

import torch
from torch import Tensor

from .. import once
from ..cells import Cell
from ..plan import plans
from . import aten

# What a call may ask for beyond a plain sequence. Lengths and resets reach the engines of ops as a
# derived cell with streams, see ``cells.derived``.
OPTIONS = ("lengths", "reset", "return_states", "packed", "proj_size", "recompute", "num_heads")
OPTIONS += ("zoneout", "state_dropout", "recurrent_dropout", "cell_clip", "forward mode")
_OF_OPS = frozenset(OPTIONS) - {"forward mode"}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_OF_TORCH = tuple(aten.TORCH)


@dataclass(frozen=True)
class Takes:
    """What an engine takes.

    Attributes:
        options: of ``OPTIONS``.
        dtypes: of all tensors.
        devices: types of devices; None for all.
        cells: names of built-in cells; None for all cells.
    """

    options: frozenset[str]
    dtypes: tuple[torch.dtype, ...] = _FLOATS
    devices: tuple[str, ...] | None = None
    cells: tuple[str, ...] | None = None

    def lacks(self, asked: frozenset[str]) -> list[str]:
        """The options asked for that it does not take."""
        return [option for option in OPTIONS if option in asked and option not in self.options]


TAKES = {
    "triton": Takes(_OF_OPS, devices=("cuda", "cpu")),
    "cpp": Takes(_OF_OPS, devices=("cpu",)),
    # The same engine with the layer's input product inside its loop.
    "cpp layer": Takes(
        frozenset({"packed", "proj_size", "num_heads"}),
        (torch.float32, torch.float64),
        devices=("cpu",),
    ),
    "aten": Takes(frozenset({"packed", "proj_size"}), cells=_OF_TORCH),
    # One step by torch.nn's function, which rounds 16-bit gates at each operation.
    "aten step": Takes(frozenset(), (torch.float32, torch.float64), ("cpu",), _OF_TORCH),
    "sequence": Takes(_OF_OPS),
    "reference": Takes(frozenset(OPTIONS)),
    # A layer as one operator of ONNX; of every other, the loop as its Scan. onnxruntime has no
    # operator in float64.
    "onnx operator": Takes(frozenset({"lengths"}), _FLOATS[:3]),
}


class Engine(Protocol):
    """A module that runs a recurrence for the ops; shapes are those of ``ops.recurrence``."""

    def why_not(self, cell: Cell, device: torch.device, dtype: torch.dtype) -> str | None:
        """The reason why it cannot run a cell there, or None where it can."""
        ...

    def forward(
        self,
        cell: Cell,
        x: Tensor,
        weights: list[Tensor],
        bias: Tensor | None,
        states: list[Tensor],
        params: list[Tensor],
        streams: list[Tensor],
        reverse: bool,
        save: bool,
    ) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """The sequences of the states, the gates and the finals.

        Args:
            save: keep the gates and the sequences of all states; otherwise only the first sequence
                and the finals mean anything.
        """
        ...

    def backward(
        self,
        cell: Cell,
        weights: list[Tensor],
        states: list[Tensor],
        params: list[Tensor],
        streams: list[Tensor],
        sequences: list[Tensor],
        pre: Tensor,
        dsequences: list[Tensor | None],
        dpre: Tensor | None,
        dfinals: list[Tensor | None],
        reverse: bool,
    ) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """The gradients of the gates, the states, the params and the streams.

        Args:
            dpre: a gradient of the gates themselves, which only a second derivative has. Engines
                other than "sequence" are given None.
        """
        ...


class LayerEngine(Engine, Protocol):
    """The C++ engine, which also runs whole layers; its ``forward`` can add a bias to x."""

    def layer(
        self,
        cell: Cell,
        input: Tensor,
        input_weight: Tensor,
        input_biases: list[Tensor],
        recurrent_biases: list[Tensor],
        weights: list[Tensor],
        states: list[Tensor],
        params: list[Tensor],
        streams: list[Tensor],
        save: bool,
        lengths: Tensor | None = None,
        reverse: bool = False,
    ) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """The input projection and ``forward``, see ``kernels/cpu/engine.py``."""
        ...

    def backward(
        self,
        cell: Cell,
        weights: list[Tensor],
        states: list[Tensor],
        params: list[Tensor],
        streams: list[Tensor],
        sequences: list[Tensor],
        pre: Tensor,
        dsequences: list[Tensor | None],
        dpre: Tensor | None,
        dfinals: list[Tensor | None],
        reverse: bool,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]:
        """The same for ``layer`` with ``lengths``."""
        ...

    def product(self, a: Tensor, matrix: Tensor) -> Tensor:
        """a · matrix, of two dimensions."""
        ...

    def gradient(self, pairs: Sequence[tuple[Tensor, Tensor]], vectors: int, heads: int) -> Tensor:
        """``cells.heads.gradient``."""
        ...


@overload
def load(name: Literal["cpp"]) -> LayerEngine: ...
@overload
def load(name: str) -> Engine: ...
@once.once
def load(name: str) -> Any:
    """The module of an engine of ops; imported at its first use."""
    if name == "triton":
        from ..kernels.gpu import engine
    elif name == "cpp":
        from ..kernels.cpu import engine
    else:
        from . import sequence as engine
    return engine


def why_not(name: str, cell: Cell, device: torch.device, dtype: torch.dtype) -> str | None:
    """The reason why an engine of ops cannot run a cell there, or None where it can.

    "cpp" is built for the cell by this, if it was not. The answer is kept with the cell: a compiler
    that is installed or removed later is seen by the next process.
    """
    if name == "triton":
        return plans.why_not_triton(cell, device, dtype)  # it may not be installed
    takes = TAKES[name]
    if takes.devices is not None and device.type not in takes.devices:
        return f"the tensors are on {device}; it needs {takes.devices[0].upper()} tensors"
    return cell.made[load(name).why_not, device, dtype]


def step_of(cell: Cell, dtype: torch.dtype) -> Any:
    """A single step of a cell by the C++ loop, see ``kernels/cpu/step.py``; None where it takes
    none. For ``Cell.made``."""
    from ..kernels.cpu import step

    if why_not("cpp", cell, torch.device("cpu"), dtype):
        return None
    return step.Step(cell, dtype) if step.takes(cell, dtype) else None
