"""The registers of all warps, and the operands of instructions as numpy arrays over them.

A register is an array of (warps, 32); ``operand[warps]`` with a slice of warps gives its values,
for registers and constants alike.
"""

from __future__ import annotations

import re

import numpy as np

from .errors import Unsupported
from .ptx import SIZE, Program, unwritten_registers

LANES = np.arange(32, dtype=np.uint32)

# The numpy type for each PTX type.
DTYPE = {
    "pred": np.bool_,
    **dict.fromkeys(("b8", "u8"), np.uint8),
    "s8": np.int8,
    **dict.fromkeys(("b16", "u16", "f16", "bf16"), np.uint16),
    "s16": np.int16,
    **dict.fromkeys(("b32", "u32", "f16x2", "bf16x2", "tf32"), np.uint32),
    "s32": np.int32,
    "f32": np.float32,
    **dict.fromkeys(("b64", "u64"), np.uint64),
    "s64": np.int64,
    "f64": np.float64,
}
_STORAGE = {0: np.bool_, 2: np.uint16, 4: np.uint32, 8: np.uint64}
# The content of a register that is never written: NaN as a float, and an unlikely address.
_NOBODYS = {0: True, 2: 0xFFF5, 4: 0xFFF5FFF5, 8: 0xFFF5FFF5FFF5FFF5}


class Constant:
    """An operand that is the same for all warps."""

    def __init__(self, value):
        self.value = value

    def __getitem__(self, warps):
        return self.value


class Low:
    """The low bits of wider registers."""

    def __init__(self, register, dtype):
        self.register, self.dtype = register, dtype

    def __getitem__(self, warps):
        return self.register[warps].astype(self.dtype)


class Registers:
    """The register file.

    Args:
        program: declares the registers.
        warps: of all CTAs.
        constants: values of other names: parameters, special registers, labels of shared memory;
            each a number or an array over warps.
    """

    def __init__(self, program: Program, warps: int, constants: dict):
        self._constants = constants
        self._place = {}
        counts = dict.fromkeys(_STORAGE, 0)
        for name, kind in program.registers.items():
            width = 0 if kind == "pred" else SIZE[kind]
            if width not in _STORAGE:
                raise Unsupported(f"register {name} of type {kind}")
            self._place[name] = (width, counts[width])
            counts[width] += 1
        self._files = {
            width: np.zeros((count, warps, 32), _STORAGE[width]) for width, count in counts.items()
        }
        for name in unwritten_registers(program):
            width, index = self._place[name]
            self._files[width][index] = _NOBODYS[width]

    def files(self) -> list[np.ndarray]:
        """The registers of each width."""
        return list(self._files.values())

    def width(self, name: str) -> int | None:
        """Bytes of a register, 0 for a predicate; None for another operand."""
        place = self._place.get(name)
        return place and place[0]

    def register(self, name: str, kind: str) -> np.ndarray:
        """(warps, 32), a view of a register as a type of its own width.

        Raises:
            Unsupported: no such register, or of another width.
        """
        if name not in self._place:
            raise Unsupported(f"{name!r} is not a register")
        width, index = self._place[name]
        dtype = np.dtype(DTYPE[kind])
        if (0 if kind == "pred" else dtype.itemsize) != width:
            raise Unsupported(f"register {name} of {width} bytes used as {kind}")
        return self._files[width][index].view(dtype)

    def operand(self, text: str, kind: str):
        """A source operand as ``kind``: a register, part of a wider one, or a constant."""
        width = self.width(text)
        if width is not None:
            if kind == "pred" or SIZE.get(kind) == width:
                return self.register(text, kind)
            if width < SIZE[kind]:
                raise Unsupported(f"register {text} of {width} bytes read as {kind}")
            unsigned = self._files[width][self._place[text][1]]
            return Low(unsigned, DTYPE[kind])
        if text in self._constants:
            value = self._constants[text]
            return (
                value.astype(DTYPE[kind])
                if isinstance(value, np.ndarray)
                else Constant(_as(value, kind))
            )
        return Constant(_literal(text, kind))


def vector(operand: str) -> list[str]:
    """The elements of ``{a, b}``; a scalar is one element."""
    if operand.startswith("{"):
        return [part.strip() for part in operand[1:-1].split(",")]
    return [operand]


def address(operand: str) -> tuple[str, int]:
    """The base and the offset of ``[%rd1+16]``."""
    inner = operand.strip()[1:-1].strip()
    parts = re.fullmatch(r"(\S+?)\s*\+\s*(-?\w+)", inner)
    return (parts.group(1), int(parts.group(2), 0)) if parts else (inner, 0)


def _literal(text: str, kind: str):
    """Parse a number of PTX: 12, 0xff, -1, 0f3F800000, 0d3FF0000000000000."""
    single = re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text)
    if single:
        bits = np.uint32(int(single.group(1), 16))
        return bits.view(DTYPE[kind]) if SIZE[kind] == 4 else DTYPE[kind](bits.view(np.float32))
    double = re.fullmatch(r"0[dD]([0-9a-fA-F]{16})", text)
    if double:
        bits = np.uint64(int(double.group(1), 16))
        return bits.view(DTYPE[kind]) if SIZE[kind] == 8 else DTYPE[kind](bits.view(np.float64))
    try:
        value = int(text.rstrip("U"), 0)
    except ValueError:
        raise Unsupported(f"operand {text!r}") from None
    return _as(value, kind)


def _as(value: int, kind: str):
    """The low bits of an integer as a value of a type."""
    if kind == "pred":
        return np.bool_(value != 0)
    size = SIZE[kind]
    bits = np.dtype(f"u{size}").type(value % (1 << 8 * size))
    return bits.view(DTYPE[kind])
