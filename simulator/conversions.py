"""``cvt``: between integers, floats and the formats of tensor cores."""

from __future__ import annotations

import numpy as np

from .errors import Unsupported
from .formats import (
    flushed,
    from_bf16,
    from_f16,
    to_bf16,
    to_f16,
    to_tf32,
    truncated_f16,
)

_ROUND = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_FLOATS = {"f32": np.float32, "f64": np.float64}
_WIDEN = {"f16": from_f16, "bf16": from_bf16}
_NARROW = {
    ("f16", "rn"): to_f16,
    ("bf16", "rn"): to_bf16,
    ("f16", "rz"): truncated_f16,
    ("bf16", "rz"): lambda x: (x.view(np.uint32) >> np.uint32(16)).astype(np.uint16),
}


def find(kinds: list[str]) -> tuple:
    """(function, register type of the result, of the sources); what it understands of ``kinds``
    is removed."""
    source, target = kinds.pop(), kinds.pop()
    rounding = next((k for k in kinds if k in ("rn", "rz", "rna", *_ROUND)), "")
    if rounding:
        kinds.remove(rounding)
    function, result, sources = _between(source, target, rounding)
    if "ftz" in kinds and "f32" in (source, target):
        kinds.remove("ftz")
        unflushed = function

        def function(*values):
            values = [flushed(v) if source == "f32" else v for v in values]
            converted = unflushed(*values)
            return flushed(converted) if target == "f32" else converted

    if "relu" in kinds and source == "f32":
        kinds.remove("relu")
        unclamped = function

        def function(*values):
            return unclamped(*(np.fmax(v, np.float32(0)) for v in values))

    return function, result, sources


def _between(source: str, target: str, rounding: str) -> tuple:
    if target in ("bf16x2", "f16x2") and source == "f32":
        narrow = _narrow(target[:-2], rounding)

        def pack(high, low):
            return narrow(high).astype(np.uint32) << np.uint32(16) | narrow(low)

        return pack, "u32", ("f32", "f32")
    if target == "tf32" and source == "f32" and rounding in ("rna", "rn"):
        return lambda bits: to_tf32(bits, rounding == "rna"), "u32", ("u32",)
    if target in _WIDEN:
        if source in _FLOATS:
            narrow = _narrow(target, rounding)
            return lambda x: narrow(x.astype(np.float32)), "u16", (source,)
        if _is_integer(source):
            narrow = _narrow(target, rounding)
            read = _reader(source)
            return lambda x: narrow(read(x).astype(np.float32)), "u16", (_register(source),)
        raise Unsupported(f"cvt.{target}.{source}")
    if source in _WIDEN:
        widen = _WIDEN[source]
        if target == "f32":
            return widen, "f32", ("u16",)
        inner, result, _ = _between("f32", target, rounding)
        return lambda bits: inner(widen(bits)), result, ("u16",)
    if source in _FLOATS and target in _FLOATS:
        return _between_floats(source, target, rounding)
    if source in _FLOATS:
        return _to_integer(source, target, rounding)
    if target in _FLOATS:
        read, dtype = _reader(source), _FLOATS[target]
        if rounding != "rn":
            raise Unsupported(f"cvt.{rounding}.{target}.{source}")
        return lambda x: read(x).astype(dtype), target, (_register(source),)
    read, narrow = _reader(source), np.dtype(f"{_letter(target)}{_bytes(target)}")
    held = np.dtype(f"{_letter(target)}{max(2, _bytes(target))}")
    return lambda x: read(x).astype(narrow).astype(held), _register(target), (_register(source),)


def _between_floats(source, target, rounding) -> tuple:
    dtype = _FLOATS[target]
    if rounding in _ROUND:
        round_ = _ROUND[rounding]
        return lambda x: round_(x).astype(dtype), target, (source,)
    if rounding not in ("", "rn"):
        raise Unsupported(f"cvt.{rounding}.{target}.{source}")
    return lambda x: x.astype(dtype), target, (source,)


def _to_integer(source, target, rounding) -> tuple:
    """Saturating, and zero for NaN."""
    if rounding not in _ROUND:
        raise Unsupported(f"cvt.{target}.{source} without an integer rounding")
    round_, info = _ROUND[rounding], np.iinfo(f"{_letter(target)}{_bytes(target)}")
    held = np.dtype(f"{_letter(target)}{max(2, _bytes(target))}")

    def convert(x):
        x = round_(np.asarray(x, np.float64))
        # The largest 64-bit integers are no float64: what is not below them is set to them.
        inside = np.where((x >= float(info.min)) & (x < float(info.max)), x, 0)
        result = inside.astype(info.dtype)
        result = np.where(x >= float(info.max), info.dtype.type(info.max), result)
        return np.where(x < float(info.min), info.dtype.type(info.min), result).astype(held)

    return convert, _register(target), (source,)


def _narrow(half: str, rounding: str):
    if (half, rounding) not in _NARROW:
        raise Unsupported(f"cvt to {half} with rounding {rounding or 'none'}")
    return _NARROW[half, rounding]


def _is_integer(kind: str) -> bool:
    return kind[0] in "us" and kind[1:].isdigit()


def _letter(kind: str) -> str:
    if not _is_integer(kind):
        raise Unsupported(f"cvt with {kind}")
    return "i" if kind[0] == "s" else "u"


def _bytes(kind: str) -> int:
    return int(kind[1:]) // 8


def _register(kind: str) -> str:
    """8-bit values live in 16 bits."""
    return f"{kind[0]}{max(16, int(kind[1:]))}"


def _reader(kind: str):
    """A function that gives the value of an integer, of 8 bits where only those count."""
    if _bytes(kind) > 1:
        _letter(kind)
        return lambda x: x
    return lambda x: x.astype(np.int8 if kind[0] == "s" else np.uint8)
