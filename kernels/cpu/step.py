"""One step of a layer by the C++ loop, for modules of one step: with as little as possible around.

The loop is that of engine.py. With one step it reads each weight once, as it is, so nothing is
packed; what is left to save is the work in Python, which takes as long as a small layer's step.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...cells import Cell
from . import engine, loop


class Step:
    """The step of a cell, in float32 or float64, without gradients.

    The engine can run the cell, and ``takes`` it.
    """

    def __init__(self, cell: Cell, dtype: torch.dtype):
        self._wiring = cell.made[engine._wiring, dtype]
        self._run = loop.function("forward", dtype)
        self._count, self._bytes = len(cell.states), dtype.itemsize
        self._parallel_for = loop.parallel_for()
        # Rows of the recurrent matrix that stand before each stage's own.
        gates = [count for count, _ in cell.matrices]
        self._before = [sum(gates[:i]) for i in range(len(gates))]
        self._x, self._r = len(cell.x_gates), sum(gates)
        self._vectors = cell.matrices[0][1] if gates else 0
        self._params, self._no_sequences = len(cell.params), [0] * (self._count - 1)
        self._frames = _Frames()

    def fits(
        self,
        I: int,  # noqa: E741 - the name of this dim in the whole project
        H: int,
        weight_ih: Tensor,
        weight_hh: Tensor | None,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        *params: Tensor,
    ) -> bool:
        """Whether parameters have the shapes that ``__call__`` takes for these sizes: users may
        replace them."""
        x, r = self._x * H, self._r * H
        return (
            weight_ih.shape == (x, I)
            and (weight_hh is None or weight_hh.shape == (r, self._vectors * H))
            and (bias_ih is None or bias_ih.shape == (x,))
            and (bias_hh is None or bias_hh.shape == (r,))
            and (not params or all(param.shape == (H,) for param in params))
        )

    def __call__(
        self,
        input: Tensor,
        hx: Tensor | tuple[Tensor, ...],
        weight_ih: Tensor,
        weight_hh: Tensor | None,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        *params: Tensor,
    ) -> Tensor | tuple[Tensor, ...]:
        """The new states, shaped as ``hx``; all tensors are contiguous and of the cell's dtype.

        Args:
            input: (B, I).
            hx: per state (B, H), the tensor itself where there is one.
            weight_ih: (X·H, I).
            weight_hh: (R·H, V·H); None for a cell without a product.
            bias_ih, bias_hh: (X·H,), (R·H,), or None for zeros.
            params: (H,).
        """
        states = (hx,) if isinstance(hx, Tensor) else hx
        B, H = states[0].shape
        threads = torch.get_num_threads()
        sizes = (B, H, input.shape[1], threads, bias_ih is None, bias_hh is None)
        frame = self._frames.last
        if frame is None or frame.sizes != sizes:
            frame = self._frames.last = self._frame(sizes)
        finals = [state.clone() for state in states]
        # They may share a step only if the state that all of them read is not written over.
        sequence = None if threads == 1 else torch.empty_like(finals[0])
        addresses = [
            0 if sequence is None else sequence.data_ptr(),
            *self._no_sequences,
            weight_ih.data_ptr(),
            0 if bias_ih is None else bias_ih.data_ptr(),
            0 if bias_hh is None else bias_hh.data_ptr(),
            *[final.data_ptr() for final in finals],
            *[param.data_ptr() for param in params],
        ]
        if weight_hh is not None:
            first, width = weight_hh.data_ptr(), weight_hh.shape[1] * H * self._bytes
            addresses += [first + before * width for before in self._before]
        frame.addresses[:] = addresses
        frame.problem.input = input.data_ptr()
        self._run(frame.reference)
        return finals[0] if self._count == 1 else tuple(finals)

    def _frame(self, sizes) -> _Frame:
        B, H, I, threads, no_bias_ih, no_bias_hh = sizes  # noqa: E741
        counts = (self._count, 1, 1, 1, self._count, self._params, len(self._before))
        addresses = (ctypes.c_int64 * sum(counts))()
        places = [ctypes.addressof(addresses)]
        for count in counts[:-1]:
            places.append(places[-1] + count * engine._POINTER)
        sequences, weight, bias_ih, bias_hh, carry, params, matrices = places
        problem = engine._Problem(ctypes.addressof(self._wiring), 1, B, 1, H, I, 0, threads)
        problem.parallel_for, problem.weights = self._parallel_for, matrices
        problem.params, problem.states, problem.sequences = params, carry, sequences
        problem.input_weights = weight
        problem.input_biases = None if no_bias_ih else bias_ih
        problem.recurrent_biases = None if no_bias_hh else bias_hh
        return _Frame(sizes, addresses, problem, ctypes.byref(problem))


class _Frame(NamedTuple):
    """The arguments of a call, kept for the next one of the same sizes.

    Attributes:
        addresses: of all tensors but the input; ``problem`` points into it.
        reference: to ``problem``.
    """

    sizes: tuple
    addresses: ctypes.Array
    problem: engine._Problem
    reference: Any


class _Frames(threading.local):
    """The frame of a thread's last call: during the call other threads run."""

    last: _Frame | None = None


def takes(cell: Cell, dtype: torch.dtype) -> bool:
    """Whether a cell is one of those that ``Step`` takes, in a dtype that it has."""
    return (
        dtype in loop.REAL
        and bool(cell.x_gates)
        and not (cell.raw_gates or cell.streams or cell.drawn)
        and cell.is_plain
        and len({vectors for _, vectors in cell.matrices}) <= 1
        and all(param.learned for param in cell.given.values())
    )
