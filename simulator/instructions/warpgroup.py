"""``wgmma``: products by four warps, of operands that the tensor core reads from shared memory.

D is (64, n); warp i of its warpgroup has rows 16·i to 16·i + 15, laid out over its lanes like the
accumulators of ``mma``, 8 columns at a time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ..errors import Unsupported
from .formats import from_bf16, from_f16, tf32_of
from .tensor_cores import GROUP, THREAD, _tile

_BYTES = {"f16": 2, "bf16": 2, "tf32": 4}
_SWIZZLE = {0: 0, 1: 128, 2: 64, 3: 32}


@dataclass(frozen=True)
class Descriptor:
    """The layout of an operand in shared memory, in bytes.

    Args:
        start: of the tile.
        leading, stride: offsets between core matrices of 8 rows × 16 bytes along the two dims;
            which is which depends on the major dim and on the swizzle.
        swizzle: 0, 32, 64 or 128: the width in which 16-byte pieces are permuted.
    """

    start: int
    leading: int
    stride: int
    swizzle: int


def decode(bits: int) -> Descriptor:
    """The fields of a matrix descriptor.

    Raises:
        Unsupported: a base offset, for tiles that do not begin where the pattern repeats.
    """
    if bits >> 49 & 7:
        raise Unsupported("a wgmma descriptor with a base offset")
    start, leading, stride = ((bits >> at & 0x3FFF) << 4 for at in (0, 16, 32))
    return Descriptor(start, leading, stride, _SWIZZLE[bits >> 62 & 3])


def addresses(
    descriptor: Descriptor, rows: int, columns: int, itemsize: int, transposed: bool
) -> np.ndarray:
    """(rows, columns) addresses in shared memory of a tile's elements.

    Args:
        rows: of M or N.
        columns: of K.
        transposed: the elements of a column, not of a row, are contiguous.

    Raises:
        Unsupported: transposed elements of other than 16 bits, which wgmma does not have.
    """
    if transposed and itemsize != 2:
        raise Unsupported(f"a transposed wgmma operand with elements of {itemsize} bytes")
    row, column = np.arange(rows)[:, None], np.arange(columns)[None, :]
    piece = 16 // itemsize  # elements of 16 bytes
    width = max(descriptor.swizzle, 16)
    if not transposed:
        # The 8 rows of one repetition of the pattern are contiguous. Along K the pieces are
        # contiguous within the width; without a swizzle, the leading offset apart.
        offset = row // 8 * descriptor.stride + row % 8 * width + column % piece * itemsize
        step = descriptor.leading if descriptor.swizzle == 0 else 16
        offset = offset + column // piece * step
    else:
        across = width // itemsize  # contiguous elements of M or N
        along, outer = descriptor.stride, descriptor.leading
        if descriptor.swizzle == 0:
            along, outer = descriptor.leading, descriptor.stride
        offset = row % across * itemsize + row // across * outer
        offset = offset + column % 8 * width + column // 8 * along
    return _swizzled(descriptor.start + offset, descriptor.swizzle)


def _swizzled(address: np.ndarray, width: int) -> np.ndarray:
    """Permute the 16-byte pieces of each row by the number of the row."""
    mask = {0: 0, 32: 1, 64: 3, 128: 7}[width]
    return address ^ ((address >> 7 & mask) << 4)


def widen(bits: np.ndarray, kind: str) -> np.ndarray:
    """Elements read from memory, u16 or u32, as float32."""
    return {"f16": from_f16, "bf16": from_bf16, "tf32": tf32_of}[kind](bits)


@dataclass(frozen=True)
class Wgmma:
    """One ``wgmma.mma_async``: D (64, n) = ±A (64, k) · ±B (k, n) + D, accumulated in float32."""

    n: int
    k: int
    a_type: str
    b_type: str

    @property
    def d_count(self) -> int:
        """Registers of D of a lane."""
        return self.n // 2

    def a_from_registers(self, registers: list[np.ndarray]) -> np.ndarray:
        """(warps, 16, k): A as ``mma`` holds it."""
        return _tile(registers, self.a_type, (16, self.k), 2)

    def compute(self, a, b, scale_a: int, scale_b: int) -> list[np.ndarray]:
        """A warp's rows of A · B, in the registers of D.

        Args:
            a: (warps, 16, k). b: (warps, n, k).
        """
        product = np.float32(scale_a * scale_b) * (a @ b.swapaxes(1, 2))
        return [
            product[:, GROUP + row, 2 * THREAD + column + first]
            for first in range(0, self.n, 8)
            for row in (0, 8)
            for column in (0, 1)
        ]


def parse(modifiers: tuple[str, ...]) -> Wgmma:
    """The operation of ``wgmma.<modifiers>``.

    Raises:
        Unsupported: types or a shape that are not known.
    """
    if modifiers[:3] != ("mma_async", "sync", "aligned") or len(modifiers) != 7:
        raise Unsupported(f"wgmma.{'.'.join(modifiers)}")
    shape = re.fullmatch(r"m64n(\d+)k(\d+)", modifiers[3])
    d, a, b = modifiers[4:]
    if d != "f32" or a not in _BYTES or a != b:
        raise Unsupported(f"wgmma of {a} and {b} into {d}")
    n, k = map(int, shape.groups()) if shape else (0, 0)
    if k != 32 // _BYTES[a] or n % 8 or not 8 <= n <= 256:
        raise Unsupported(f"wgmma of {a} in {modifiers[3]}")
    return Wgmma(n, k, a, b)
