"""``cvt``: between integers, floats and the formats of tensor cores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import Unsupported
from .formats import (
    flushed,
    from_bf16,
    from_f16,
    to_bf16,
    to_f16,
    to_odd_f32,
    to_tf32,
    truncated,
    truncated_bf16,
    truncated_f16,
)
from .operations import Operation, take

# Type: the register type that holds it, and the numpy type of its values.
_INTEGERS = {
    "u8": ("u16", np.uint8),
    "s8": ("s16", np.int8),
    "u16": ("u16", np.uint16),
    "s16": ("s16", np.int16),
    "u32": ("u32", np.uint32),
    "s32": ("s32", np.int32),
    "u64": ("u64", np.uint64),
    "s64": ("s64", np.int64),
}
_FLOATS = {"f32": np.float32, "f64": np.float64}
_WIDEN = {"f16": from_f16, "bf16": from_bf16}
_LARGEST = {
    "f16": np.float32(65504),
    "bf16": np.uint32(0x7F7F0000).view(np.float32),
    "tf32": np.uint32(0x7F7FE000).view(np.float32),
}
# From float32 values that are exact or rounded to odd.
_NARROW = {
    ("f16", "rn"): to_f16,
    ("f16", "rz"): truncated_f16,
    ("bf16", "rn"): to_bf16,
    ("bf16", "rz"): truncated_bf16,
}
_TO_INTEGRAL = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_ROUNDINGS = ("rn", "rz", "rna", *_TO_INTEGRAL)


def find(kinds: list[str]) -> Operation:
    """Find the conversion for these modifiers; removes those it handles from ``kinds``.

    Raises:
        Unsupported: types, or a rounding, that are not known.
    """
    if len(kinds) < 2:
        raise Unsupported("cvt without two types")
    source, target = kinds.pop(), kinds.pop()
    rounding = next((kind for kind in kinds if kind in _ROUNDINGS), "")
    if rounding:
        kinds.remove(rounding)
    conversion = _between(source, target, rounding, kinds)
    if "f32" in (source, target) and target != "tf32" and take(kinds, "ftz"):
        conversion = _flushing(conversion)
    return conversion


def _between(source: str, target: str, rounding: str, kinds: list[str]) -> Operation:
    if source in _INTEGERS and target in _INTEGERS:
        if rounding:
            raise Unsupported(f"cvt.{rounding} between integers")
        return _integers(source, target, take(kinds, "sat"))
    if source in _INTEGERS:
        return _from_integer(source, target, rounding)
    if target in _INTEGERS:
        take(kinds, "sat")  # has no effect: these conversions always saturate
        return _to_integer(source, target, rounding)
    if target in _FLOATS:
        return _to_float(source, target, rounding, take(kinds, "sat"))
    return _to_small_float(source, target, rounding, kinds)


def _unknown(source: str, target: str, rounding: str) -> Unsupported:
    return Unsupported(f"cvt to {target} from {source} with rounding {rounding or 'none'}")


def _flushing(conversion: Operation) -> Operation:
    """With .ftz: subnormal float32 numbers are zeros, before and after."""
    convert, result, sources = conversion.compute, conversion.result, conversion.sources

    def compute(*values):
        if sources[0] == "f32":
            values = map(flushed, values)
        converted = convert(*values)
        return flushed(converted) if result == "f32" else converted

    return Operation(compute, result, sources)


# ---- integers


def _integers(source: str, target: str, saturate: bool) -> Operation:
    (register, dtype), (held_as, narrow) = _INTEGERS[source], _INTEGERS[target]
    held = _INTEGERS[held_as][1]
    if saturate:
        least, most = _common_range(dtype, narrow)
        return Operation(
            lambda a: np.clip(a.astype(dtype), least, most).astype(held), held_as, (register,)
        )
    if dtype().itemsize > 1 and narrow is held:
        return Operation(lambda a: a.astype(held), held_as, (register,))
    # 8-bit values are in the low bytes of 16-bit registers, and are extended to 16 bits.
    return Operation(lambda a: a.astype(dtype).astype(narrow).astype(held), held_as, (register,))


def _common_range(source, target):
    """The least and the largest number of an integer type that another one has too."""
    a, b = np.iinfo(source), np.iinfo(target)
    return source(max(a.min, b.min)), source(min(a.max, b.max))


def _from_integer(source: str, target: str, rounding: str) -> Operation:
    register, dtype = _INTEGERS[source]
    if rounding == "rn" and target in _FLOATS:
        wanted = _FLOATS[target]
        return Operation(lambda a: a.astype(dtype).astype(wanted), target, (register,))
    if (target, rounding) in _NARROW:
        narrow = _NARROW[target, rounding]
        return Operation(
            lambda a: narrow(to_odd_f32(_to_odd_f64(a.astype(dtype)))), "u16", (register,)
        )
    raise _unknown(source, target, rounding)


def _to_odd_f64(a):
    """Integers as float64; where bits are lost, the last bit is set (rounding to odd)."""
    if a.dtype.itemsize < 8:
        return a.astype(np.float64)
    dtype = a.dtype.type
    lost = dtype(0x7FF)  # float64 has 11 bits fewer
    short = (a & ~lost) | np.where(a & lost, dtype(0x800), dtype(0))
    exact = a.astype(np.float64)
    return np.where(np.abs(exact) < 2.0**53, exact, short.astype(np.float64))


def _to_integer(source: str, target: str, rounding: str) -> Operation:
    """Saturating, and zero for NaN."""
    if rounding not in _TO_INTEGRAL or source not in (*_FLOATS, *_WIDEN):
        raise _unknown(source, target, rounding)
    to_integral, widen = _TO_INTEGRAL[rounding], _WIDEN.get(source)
    held_as, dtype = _INTEGERS[target]
    held, info = _INTEGERS[held_as][1], np.iinfo(dtype)
    # float64 lacks the largest 64-bit integers, but has the powers of two that follow them.
    least, beyond = float(info.min), float(info.max + 1)

    def compute(a):
        x = to_integral((widen(a) if widen else a).astype(np.float64))
        inside = np.where((x >= least) & (x < beyond), x, 0.0).astype(dtype)
        result = np.where(x >= beyond, dtype(info.max), inside)
        return np.where(x < least, dtype(info.min), result).astype(held)

    return Operation(compute, held_as, ("u16" if widen else source,))


# ---- floats


def _to_float(source: str, target: str, rounding: str, saturate: bool) -> Operation:
    """To f32 or f64."""
    dtype = _FLOATS[target]
    if source in _WIDEN and not rounding:
        widen = _WIDEN[source]
        convert = widen if target == "f32" else lambda a: widen(a).astype(dtype)
    elif source == target and rounding in ("", *_TO_INTEGRAL):
        convert = _TO_INTEGRAL.get(rounding, np.positive)
    elif (source, target, rounding) in (("f32", "f64", ""), ("f64", "f32", "rn")):
        convert = lambda a: a.astype(dtype)  # noqa: E731
    elif (source, target, rounding) == ("f64", "f32", "rz"):
        convert = lambda a: truncated(a, np.float32)  # noqa: E731
    else:
        raise _unknown(source, target, rounding)
    if saturate:
        unclamped = convert

        def convert(a):
            x = unclamped(a)
            return np.where(x > 0, np.minimum(x, dtype(1)), dtype(0))  # zero for NaN

    return Operation(convert, target, ("u16" if source in _WIDEN else source,))


def _to_small_float(source: str, target: str, rounding: str, kinds: list[str]) -> Operation:
    """To f16, bf16, pairs of them, and tf32."""
    half = target.removesuffix("x2")
    prepare = _clamp(half, take(kinds, "relu"), take(kinds, "satfinite"))
    if target == "tf32" and source == "f32" and rounding in ("rn", "rna", "rz"):
        return Operation(
            lambda bits: to_tf32(prepare(bits.view(np.float32)), rounding), "u32", ("u32",)
        )
    if source == target and source in _WIDEN and rounding in _TO_INTEGRAL:
        to_integral, widen, narrow = _TO_INTEGRAL[rounding], _WIDEN[source], _NARROW[half, "rn"]
        return Operation(lambda a: narrow(to_integral(prepare(widen(a)))), "u16", ("u16",))
    if (half, rounding) not in _NARROW:
        raise _unknown(source, target, rounding)
    narrow = _NARROW[half, rounding]
    if target != half:
        if source != "f32":
            raise _unknown(source, target, rounding)

        def pack(high, low):
            """The first source is the high half."""
            pair = narrow(prepare(high)).astype(np.uint32) << np.uint32(16)
            return pair | narrow(prepare(low))

        return Operation(pack, "u32", ("f32", "f32"))
    if source == "f32":
        return Operation(lambda a: narrow(prepare(a)), "u16", ("f32",))
    if source == "f64":
        return Operation(lambda a: narrow(prepare(to_odd_f32(a))), "u16", ("f64",))
    if source in _WIDEN:
        widen = _WIDEN[source]
        return Operation(lambda a: narrow(prepare(widen(a))), "u16", ("u16",))
    raise _unknown(source, target, rounding)


def _clamp(target: str, relu: bool, satfinite: bool) -> Callable:
    """Apply .relu and .satfinite to float32 values before they are rounded; NaN stays NaN."""
    if not relu and not satfinite:
        return lambda x: x
    largest = _LARGEST.get(target, np.inf)
    most = largest if satfinite else np.float32(np.inf)
    if relu:
        return lambda x: np.where(x <= 0, np.float32(0), np.minimum(x, most))
    return lambda x: np.clip(x, -most, most)
