"""One step of a layer by the C++ loop, for modules of one step: with as little as possible around.

The loop is that of engine.py. With one step it reads each weight once, as it is, so nothing is
packed; what is left to save is the work in Python, which takes as long as a small layer's step.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ...cells import Cell
from . import engine


class Step:
    """The step of a cell, in float32 or float64, without gradients.

    The engine can run the cell, and ``takes`` it.
    """

    def __init__(self, cell: Cell, dtype: torch.dtype):
        self._wiring = cell.made[engine._wiring, dtype]
        self._run = engine._function("forward", dtype)
        self._count, self._bytes = len(cell.states), dtype.itemsize
        self._parallel_for = engine._parallel_for()
        # Rows of the recurrent matrix that stand before each stage's own.
        gates = [count for count, _ in cell.matrices]
        self._before = [sum(gates[:i]) for i in range(len(gates))]
        self._x, self._r = len(cell.x_gates), sum(gates)
        self._vectors = cell.matrices[0][1] if gates else 0

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
            and all(param.shape == (H,) for param in params)
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
        finals = [state.clone() for state in states]
        threads = torch.get_num_threads()
        # They may share a step only if the state that all of them read is not written over.
        sequence = None if threads == 1 else torch.empty_like(finals[0])
        matrices = []
        if weight_hh is not None:
            first, width = weight_hh.data_ptr(), weight_hh.shape[1] * H * self._bytes
            matrices = [first + before * width for before in self._before]
        biases = [None if bias is None else bias.data_ptr() for bias in (bias_ih, bias_hh)]
        array = (ctypes.c_void_p * (len(matrices) + len(params) + 2 * self._count + 3))(
            *matrices,
            *[param.data_ptr() for param in params],
            *[final.data_ptr() for final in finals],
            None if sequence is None else sequence.data_ptr(),
            *[None] * (self._count - 1),
            weight_ih.data_ptr(),
            *biases,
        )
        weights = ctypes.addressof(array)
        own = weights + len(matrices) * engine._POINTER
        carry = own + len(params) * engine._POINTER
        sequences = carry + self._count * engine._POINTER
        input_weight = sequences + self._count * engine._POINTER
        problem = engine._Problem(
            ctypes.addressof(self._wiring), 1, B, 1, H, input.shape[1], 0,
            threads, self._parallel_for, None, weights, own, None, carry, sequences, None,
            None, None, input.data_ptr(), input_weight,
            biases[0] and input_weight + engine._POINTER,
            biases[1] and input_weight + 2 * engine._POINTER,
        )  # fmt: skip
        self._run(ctypes.byref(problem))
        return finals[0] if self._count == 1 else tuple(finals)


def takes(cell: Cell, dtype: torch.dtype) -> bool:
    """Whether a cell is one of those that ``Step`` takes, in a dtype that it has."""
    return (
        dtype in engine._REAL
        and bool(cell.x_gates)
        and not (cell.raw_gates or cell.streams or cell.drawn)
        and cell.is_plain
        and len({vectors for _, vectors in cell.matrices}) <= 1
        and all(param.learned for param in cell.given.values())
    )
