"""What the tensor core computes for a warp, and which lane holds which element.

Layouts of ``mma`` and of 8×8 matrices, as the PTX ISA draws them: with group = lane // 4 and thread
= lane % 4, a lane holds elements of row ``group`` (A, C, D) or of column ``group`` (B); along the
other dim ``thread`` counts registers of 32 bits, or pairs of accumulators.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ..errors import Unsupported
from .formats import from_bf16, from_f16, tf32_of, to_f16
from .operations import take

_LANE = np.arange(32)
GROUP, THREAD = _LANE // 4, _LANE % 4

# Elements in a register of 32 bits, or of 64 for float64.
_PACKED = {"bf16": 2, "f16": 2, "tf32": 1, "f64": 1, "s8": 4, "u8": 4}
_SHAPES = {
    "bf16": ((16, 8, 8), (16, 8, 16)),
    "f16": ((16, 8, 8), (16, 8, 16)),
    "tf32": ((16, 8, 4), (16, 8, 8)),
    "f64": ((8, 8, 4), (16, 8, 4), (16, 8, 8), (16, 8, 16)),
    "s8": ((16, 8, 16), (16, 8, 32)),
    "u8": ((16, 8, 16), (16, 8, 32)),
}
_ACCUMULATORS = {
    "bf16": ("f32",),
    "f16": ("f32", "f16"),
    "tf32": ("f32",),
    "f64": ("f64",),
    "s8": ("s32",),
    "u8": ("s32",),
}


@dataclass(frozen=True)
class Mma:
    """D = A · B + C for one warp: A (m, k), B (k, n), C and D (m, n).

    Products are summed by numpy in the accumulator's type, and C is added last; the order and the
    inner precision of hardware differ and are not documented.

    Args:
        shape: (m, n, k).
        types: of A and B.
        accumulator: type of C and D.
        saturates: whether integers saturate; otherwise they wrap.
    """

    shape: tuple[int, int, int]
    types: tuple[str, str]
    accumulator: str
    saturates: bool = False

    @property
    def a(self) -> tuple[int, str]:
        """The number of registers of A in a lane, and their type."""
        m, _, k = self.shape
        return m * k // 32 // _PACKED[self.types[0]], self._source_register

    @property
    def b(self) -> tuple[int, str]:
        _, n, k = self.shape
        return n * k // 32 // _PACKED[self.types[1]], self._source_register

    @property
    def c(self) -> tuple[int, str]:
        """The same for C and for D."""
        m, n, _ = self.shape
        if self.accumulator == "f16":
            return m * n // 64, "u32"
        return m * n // 32, self.accumulator

    def compute(self, a: list, b: list, c: list) -> list[np.ndarray]:
        """Compute the registers of D from those of A, B and C, each (warps, 32)."""
        m, n, k = self.shape
        rows = max(1, m // 8)
        left = _tile(a, self.types[0], (m, k), rows)
        right = _tile(b, self.types[1], (n, k), 1)
        product = left @ right.swapaxes(1, 2)
        if self.accumulator == "f16":
            c = [half for register in c for half in _elements(register, "f16")]
        if self.saturates:
            product, c = product.astype(np.int64), [value.astype(np.int64) for value in c]
        total = [product[:, i, j] + value for (i, j), value in zip(_pairs(m, n), c, strict=True)]
        if self.accumulator == "f16":
            halves = [to_f16(value).astype(np.uint32) for value in total]
            return [
                low | high << np.uint32(16)
                for low, high in zip(halves[::2], halves[1::2], strict=True)
            ]
        if self.saturates:
            limits = np.iinfo(np.int32)
            return [np.clip(value, limits.min, limits.max).astype(np.int32) for value in total]
        return total

    @property
    def _source_register(self):
        return "f64" if self.types[0] == "f64" else "u32"


def mma(modifiers: tuple[str, ...]) -> Mma:
    """The operation of ``mma.<modifiers>``.

    Raises:
        Unsupported: a shape, type or modifier that is not known.
    """
    name = f"mma.{'.'.join(modifiers)}"
    kinds = list(modifiers[2:])
    saturates = bool(take(kinds, "satfinite"))
    kinds = tuple(kinds)
    shape = re.fullmatch(r"m(\d+)n(\d+)k(\d+)", kinds[0]) if len(kinds) == 7 else None
    if not shape or modifiers[:2] != ("sync", "aligned") or kinds[1:3] != ("row", "col"):
        raise Unsupported(name)
    shape = tuple(map(int, shape.groups()))
    d, a, b, c = kinds[3:]
    if a != b and {a, b} != {"s8", "u8"}:  # only the integers may be mixed
        raise Unsupported(f"{name}: a product of {a} and {b}")
    if shape not in _SHAPES.get(a, ()):
        raise Unsupported(f"{name}: {a} in {kinds[0]}")
    if c != d or d not in _ACCUMULATORS[a]:
        raise Unsupported(f"{name}: {a} into {d}, from {c}")
    if saturates and d != "s32":
        raise Unsupported(f"{name}: only integers saturate")
    return Mma(shape, (a, b), d, saturates)


def _pairs(m: int, n: int):
    """Row and column of each accumulator, in the order of the registers."""
    for row in range(0, m, 8):
        for column in (0, 1):
            yield GROUP + row, 2 * THREAD + column


def _elements(register: np.ndarray, kind: str) -> list[np.ndarray]:
    """The values in a register, from the low bits up."""
    if kind == "f64":
        return [register]
    if kind == "tf32":
        return [tf32_of(register)]
    register = np.ascontiguousarray(register)
    if kind in ("s8", "u8"):
        parts = register[..., None].view(np.int8 if kind == "s8" else np.uint8)
        return [parts[..., i].astype(np.int32) for i in range(4)]
    widen = from_bf16 if kind == "bf16" else from_f16
    parts = register[..., None].view(np.uint16)
    return [widen(parts[..., i]) for i in range(2)]


def _tile(registers: list, kind: str, shape: tuple[int, int], rows: int) -> np.ndarray:
    """(warps, *shape) of an operand: registers go down its rows first, then along k."""
    packed = _PACKED[kind]
    dtype = {"f64": np.float64, "s8": np.int32, "u8": np.int32}.get(kind, np.float32)
    tile = np.empty((registers[0].shape[0], *shape), dtype)
    for i, register in enumerate(registers):
        row, first = GROUP + 8 * (i % rows), 4 * packed * (i // rows) + packed * THREAD
        for j, value in enumerate(_elements(register, kind)):
            tile[:, row, first + j] = value
    return tile


def matrices_to_lanes(tiles: np.ndarray, transposed: bool) -> list[np.ndarray]:
    """``ldmatrix``: (warps, n, 8, 8) uint16 to n registers (warps, 32)."""
    if transposed:
        tiles = tiles.swapaxes(2, 3)
    low, high = tiles[:, :, GROUP, 2 * THREAD], tiles[:, :, GROUP, 2 * THREAD + 1]
    registers = low.astype(np.uint32) | high.astype(np.uint32) << np.uint32(16)
    return [registers[:, i] for i in range(tiles.shape[1])]


def lanes_to_matrices(registers: list, transposed: bool) -> np.ndarray:
    """``stmatrix``: n registers (warps, 32) to (warps, n, 8, 8) uint16."""
    stacked = np.stack(registers, 1)
    tiles = np.empty((*stacked.shape[:2], 8, 8), np.uint16)
    tiles[:, :, GROUP, 2 * THREAD] = stacked.astype(np.uint16)
    tiles[:, :, GROUP, 2 * THREAD + 1] = (stacked >> np.uint32(16)).astype(np.uint16)
    return tiles.swapaxes(2, 3) if transposed else tiles
