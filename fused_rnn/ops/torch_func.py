"""The custom ops inside the transforms of torch.func.

``torch.library`` gives an op derivatives that torch.func does not see; inside a transform an
``autograd.Function`` made of the same rules takes the op's place. And under ``vmap`` the mapped
dim becomes part of a dim that the ops have: N times the batch rows where the weights are shared,
N times the directions where each has its own.

PyTorch's older vmap, which torch.func's stack does not show, maps the cotangents of a backward:
``torch.autograd.grad(..., is_grads_batched=True)`` and all that is made of it. ``each_cotangent``
turns it into the newer one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .. import cells
from ..cells import draws


def transformable(
    op: Callable, setup_context: Callable, pull_back: Callable, vmap: Callable
) -> Callable[..., list[Tensor]]:
    """``op``, which takes tensors and lists of them and returns a list, for torch.func.

    Args:
        setup_context: of ``register_autograd``.
        pull_back: as the one there; called with ``ctx``, what ``ctx.needs_input_grad`` is there,
            and the list of gradients.
        vmap: called with what stands for the op, what ``register_vmap`` passes on, and the op's
            arguments.
    """

    class Rule(torch.autograd.Function):
        @staticmethod
        def forward(spec, *flat):
            return tuple(op(*pytree.tree_unflatten(flat, spec)))

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.spec = inputs[0]
            setup_context(ctx, pytree.tree_unflatten(inputs[1:], ctx.spec), output)

        @staticmethod
        def backward(ctx, *grads):
            needs = pytree.tree_unflatten(ctx.needs_input_grad[1:], ctx.spec)
            flat = []
            for need, found in zip(needs, pull_back(ctx, needs, grads), strict=True):
                places = len(need) if isinstance(need, list) else 1
                flat += found if isinstance(found, list) else [found] * places
            return None, *flat

        @staticmethod
        def vmap(info, in_dims, *args):
            spec, *flat = args
            arguments = pytree.tree_unflatten(flat, spec)
            dims = pytree.tree_unflatten(in_dims[1:], spec)
            outputs, dims = vmap(call, info, dims, *arguments)
            return tuple(outputs), tuple(dims)

    def call(*arguments):
        flat, spec = pytree.tree_flatten(arguments)
        return list(Rule.apply(spec, *flat))

    _OPAQUE.append(call)
    return call


def each_cotangent(pull_back: Callable) -> Callable:
    """``pull_back``, called as in ``transformable``, also for what the older vmap maps."""

    def run(ctx, needs, grads):
        given = [place for place, grad in enumerate(grads) if grad is not None]
        tensors = [grads[place] for place in given]
        if not any(map(_is_mapped, tensors)):
            return pull_back(ctx, needs, grads)
        levels = [level for level in _LEVELS if any(_without(t, level)[1] == 0 for t in tensors)]
        held, forms = _Held(ctx), []

        def member(*tensors):
            own = [None] * len(grads)
            for place, tensor in zip(given, tensors, strict=True):
                own[place] = tensor
            flat, form = pytree.tree_flatten(pull_back(held, needs, own))
            found = [place for place, gradient in enumerate(flat) if gradient is not None]
            forms.append((form, len(flat), found))
            return [flat[place] for place in found]

        for level in levels:
            tensors, dims = zip(*(_without(tensor, level) for tensor in tensors), strict=True)
            member = torch.vmap(member, dims)
        gradients = member(*tensors)
        for level in reversed(levels):
            add = torch._add_batch_dim  # pyright: ignore[reportPrivateImportUsage]
            gradients = [add(gradient, 0, level) for gradient in gradients]
        form, count, found = forms[0]
        flat = [None] * count
        for place, gradient in zip(found, gradients, strict=True):
            flat[place] = gradient
        return pytree.tree_unflatten(flat, form)

    return run


class _Held:
    """A ``ctx`` whose saved tensors are unpacked once and outside the transform: their hooks, such
    as those of a checkpoint, may run a forward."""

    def __init__(self, ctx):
        self.ctx, self.saved_tensors = ctx, ctx.saved_tensors

    def __getattr__(self, name):
        return getattr(self.ctx, name)


_C = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
_is_mapped = _C.is_legacy_batchedtensor
_LEVELS = range(64, 0, -1)  # all that the older vmap has; it wants them back in increasing order


def _without(tensor: Tensor, level: int) -> tuple[Tensor, int | None]:
    """A tensor with what the older vmap maps at a level as its first dim, and whether it has one:
    0 or None. The size is made use of only where it has none."""
    if not _is_mapped(tensor):
        return tensor, None
    remove = torch._remove_batch_dim  # pyright: ignore[reportPrivateImportUsage]
    first, second = (remove(tensor, level, size, 0) for size in (2, 3))
    return (first, 0) if first.shape == second.shape else (tensor, None)


# What torch.compile is to put into its graph as it is.
_OPAQUE = []


def hide_from_dynamo() -> None:
    """Called while torch.compile traces: importing it with the package would take seconds."""
    while _OPAQUE:
        torch.compiler.allow_in_graph(_OPAQUE.pop())


# Called, not traced.
hide_from_dynamo._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


def vmap_forward(
    op: Callable[..., list[Tensor]],
    info: Any,
    in_dims: Sequence[Any],
    cell: str,
    x: Tensor,
    weights: list[Tensor],
    bias: Tensor | None,
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    reverse: bool,
    save: bool,
    backend: str,
) -> tuple[list[Tensor], list[int | None]]:
    """The vmap rule of the forward op."""
    _, *dims, _, _, _ = in_dims
    cell, streams, dims[5] = _undrawn(cell, streams, dims[5], x, dims[0])
    folding = _Folding(info.batch_size, x, dims[0], (dims[1], dims[2], dims[4]), reverse)
    outputs = op(
        cell,
        folding.steps(x, dims[0]),
        folding.each(folding.weights, weights, dims[1]),
        folding.weights(bias, dims[2]),
        folding.each(folding.states, states, dims[3]),
        folding.each(folding.weights, params, dims[4]),
        folding.each(folding.steps, streams, dims[5]),
        reverse,
        save,
        backend,
    )
    count = len(cells.lookup(cell).states) + 1
    unfolded = [folding.back_steps(output) for output in outputs[:count]]
    unfolded += [folding.back_states(output) for output in outputs[count:]]
    return [tensor for tensor, _ in unfolded], [dim for _, dim in unfolded]


def vmap_backward(
    op: Callable[..., list[Tensor]],
    info: Any,
    in_dims: Sequence[Any],
    cell: str,
    weights: list[Tensor],
    states: list[Tensor],
    params: list[Tensor],
    streams: list[Tensor],
    sequences: list[Tensor],
    pre: Tensor,
    cotangents: list[Tensor],
    given: list[int],
    reverse: bool,
    backend: str,
) -> tuple[list[Tensor], list[int | None]]:
    """The vmap rule of the backward op.

    It sums the gradients of params over the batch. If each of the N needs its own, they become
    directions.
    """
    _, *dims, _, _, _ = in_dims
    flow = len(cells.lookup(cell).streams)
    cell, streams, dims[3] = _undrawn(cell, streams, dims[3], pre, dims[5])
    own = (dims[0], dims[2], [0] * len(params))
    folding = _Folding(info.batch_size, pre, dims[5], own, reverse)
    count = len(states)
    outputs = op(
        cell,
        folding.each(folding.weights, weights, dims[0]),
        folding.each(folding.states, states, dims[1]),
        folding.each(folding.weights, params, dims[2]),
        folding.each(folding.steps, streams, dims[3]),
        folding.each(folding.steps, sequences, dims[4]),
        folding.steps(pre, dims[5]),
        [
            (folding.steps if place <= count else folding.states)(cotangent, dim)
            for cotangent, place, dim in zip(cotangents, given, dims[6], strict=True)
        ],
        given,
        reverse,
        backend,
    )
    dpre, *rest = outputs
    dstates, dparams = rest[:count], rest[count : count + len(params)]
    unfolded = [
        folding.back_steps(dpre),
        *map(folding.back_states, dstates),
        *map(folding.back_weights, dparams),
        *map(folding.back_steps, rest[count + len(params) :][:flow]),
    ]
    return [tensor for tensor, _ in unfolded], [dim for _, dim in unfolded]


def _undrawn(key, streams, dims, like, dim):
    """The cell, its streams and their mapped dims with the values of drawn streams in place of the
    seed: a row's number in the folded batch is another. ``like`` is (T, B, D, ..., H)."""
    cell = cells.lookup(key)
    if not cell.drawn:
        return key, streams, dims
    *given, seed = streams
    steps, _, directions, *_, hidden = like.shape if dim is None else like.movedim(dim, 0).shape[1:]
    times = torch.arange(steps, device=like.device)
    seeds = [seed] if dims[-1] is None else seed.movedim(dims[-1], 0).unbind()
    drawn = [draws.values(cell, own, times, directions, hidden, like.dtype) for own in seeds]
    values = [torch.stack(group) for group in zip(*drawn, strict=True)]
    if dims[-1] is None:
        values = [value.squeeze(0) for value in values]
    mapped = [None if dims[-1] is None else 0] * len(values)
    return draws.undrawn(cell).key, given + values, [*dims[:-1], *mapped]


