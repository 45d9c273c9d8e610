"""Record a function of tensors as an FX graph of ATen operations.

A small ``make_fx``. It takes a millisecond, where the first ``make_fx`` of a process imports Dynamo
and SymPy for seconds. It knows the line of code that each operation comes from. And its graphs are
smaller:

- every node is a new value: an in-place operation becomes its out-of-place form;
- one-element tensors that are not arguments become numbers.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

import torch
from torch import Tensor, fx
from torch._ops import OpOverload as Operation
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# Operations that return a value as it is. (As to ``detach``, see ``detaching``.)
_SAME = {
    aten.alias.default,
    aten.clone.default,
    aten.lift.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
}
# Operations whose result depends on the shape of their argument only; and the number that fills it.
_FILLED = {
    aten.zeros_like.default: lambda args: 0.0,
    aten.ones_like.default: lambda args: 1.0,
    aten.full_like.default: lambda args: args[1],
    aten.fill.Scalar: lambda args: args[1],
    aten.fill_.Scalar: lambda args: args[1],
    aten.zero_.default: lambda args: 0.0,
}
# Operations that use only the dtype and the device of their argument.
NEW = {
    aten.new_empty.default,
    aten.new_full.default,
    aten.new_ones.default,
    aten.new_zeros.default,
}
# The overload that takes a number instead of a tensor, by operation and index of the argument.
_OF_NUMBERS = {
    (aten.pow.Tensor_Tensor, 0): aten.pow.Scalar,
    (aten.pow.Tensor_Tensor, 1): aten.pow.Tensor_Scalar,
    (aten.masked_fill.Tensor, 2): aten.masked_fill.Scalar,
}
_HERE = str(Path(__file__).resolve().parents[1]) + os.sep
_TORCH = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep


class Recorder(TorchDispatchMode):
    """Records what happens to its arguments while it is active.

    Args:
        arguments: the tensors, by name.
        table: decompositions: the function to call instead of an operation.

    Attributes:
        graph: the operations so far. ``meta`` of a node has its "line", (file, number), if
            user code called it, and its "val", an empty tensor like it.
        detaching: whether the function itself calls ``detach``, as opposed to autograd.
    """

    def __init__(
        self,
        arguments: Mapping[str, Tensor],
        table: Mapping[Operation, Callable] | None = None,
    ):
        super().__init__()
        self.graph = fx.Graph()
        self.table = table or {}
        self._nodes: dict[int, fx.Node] = {}  # by the id of a tensor
        self._stored: dict[int, fx.Node] = {}  # by the address of its storage
        self._kept: list[Tensor] = []  # keeps ids and addresses from being reused
        for name, tensor in arguments.items():
            self._know(tensor, self.graph.placeholder(name))
        self.dtype = self._kept[0].dtype
        self._first = next(iter(self.graph.nodes))
        self._argument_storages = set(self._stored)
        self._shared: set[int] = set()  # addresses of storages that several values have
        self._made: set[int] = set()  # ids of constants that the function made itself
        self.detaching = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise PyTorch imports Dynamo to disable it in here

    def finish(self, results: Sequence[Tensor]) -> fx.Graph:
        """Complete the graph, which returns ``results``; dead code is eliminated."""
        self.graph.output([self.node(result) for result in results])
        self.graph.eliminate_dead_code()
        return self.graph

    def node(self, tensor: Tensor) -> fx.Node:
        """The node of a tensor; a new one if it does not depend on the arguments."""
        found = self._find(tensor)
        return self._filled(self.number_of(tensor)) if found is None else found

    # Hooks for checks.

    def check_call(self, func: Operation, args: Sequence, kwargs: Mapping[str, Any]) -> None:
        """Called before an operation is run."""

    def check_value(self, func: Operation, value: Tensor) -> None:
        """Called with each result of a recorded operation."""

    def check_constant(self, tensor: Tensor) -> None:
        """Called with each tensor that does not depend on the arguments."""

    def refuse(self, problem: str) -> NoReturn:
        """Raise an error for an operation that cannot be recorded."""
        raise RuntimeError(problem)

    def number_of(self, tensor: Tensor) -> float | int | bool:
        """The number in a tensor that does not depend on the arguments."""
        self.check_constant(tensor)
        first = tensor.detach().flatten()[:1].expand(tensor.shape) if tensor.numel() > 1 else tensor
        if first is not tensor and not torch.equal(first, tensor):
            shape = tuple(tensor.shape)
            self.refuse(f"a tensor of shape {shape} that does not depend on the arguments")
        return first.flatten()[0].item()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.check_call(func, args, kwargs)
        tensors = [v for v in pytree.tree_leaves((args, kwargs)) if is_tensor(v)]
        if func in NEW or all(self._find(tensor) is None for tensor in tensors):
            self._written(func, args, kwargs)
            if func is aten._efficientzerotensor.default:  # which has no storage to find it by
                func = aten.zeros.default
            out = func(*args, **kwargs)
            made = [value for value in pytree.tree_leaves(out) if is_tensor(value)]
            self._made.update(map(id, made))
            self._kept += made
            return out
        if func in self.table:
            with self:
                out = self.table[func](*args, **kwargs)
            if out is not NotImplemented:
                return out
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:  # within a decomposition, where autograd does not decompose it
                return func.decompose(*args, **kwargs)
        if self._changes_nothing(func, args, kwargs):
            out = func(*args, **kwargs)
            if func is aten.detach.default:
                self._kept.append(out)  # found by its storage
            else:
                self._know(out, self._find(args[0]))
            return out
        if func is aten.detach.default:
            self._shared.add(args[0].untyped_storage().data_ptr())
        # Constants become numbers before the call, so that they do not take part in type promotion.
        written = self._written(func, args, kwargs)
        func, args, kwargs = self._with_numbers(func, args, kwargs, written)
        given = {id(v): self._find(v) for v in pytree.tree_leaves((args, kwargs)) if is_tensor(v)}
        out = func(*args, **kwargs)
        node = self._make_node(func, args, kwargs, given, out)
        if written is not None:
            self._rebind(func, written, node)
        elif is_tensor(out):
            self._know(out, node)
            self.check_value(func, out)
        else:
            for i, value in enumerate(out):
                self._know(value, self._call(operator.getitem, (node, i)))
                self.check_value(func, value)
        return out

    # From tensors to nodes.

    def _find(self, tensor) -> fx.Node | None:
        node = self._nodes.get(id(tensor))
        if node is None and tensor.layout == torch.strided:
            # What autograd saved of a result comes back as another tensor with its storage.
            node = self._stored.get(tensor.untyped_storage().data_ptr())
        return node

    def _know(self, tensor, node):
        if "val" not in node.meta:
            node.meta["val"] = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        self._nodes[id(tensor)] = node
        self._stored.setdefault(tensor.untyped_storage().data_ptr(), node)
        self._kept.append(tensor)

    def _rebind(self, func, tensor, node):
        """Map a tensor that was written to to its new value."""
        address = tensor.untyped_storage().data_ptr()
        if address in self._argument_storages:
            self.refuse(f"{func} writes to an argument; write y = ... instead")
        if address in self._shared:
            self.refuse(f"{func} writes to the memory of another tensor; write y = ... instead")
        self._kept.append(tensor)
        for other in self._kept:  # autograd's and the function's view of the same tensor
            if other.untyped_storage().data_ptr() == address:
                self._nodes[id(other)] = node
        self._stored[address] = node
        self.check_value(func, tensor)

    def _written(self, func, args, kwargs):
        """The tensor that an operation writes to, or None."""
        if not func._schema.is_mutable:
            return None
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        written = [
            given[a.name]
            for a in func._schema.arguments
            if a.alias_info is not None and a.alias_info.is_write and a.name in given
        ]
        if len(written) != 1 or not is_tensor(written[0]):
            self.refuse(f"{func} writes to several tensors")
        if self._find(written[0]) is None and id(written[0]) not in self._made:
            self.refuse(
                f"{func} writes to a tensor that is no argument; a cell's functions change nothing"
            )
        return written[0]

    # Nodes.

    def _call(self, func, args, kwargs=None):
        name = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else None
        node = self.graph.create_node("call_function", func, args, kwargs or {}, name=name)
        node.meta["line"] = line_of_user()
        return node

    def _filled(self, number, dtype=None):
        """A number as a tensor of the shape of the values, and of their dtype unless one is given.

        It keeps all its digits, in any dtype of the tensor.
        """
        if dtype is None and not isinstance(number, float):
            dtype = torch.bool if isinstance(number, bool) else torch.int64
        other = dtype not in (None, self.dtype)
        options = {"dtype": dtype} if other else {}
        node = self._call(aten.full_like.default, (self._first, number), options)
        like = self._first.meta["val"]
        node.meta["val"] = torch.empty_like(like, dtype=dtype if other else self.dtype)
        return node

    def _make_node(self, func, args, kwargs, given, out):
        """Make the node of an operation from ``given``, the nodes of its tensors."""

        def find(value):
            if not is_tensor(value):
                return value
            node = given[id(value)]
            return self._filled(self.number_of(value)) if node is None else node

        if func in _FILLED:
            return self._filled(float(_FILLED[func](args)), out.dtype)
        func, args = self._out_of_place(func, args)
        args, kwargs = pytree.tree_map(find, (tuple(args), kwargs))
        kwargs = {k: v for k, v in kwargs.items() if k not in _OF_STORAGE}
        if func is aten._to_copy.default and args[0].meta["val"].dtype == out.dtype:
            return args[0]
        if func is aten._to_copy.default:
            kwargs = {"dtype": out.dtype}
        node = self._call(func, args, kwargs)
        if is_tensor(out):
            node.meta["val"] = torch.empty(out.shape, dtype=out.dtype, device="meta")
            if not torch.is_grad_enabled():
                # Within no_grad, or in the forward of an autograd.Function.
                inner, node = node, self._call(aten.detach.default, (node,))
                node.meta["val"] = inner.meta["val"]
        return node

    def _out_of_place(self, func, args):
        """The operation that returns what ``func`` writes."""
        if not func._schema.is_mutable or func in _FILLED:
            return func, args
        name, overload = func._schema.name.removeprefix("aten::"), func._overloadname
        if func in (aten.copy_.default, aten.fill_.Tensor):
            return aten._to_copy.default, args[1:2]
        packet = getattr(aten, name.removesuffix("_"), None)
        if name.endswith("_") and packet is not None and overload in packet.overloads():
            return getattr(packet, overload), args
        self.refuse(f"{func} writes to a tensor; write y = ... instead")

    def _changes_nothing(self, func, args, kwargs):
        if func is aten._to_copy.default:
            return kwargs.get("dtype") in (None, args[0].dtype)
        # Autograd detaches results that it saves, and attaches them again.
        return func in _SAME or (func is aten.detach.default and not self.detaching)

    def _with_numbers(self, func, args, kwargs, written):
        """Replace tensors that do not depend on the arguments by numbers, or by 0-dim tensors."""
        args = list(args)
        # With integer operands, type promotion differs between a tensor and a number.
        floating = all(v.is_floating_point() for v in args if is_tensor(v))
        for place, value in enumerate(args):
            if not is_tensor(value) or value is written or self._find(value) is not None:
                continue
            number = self.number_of(value)
            packet = func._schema.name.removeprefix("aten::")
            if (func, place) in _OF_NUMBERS:
                func, args[place] = _OF_NUMBERS[func, place], number
            elif place and torch._C._should_allow_numbers_as_tensors(packet) and floating:
                args[place] = number
            else:
                dtype = self.dtype if isinstance(number, float) else value.dtype
                args[place] = torch.full((), number, dtype=dtype, device=value.device)
                self._kept.append(args[place])
        return func, tuple(args), kwargs


def is_tensor(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor)


# Arguments about the memory of a result.
_OF_STORAGE = ("layout", "device", "pin_memory", "memory_format", "non_blocking")


def line_of_user() -> tuple[str, int] | None:
    """File and number of the innermost line that is neither PyTorch's nor ours."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if frame.f_code is record.__code__:
            return None
        if is_of_user(file):
            return file, frame.f_lineno
        frame = frame.f_back
    return None


def is_of_user(file: str) -> bool:
    """Whether a file of code is neither PyTorch's nor ours."""
    return not file.startswith((_HERE, _TORCH, "<fused_rnn", "<eval_with_key"))


def record(function: Callable, recorder: Recorder, arguments: Sequence[Tensor]) -> fx.Graph:
    """The graph of ``function(*arguments)``, which returns tensors; see ``Recorder``."""
    with recorder:
        results = function(*arguments)
    return recorder.finish(results)
