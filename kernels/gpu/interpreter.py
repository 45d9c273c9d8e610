"""Triton's interpreter: fixes for bfloat16, and for bugs of some versions.

The interpreter stores bfloat16 values as their bits in uint16 and, as of Triton 3.9, computes with
these integers: ``tl.dot`` and arithmetic give wrong results, and casts truncate. Here every
operation on bfloat16 goes through float32 and rounds to the nearest even, as the hardware does.

In the interpreter, a comparison has the type of its operands. Broadcast to a block it becomes
numbers, which Triton 3.9 rejects as a mask. Triton 3.6 converts arrays to loop bounds in a way that
NumPy 2.4 rejects. An associative scan goes number by number; here, row by row of the scanned axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton import knobs

_BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor)
_IN_USE = knobs.runtime.interpret  # as when the kernels are defined


def in_use() -> bool:
    """Whether kernels run in the interpreter (``TRITON_INTERPRET=1``)."""
    return knobs.runtime.interpret


# No global constant: with one, Triton's key of a kernel depends on which kernels had theirs before,
# and what is in the cache on disk is compiled again.
@triton.constexpr_function
def compiled():
    """In a kernel, whether it is compiled: the opposite of ``in_use``."""
    return not _IN_USE


def one_by_one() -> bool:
    """Whether programs run one after the other, as in Triton's own interpreter."""
    from triton.runtime import interpreter

    return in_use() and interpreter.GridExecutor.__call__.__module__ == interpreter.__name__


def elementwise(function: Callable) -> Callable:
    """Turn a function of tensors into one of the interpreter's blocks, all of one dtype."""

    def call(*blocks):
        from triton.runtime.interpreter import TensorHandle

        arrays = np.broadcast_arrays(*(block.handle.data for block in blocks))
        result = function(*(torch.from_numpy(np.array(array)) for array in arrays)).numpy()
        dtype = blocks[0].dtype
        shape = max((block.shape for block in blocks), key=len)
        if len(shape) == 0:
            return tl.tensor(TensorHandle(result.reshape(-1), dtype), dtype)
        return tl.tensor(TensorHandle(result, dtype), tl.block_type(dtype, list(result.shape)))

    return call


def repair_if_used() -> None:
    """Apply ``repair`` if kernels run in the interpreter."""
    if in_use():
        repair()


def repair() -> None:
    """Patch the interpreter, once; see the docstring of the module."""
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    if getattr(builder, "_computes_bfloat16", False):
        return
    builder._computes_bfloat16 = True
    _repair_casts(interpreter, builder)
    _repair_arithmetic(interpreter, builder)
    _repair_bounds(interpreter)
    _repair_scans(interpreter)


def to_float32(bits: np.ndarray) -> np.ndarray:
    """The values of bfloat16 numbers given as uint16."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16 numbers, ties to even, as uint16."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    with np.errstate(over="ignore"):
        to_even = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        rounded = (bits + to_even) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def _is_bfloat16(handle) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _repair_casts(interpreter, builder):
    convert, cast = interpreter._convert_float, builder.cast_impl
    nearest = (None, interpreter._ir.ROUNDING_MODE.RTNE)

    def convert_float(values, source, target, rounding):
        if source == tl.float32 and target == tl.bfloat16 and rounding in nearest:
            return to_bfloat16(values).reshape(values.shape)
        if source == tl.bfloat16 and target == tl.float32:
            return to_float32(values).view(np.uint32).reshape(values.shape)
        return convert(values, source, target, rounding)

    def cast_impl(self, handle, target):
        ends = {handle.dtype.scalar, target.scalar}
        if tl.bfloat16 in ends and len(ends) == 2 and tl.float32 not in ends:
            return cast(self, cast(self, handle, _like(target, tl.float32)), target)
        return cast(self, handle, target)

    interpreter._convert_float = convert_float
    builder.cast_impl = cast_impl


def _like(block_type, scalar):
    """The type of a block, or of a scalar, with another element type."""
    return tl.block_type(scalar, block_type.shape) if block_type.is_block() else scalar


def _repair_arithmetic(interpreter, builder):
    handle = interpreter.TensorHandle
    binary, unary, dot, fma = (
        builder.binary_op,
        builder.unary_op,
        builder.create_dot,
        builder.create_fma,
    )

    def widen(operand):
        return handle(to_float32(operand.data), tl.float32) if _is_bfloat16(operand) else operand

    def narrow(values):
        return handle(to_bfloat16(values), tl.bfloat16)

    def binary_op(self, a, b, operation):
        if not (_is_bfloat16(a) or _is_bfloat16(b)) or operation in _BITWISE:
            found = binary(self, a, b, operation)
            return handle(found.data, tl.int1) if found.data.dtype == np.bool_ else found
        result = operation(widen(a).data, widen(b).data)
        return handle(result, tl.int1) if result.dtype == np.bool_ else narrow(result)

    def unary_op(self, a, operation):
        if not _is_bfloat16(a):
            return unary(self, a, operation)
        return narrow(operation(widen(a).data))

    def create_dot(self, a, b, d, *options):
        return dot(self, widen(a), widen(b), d, *options)

    def create_fma(self, x, y, z):
        if not _is_bfloat16(z):
            return fma(self, x, y, z)
        return narrow(widen(x).data * widen(y).data + widen(z).data)

    builder.binary_op = binary_op
    builder.unary_op = unary_op
    builder.create_dot = create_dot
    builder.create_fma = create_fma


def _repair_bounds(interpreter):
    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_lang_tensor


def _repair_scans(interpreter):
    def generic_scan(self, blocks):
        rows = [np.moveaxis(block.handle.data, self.axis, 0) for block in blocks]
        dtypes = [block.dtype for block in blocks]
        results = [np.empty_like(row) for row in rows]
        before = None
        for i in range(len(rows[0])):
            row = [self.to_tensor(r[i].copy(), d) for r, d in zip(rows, dtypes, strict=True)]
            if before is not None:
                row = self.combine_fn.fn(*before, *row)
                row = row if isinstance(row, tuple) else (row,)
            before = row
            for result, block in zip(results, row, strict=True):
                result[i] = block.handle.data.reshape(result[i].shape)
        whole = [np.moveaxis(result, 0, self.axis) for result in results]
        return [self.to_tensor(r, d) for r, d in zip(whole, dtypes, strict=True)]

    interpreter.ScanOps.generic_scan = generic_scan