class _Folding:
    """Where the mapped dim of size N goes: into the batch, or into the directions.

    Args:
        like: a tensor (T, B, D, ...) whose mapped dim is ``dim``.
        own: dims of what belongs to a direction; all None where it is shared.
    """

    def __init__(self, size: int, like: Tensor, dim: int | None, own, reverse: bool):
        self.size = size
        self.directions = like.movedim(dim, 0).shape[3] if dim is not None else like.shape[2]
        self.apart = any(d is not None for d in pytree.tree_leaves(own))
        # In the ops the second of all directions walks the other way: the wrong one for some.
        walks = [e == 1 for e in range(size * self.directions)]
        wanted = [e % self.directions == 1 for e in range(size * self.directions)]
        self.turned = [a != b for a, b in zip(walks, wanted, strict=True)]

    def each(self, fold, tensors, dims):
        return [fold(tensor, dim) for tensor, dim in zip(tensors, dims, strict=True)]

    def steps(self, tensor, dim):
        """(T, B, D, ...) with the mapped dim, to (T, B', D', ...)."""
        if not self.apart:
            return self._into(tensor, dim, 1)
        return self._turn(self._into(tensor, dim, 2))

    def states(self, tensor, dim):
        """(D, B, H) likewise."""
        return self._into(tensor, dim, 0 if self.apart else 1)

    def weights(self, tensor, dim):
        """(D, ...), without a batch."""
        if tensor is None or not self.apart:
            return tensor
        return self._into(tensor, dim, 0)

    def back_steps(self, tensor):
        """A result with its mapped dim again, and which that is."""
        if tensor.dim() == 1:  # nothing was saved
            return tensor, None
        if not self.apart:
            return tensor.unflatten(1, (self.size, -1)), 1
        return self._turn(tensor).unflatten(2, (self.size, -1)), 2

    def back_states(self, tensor):
        dim = 0 if self.apart else 1
        return tensor.unflatten(dim, (self.size, -1)), dim

    def back_weights(self, tensor):
        return tensor.unflatten(0, (self.size, -1)), 0

    def _into(self, tensor, dim, place):
        if dim is None:
            shape = list(tensor.shape)
            shape.insert(place, self.size)
            tensor = tensor.unsqueeze(place).expand(shape)
        else:
            tensor = tensor.movedim(dim, place)
        return tensor.flatten(place, place + 1)

    def _turn(self, tensor):
        """With the steps of some directions in reverse order."""
        if not any(self.turned):
            return tensor
        turned = torch.tensor(self.turned, device=tensor.device)
        turned = turned.view(1, 1, -1, *[1] * (tensor.dim() - 3))
        return torch.where(turned, tensor.flip(0), tensor)
