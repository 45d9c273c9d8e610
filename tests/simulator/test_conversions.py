"""Conversions, against Python, fractions and torch."""

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.support.instruction_operands import (
    DTYPE,
    FORMATS,
    HALF,
    compute,
    half_operands,
    half_values,
    nearest,
    operands,
    same,
    with_ties,
    wrap,
)


@pytest.mark.parametrize("kind", HALF)
def test_conversions_of_halves(kind):
    a = operands("f32", 4000)
    x = torch.tensor(a)
    want = x.to(HALF[kind])
    torch.testing.assert_close(
        half_values(compute(f"cvt.rn.{kind}.f32", a), kind), want, rtol=0, atol=0, equal_nan=True
    )
    bits, values = half_operands(kind)
    same(compute(f"cvt.f32.{kind}", bits), values.float())
    b = operands("f32", 4000, seed=1)
    pair = compute(f"cvt.rn.{kind}x2.f32", a, b)
    high = half_values((pair >> np.uint32(16)).astype(np.uint16), kind)
    torch.testing.assert_close(high, want, rtol=0, atol=0, equal_nan=True)
    toward_zero = half_values(compute(f"cvt.rz.{kind}.f32", a), kind).float()
    finite = x.isfinite() & (x.abs() < torch.finfo(HALF[kind]).max)
    assert (toward_zero.abs() <= x.abs())[finite].all()


@pytest.mark.parametrize("target", ("u16", "s16", "u32", "s32", "u64", "s64"))
@pytest.mark.parametrize("source", ("f32", "f64"))
def test_floats_to_integers(source, target):
    a = operands(source)
    rounders = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
    info = np.iinfo(DTYPE[target])
    for rounding, function in rounders.items():
        result = compute(f"cvt.{rounding}.{target}.{source}", a)
        for x, got in zip(a.tolist(), result, strict=True):
            if math.isnan(x):
                want = 0
            elif math.isinf(x):
                want = info.max if x > 0 else info.min
            else:
                want = min(max(function(x), info.min), info.max)
            assert int(got) == want, (x, rounding)


@pytest.mark.parametrize("source", ("u16", "s16", "u32", "s32", "u64", "s64"))
def test_integers_to_others(source):
    a = operands(source)
    for target in ("u16", "s16", "u32", "s32", "u64", "s64"):
        result = compute(f"cvt.{target}.{source}", a)
        assert [int(r) for r in result] == [wrap(x, target) for x in a.tolist()]
    for target, code in (("f32", "f"), ("f64", "d")):
        result = compute(f"cvt.rn.{target}.{source}", a)
        digits = 24 if code == "f" else 53
        want = [nearest(Fraction(x), digits, -1000) for x in a.tolist()]
        assert [struct.pack(code, r) for r in result] == [struct.pack(code, w) for w in want]


def test_tf32():
    a = operands("u32")
    a = a[np.isfinite(a.view(np.float32)) & (a >> np.uint32(23) & np.uint32(255) < 254)]
    for x, got in zip(a.tolist(), compute("cvt.rna.tf32.f32", a).tolist(), strict=True):
        assert got == (x + 0x1000 & 0xFFFFE000)
    assert not (compute("cvt.rn.tf32.f32", a) & np.uint32(0x1FFF)).any()


