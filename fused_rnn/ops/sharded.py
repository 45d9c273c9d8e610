"""Layers on tensors of ``torch.distributed.tensor``: each process runs its own rows of the batch.

A mesh dim over which the batch of the input is sharded stays so; over any other one all tensors are
replicated. Gradients of what all rows share are sums over the processes (``Partial``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..cells import Cell

if TYPE_CHECKING:  # slow to import
    from torch.distributed.tensor import DTensor


def is_distributed(tensor: object) -> TypeGuard[DTensor]:
    """Whether a tensor is a DTensor."""
    library = sys.modules.get("torch.distributed.tensor")
    return library is not None and isinstance(tensor, library.DTensor)


def run_module(
    module: nn.Module,
    input: DTensor,
    batch_dim: int | None,
    given: dict[str, tuple[Any, int | None]],
    rest: dict[str, Any],
) -> Any:
    """``module.forward`` of a DTensor and such parameters.

    Args:
        batch_dim: of ``input``, or None.
        given: the other arguments by name, each with its own dim of the batch or None.
        rest: arguments that are no DTensors.

    Returns:
        What ``forward`` does; the output has its batch where ``input`` has it, the states where
        ``hx`` has it, ``given["hx"]``.

    Raises:
        TypeError: a tensor is not a DTensor on the same mesh.
        RuntimeError: dropout on rows that several processes have, each of which would draw its own,
            or of a matrix.
    """
    rows = _Rows(input, batch_dim)
    _expect_to_draw_once(module, rows, input, rest["key"] is None)
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    own = {f"module.{name}": rows.local(t, name, None) for name, t in state.items()}
    local = {
        name: pytree.tree_map_only(Tensor, lambda t, n=name, d=dim: rows.local(t, n, d), value)
        for name, (value, dim) in given.items()
    }
    found = torch.func.functional_call(
        _Forward(module), own, (rows.local(input, "input", batch_dim),), {**local, **rest}
    )
    hidden = given["hx"][1]
    if "lengths" not in given:  # a step returns its states
        return pytree.tree_map(lambda t: rows.back(t, hidden), found)
    output, states = found
    return (
        pytree.tree_map(lambda t: rows.back(t, batch_dim), output),
        pytree.tree_map(lambda t: rows.back(t, hidden), states),
    )


def run_scan(
    function: Callable[..., tuple[Any, tuple[Tensor, ...]]],
    cell: Cell,
    tensors: dict[str, Any],
    rest: dict[str, Any],
) -> tuple[Any, tuple[Tensor, ...]]:
    """``scan.scan`` of DTensors, by name."""
    dims = {"x_part": 1, "states": 0, "streams": 1}
    rows = _Rows(tensors["x_part"], 1)
    local = {
        name: pytree.tree_map_only(Tensor, lambda t, n=name: rows.local(t, n, dims.get(n)), value)
        for name, value in tensors.items()
    }
    sequences, finals = function(cell, **local, **rest)
    return (
        pytree.tree_map(lambda t: rows.back(t, 1), sequences),
        tuple(rows.back(t, 0) for t in finals),
    )


class _Forward(nn.Module):
    """A module without its hooks, which have run."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module.forward(*args, **kwargs)


def _expect_to_draw_once(module, rows, input, draws):
    """Check that no two processes draw for the same rows or the same matrix.

    Args:
        draws: whether the call draws the key of what its steps draw.
    """
    between = getattr(module, "dropout", 0) and getattr(module, "num_layers", 1) > 1
    own, training = module._regularizers, module.training
    for name, given in (
        ("dropout", training and between),
        ("zoneout", training and draws and own.zoneout),
        ("state_dropout", training and draws and own.state_dropout),
        ("recurrent_dropout", training and draws and own.recurrent_dropout),
        (f"streams of cell {module.cell.name!r}", draws and module.cell.drawn),
    ):
        if given and rows.replicated:
            raise RuntimeError(
                f"{name}: expected an input whose batch is sharded over the whole mesh, got "
                f"placements {input.placements}; each process would drop other values of the same "
                "rows. Shard the batch, give all the same key, or turn it off"
            )
    if training and draws and own.weight_drop:
        raise RuntimeError(
            f"weight_drop: expected 0 with a DTensor, got {own.weight_drop}; each process would "
            "drop other values of the same matrix. Give all the same key, or turn it off"
        )


class _Rows:
    """Which mesh dims shard the batch, and tensors on their way to a process and back."""

    def __init__(self, input, batch_dim):
        self.mesh = input.device_mesh
        self.sharded = [
            batch_dim is not None and placement.is_shard(batch_dim)
            for placement in input.placements
        ]
        self.replicated = any(
            self.mesh.size(i) > 1 for i, sharded in enumerate(self.sharded) if not sharded
        )
        self.batch = None if batch_dim is None else input.shape[batch_dim]

    def local(self, tensor, name, batch_dim):
        from torch.distributed.tensor import Partial, Replicate

        if not is_distributed(tensor) or tensor.device_mesh != self.mesh:
            raise TypeError(
                f"{name}: expected a DTensor on the mesh of the input {self.mesh}, got "
                f"{type(tensor).__name__}; see torch.distributed.tensor.distribute_module"
            )
        tensor = tensor.redistribute(placements=self._placements(batch_dim))
        # A gradient of these rows alone is one of several summands.
        sums = [Partial() if sharded else Replicate() for sharded in self.sharded]
        grads = sums if batch_dim is None else self._placements(batch_dim)
        return tensor.to_local(grad_placements=grads)

    def back(self, tensor, batch_dim):
        from torch.distributed.tensor import DTensor

        shape, stride = list(tensor.shape), list(tensor.stride())
        if batch_dim is not None and shape[batch_dim] != self.batch:
            # As they would be in a tensor of the whole batch, which may be no multiple of this.
            own, step = max(shape[batch_dim], 1), stride[batch_dim]
            stride = [s // own * self.batch if s > step else s for s in stride]
            shape[batch_dim] = self.batch
        return DTensor.from_local(
            tensor,
            self.mesh,
            self._placements(batch_dim),
            run_check=False,
            shape=torch.Size(shape),
            stride=tuple(stride),
        )

    def _placements(self, batch_dim):
        from torch.distributed.tensor import Replicate, Shard

        if batch_dim is None:
            return [Replicate()] * len(self.sharded)
        return [Shard(batch_dim) if sharded else Replicate() for sharded in self.sharded]