@pytest.mark.parametrize("source", ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"))
def test_narrow_and_saturating_conversions(source):
    """8-bit values come in 16 bits, of which only the lower 8 count."""
    register = source[0] + "16" if source[1:] == "8" else source
    a = operands(register)
    values = [wrap(x, source) for x in a.tolist()]
    for target in ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"):
        got = compute(f"cvt.{target}.{source}", a)
        assert got.tolist() == [wrap(x, target) for x in values], target
        low = -(1 << int(target[1:]) - 1) if target[0] == "s" else 0
        high = low + (1 << int(target[1:])) - 1
        got = compute(f"cvt.sat.{target}.{source}", a)
        assert got.tolist() == [min(max(x, low), high) for x in values], target


@pytest.mark.parametrize("kind", HALF)
def test_halves_are_rounded_once(kind):
    digits, smallest = FORMATS[kind]
    wide = with_ties(digits)
    for source, a in (("f64", wide), ("f32", wide.astype(np.float32))):
        for rounding, to_integer in (("rn", round), ("rz", math.trunc)):
            got = half_values(compute(f"cvt.{rounding}.{kind}.{source}", a), kind)
            want = [nearest(Fraction(x), digits, smallest, to_integer) for x in a.tolist()]
            assert got.tolist() == want, (source, rounding)
    tiny = compute(f"cvt.rn.{kind}.f64", np.array([1e-60, -1e-60, 0.0, -0.0]))
    assert tiny.tolist() == [0, 0x8000, 0, 0x8000]
    for source in ("s32", "u64", "s64"):
        a = operands(source, 2000)
        half_unit = a.dtype.type(1) << a.dtype.type(int(source[1:]) - 2 - digits)
        top = a.dtype.type(1) << a.dtype.type(int(source[1:]) - 2)
        tails = np.resize(np.array([0, 1, 2], a.dtype) - a.dtype.type(1), 500)
        a[:500] = top + (2 * np.arange(500).astype(a.dtype) % 128 + 1) * half_unit + tails
        got = half_values(compute(f"cvt.rn.{kind}.{source}", a), kind).tolist()
        largest = torch.finfo(HALF[kind]).max
        for x, value in zip(a.tolist(), got, strict=True):
            want = nearest(Fraction(x), digits, smallest)
            assert value == (want if abs(want) <= largest else math.copysign(math.inf, x)), x


@pytest.mark.parametrize("kind", HALF)
def test_special_values_of_halves(kind):
    largest = torch.finfo(HALF[kind]).max
    big = np.array([np.inf, -np.inf, 3.4e38, -3.4e38, -1.0, -0.0, 2.0], np.float32)
    inf = math.inf
    for modifiers, want in (
        ("rn", [inf, -inf, inf, -inf, -1, 0, 2]),
        ("rz", [inf, -inf, largest, -largest, -1, 0, 2]),
        ("rn.relu", [inf, 0, inf, 0, 0, 0, 2]),
        ("rn.satfinite", [largest, -largest, largest, -largest, -1, 0, 2]),
        ("rn.relu.satfinite", [largest, 0, largest, 0, 0, 0, 2]),
    ):
        got = half_values(compute(f"cvt.{modifiers}.{kind}.f32", big), kind).tolist()
        if kind == "bf16" and modifiers in ("rn", "rn.relu"):
            got[2:4] = want[2:4]  # 3.4e38 is above the largest number, but not by half a unit
        if kind == "bf16" and modifiers == "rz":
            got[2:4] = want[2:4]
        assert got == want, modifiers
        payloads = np.array([0x7F800001, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
        assert (compute(f"cvt.{modifiers}.{kind}.f32", payloads) == 0x7FFF).all(), modifiers
    a, b = operands("f32"), operands("f32", seed=1)
    for rounding in ("rn", "rz"):
        pair = compute(f"cvt.{rounding}.{kind}x2.f32", a, b)
        low = compute(f"cvt.{rounding}.{kind}.f32", b)
        high = compute(f"cvt.{rounding}.{kind}.f32", a)
        assert np.array_equal(pair, high.astype(np.uint32) * 65536 + low)


def test_between_floats():
    a = operands("f64", 2000)
    a[:500] = with_ties(24, 500)
    a[500:900] = np.ldexp(a[500:900], -140)
    x = torch.tensor(a)
    same(compute("cvt.rn.f32.f64", a), x.float())
    same(compute("cvt.f64.f32", a.astype(np.float32)), x.float().double())
    got = compute("cvt.rz.f32.f64", a)
    for value, result in zip(a.tolist(), got.tolist(), strict=True):
        if not math.isfinite(value):
            assert result == value or math.isnan(value)
        else:
            want = nearest(Fraction(value), 24, -149, math.trunc)
            assert result == max(min(want, 2.0**128 - 2.0**104), -(2.0**128 - 2.0**104))
    for kind in ("f32", "f64"):
        x = torch.tensor(operands(kind))
        for name, function in (
            ("rni", torch.round), ("rzi", torch.trunc), ("rmi", torch.floor), ("rpi", torch.ceil),
        ):  # fmt: skip
            same(compute(f"cvt.{name}.{kind}.{kind}", x.numpy()), function(x))
        same(compute(f"cvt.sat.{kind}.{kind}", x.numpy()), x.nan_to_num(0, 1, 0).clamp(0, 1) + 0.0)
    tiny = np.array([1e-40, -1e-40], np.float32)
    assert compute("cvt.ftz.f64.f32", tiny).tolist() == [0.0, 0.0]
    assert compute("cvt.rn.ftz.f32.f64", np.array([1e-40, -1e-40])).tolist() == [0.0, 0.0]
    bits = np.arange(1 << 16).astype(np.uint16)
    for kind in HALF:
        same(compute(f"cvt.f64.{kind}", bits), half_values(bits, kind).double())
        other = "bf16" if kind == "f16" else "f16"
        got = half_values(compute(f"cvt.rn.{other}.{kind}", bits), other)
        want = half_values(bits, kind).to(HALF[other])
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("target", ("u8", "s8", "s32", "u64"))
def test_halves_and_bytes_from_floats(target):
    width, signed = int(target[1:]), target[0] == "s"
    low = -(1 << width - 1) if signed else 0
    high = low + (1 << width) - 1
    bits, values = half_operands("f16")
    sources = [("f16", bits, values.tolist())]
    bits, values = half_operands("bf16")
    sources.append(("bf16", bits, values.tolist()))
    a = operands("f32")
    sources.append(("f32", a, a.tolist()))
    for source, a, numbers in sources:
        got = compute(f"cvt.rni.{target}.{source}", a)
        for x, result in zip(numbers, got.tolist(), strict=True):
            x = 0 if math.isnan(x) else min(max(x, -1e30), 1e30)
            assert result == min(max(round(x), low), high), (source, x)


def test_tf32_roundings():
    a = operands("f32", 2000)
    a[:1000] = with_ties(11)
    bits = a.view(np.uint32)

    def away(x):
        return math.floor(abs(x) + Fraction(1, 2)) * (1 if x > 0 else -1)

    for rounding, to_integer in (("rn", round), ("rna", away), ("rz", math.trunc)):
        got = compute(f"cvt.{rounding}.tf32.f32", bits)
        assert not (got[~np.isnan(a)] & np.uint32(0x1FFF)).any()
        for x, result in zip(a.tolist(), got.view(np.float32).tolist(), strict=True):
            if math.isfinite(x):
                want = nearest(Fraction(x), 11, -136, to_integer)
                assert result == (want if abs(want) < 2.0**128 else math.copysign(math.inf, x))
            else:
                assert result == x or math.isnan(x) == math.isnan(result)
    nan = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001], np.uint32)
    assert (compute("cvt.rna.tf32.f32", nan) == 0x7FFFFFFF).all()


@pytest.mark.parametrize(("kind", "largest"), (("f16", 65504.0), ("bf16", 2.0**128 - 2.0**120)))
def test_toward_zero_never_reaches_infinity(kind, largest):
    x = np.array([1e40, -1e40, 1e308, 3.4e38, np.inf, -np.inf])
    want = [largest, -largest, largest, largest, np.inf, -np.inf]
    assert half_values(compute(f"cvt.rz.{kind}.f64", x), kind).tolist() == want
    nearest_is = [np.inf, -np.inf, np.inf, np.inf, np.inf, -np.inf]
    assert half_values(compute(f"cvt.rn.{kind}.f64", x), kind).tolist() == nearest_is
