"""Comparisons, and what holds of all pointwise instructions."""

import math

import numpy as np
import pytest

from simulator import Unsupported
from simulator.instructions.arithmetic import find
from tests.support.instruction_operands import DTYPE, HALF, compute, half_operands, operands


def test_comparisons():
    a, b = operands("f32"), operands("f32", seed=1)
    b[::5] = a[::5]
    ordered = {
        "eq": "__eq__",
        "lt": "__lt__",
        "le": "__le__",
        "gt": "__gt__",
        "ge": "__ge__",
        "ne": "__ne__",
    }
    for name, method in ordered.items():
        for unordered in ("", "u"):
            result = compute(f"setp.{name}{unordered}.f32", a, b)
            for x, y, got in zip(a.tolist(), b.tolist(), result.tolist(), strict=True):
                if math.isnan(x) or math.isnan(y):
                    assert got == bool(unordered)
                else:
                    assert got == getattr(x, method)(y)
    nans = np.isnan(a) | np.isnan(b)
    assert np.array_equal(compute("setp.nan.f32", a, b), nans)
    assert np.array_equal(compute("setp.num.f32", a, b), ~nans)
    also = operands("pred")
    for join, function in (("and", all), ("or", any)):
        result = compute(f"setp.lt.{join}.s32", a.view(np.int32), b.view(np.int32), also)
        for x, y, z, got in zip(a.view(np.int32), b.view(np.int32), also, result, strict=True):
            assert got == function((int(x) < int(y), bool(z)))
    x, y = operands("u32"), operands("u32", seed=1)
    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    assert compute("setp.lo.u32", x, y).tolist() == [p < q for p, q in pairs]
    choice = compute("selp.b32", x, y, also).tolist()
    assert choice == [p if z else q for (p, q), z in zip(pairs, also, strict=True)]


@pytest.mark.parametrize(
    "name",
    (
        "add.rs.f32", "add.cc.u32", "mul.hi.f32", "fma.rm.f64", "cvt.rn.e4m3x2.f32", "cvt.f32.s32",
        "prmt.f4e.b32", "setp.lt.nand.s32", "ex2.approx.e5m2", "min.xorsign.f32", "cvta.shared.u64",
    ),
)  # fmt: skip
def test_what_is_not_known(name):
    opcode, *modifiers = name.split(".")
    with pytest.raises(Unsupported):
        find(opcode, tuple(modifiers))


def test_other_families_are_not_pointwise():
    for opcode in ("ld", "st", "bra", "mov", "mma", "bar"):
        assert find(opcode, ("b32",)) is None


# All pointwise instructions of the compiled cells, from Triton 3.7.1 for sm_80 and sm_90.
EMITTED = """
abs.f32 abs.f64 abs.ftz.f32 add.bf16 add.f16 add.f32 add.f64 add.rn.f64 add.s32 add.s64 and.b32
and.b64 and.pred bfe.s32 bfe.u32 cvt.f32.bf16 cvt.f32.f16 cvt.rn.bf16.f32 cvt.rn.bf16x2.f32
cvt.rn.f16.f32 cvt.rn.f16x2.f32 cvt.s64.s32 cvt.u16.u32 cvt.u32.u64 cvt.u64.u32 div.full.f32
div.rn.f64 ex2.approx.f32 fma.rn.bf16 fma.rn.f32 fma.rn.f64 mad.lo.s32 mad.lo.s64 mad.wide.s32
mad.wide.u32 mul.f32 mul.f64 mul.lo.s32 mul.lo.s64 mul.wide.s32 mul.wide.u32 neg.f32 neg.f64
neg.s32 neg.s64 not.b32 not.pred or.b32 or.b64 selp.b32 selp.b64 selp.f32 selp.f64 setp.eq.b32
setp.ge.s32 setp.geu.f32 setp.gt.s64 setp.lt.bf16 setp.lt.f16 setp.lt.f32 setp.lt.f64 setp.lt.s32
setp.lt.s64 setp.lt.u32 setp.ne.b32 setp.ne.b64 setp.num.f64 shl.b32 shl.b64 shr.s32 shr.u32
shr.u64 sub.f32 sub.f64 sub.s32 sub.s64 xor.b32
"""


# One or more of every other opcode and of the ways to compute.
OTHERS = """
abs.s16 neg.bf16x2 sub.f16x2 add.sat.f32 mul.hi.u32 mul.hi.s64 mul.wide.u16 mad.hi.s64 mad.rn.f32
div.s32 rem.u64 min.s16 max.NaN.f32 min.bf16x2 xor.pred cnot.b16 shl.b16 shr.s64 shf.l.wrap.b32
shf.r.clamp.b32 lop3.b32 prmt.b32 bfe.s64 bfi.b32 bfi.b64 brev.b32 clz.b64 popc.b32 bfind.s32
bfind.shiftamt.u64 slct.f64.s32 slct.ftz.b32.f32 set.lt.u32.f32 set.gt.and.f32.s32
setp.hs.xor.u16 setp.ltu.ftz.or.f32 cvta.to.global.u64 fma.rn.sat.f16x2 fma.rn.ftz.f16
lg2.approx.f32 rcp.approx.ftz.f32 sqrt.rn.f64 rsqrt.approx.f64 sin.approx.f32 cos.approx.f32
tanh.approx.bf16x2 copysign.f64 testp.normal.f32 cvt.sat.u8.s32 cvt.s64.s8
cvt.rn.bf16.u64 cvt.rni.s8.f16
cvt.rzi.f32.f32 cvt.rz.f32.f64 cvt.rn.relu.f16x2.f32 cvt.rna.satfinite.tf32.f32 cvt.rn.bf16.f16
"""


KNOWN = (EMITTED + OTHERS).split()


@pytest.mark.parametrize("name", KNOWN)
def test_immediates_give_what_registers_give(name):
    opcode, *modifiers = name.split(".")
    operation = find(opcode, tuple(modifiers))
    values = [operands(kind, seed=k) for k, kind in enumerate(operation.sources)]
    # The table of lop3 is always an immediate.
    table = [np.uint32(0xCA)] if name == "lop3.b32" else []
    values = values[: len(values) - len(table)]
    result = operation.compute(*values, *table)
    for k in range(20):
        scalars = [value[k] for value in values]
        first = [scalars[0], *values[1:], *table]
        last = [*values[:-1], scalars[-1], *table]
        for got in (
            operation.compute(*scalars, *table),
            np.broadcast_to(operation.compute(*first), result.shape)[k],
            np.broadcast_to(operation.compute(*last), result.shape)[k],
        ):
            assert got.dtype == DTYPE[operation.result]
            assert np.array_equal(got, result[k], equal_nan=got.dtype.kind == "f")


@pytest.mark.parametrize("name", KNOWN)
def test_no_modifier_is_ignored(name):
    opcode, *modifiers = name.split(".")
    for wrong in ("bogus", modifiers[0], "rs", "cc"):
        with pytest.raises(Unsupported):
            find(opcode, (wrong, *modifiers))
    with pytest.raises(Unsupported):
        find(opcode, (*modifiers[:-1], "b128"))
    with pytest.raises(Unsupported):
        find(opcode, ())


# Of these opcodes, and either no PTX or not modelled.
UNKNOWN = """
add.ftz.f64 add.ftz.s32 add.sat.bf16 add.sat.s32 mul.s32 mul.wide.u64 mad.lo.f32 mad.f32
mad.rn.f16 div.f32 div.full.f64 div.approx.f16 rem.f32 min.rn.f32 neg.u32 and.u32 shl.f32
shf.l.b32 shf.wrap.b32 lop3.b64 bfe.u16 bfi.u32 clz.u32 bfind.b32 setp.f32 setp.lt.b32
setp.lo.s32 setp.nan.s32 setp.ltu.u32 setp.lo.f32 setp.eq.ftz.f64 set.lt.f32 set.lt.f16.f32
selp.f16 slct.f32.f64 ex2.f32 ex2.approx.f64 ex2.rn.f32 lg2.approx.f16 rcp.approx.f64 rcp.f32
add.rz.f64 mul.rm.f16 sqrt.rz.f32 tanh.approx.f64 testp.zero.f32 fma.f32 fma.rz.f64 cvt.f32
cvt.f32.f64 cvt.rn.f64.f32 cvt.rni.f32.f64 cvt.s32.f32 cvt.rn.s32.f32 cvt.rn.u8.u32
cvt.f16.f32 cvt.rn.f32.f16 cvt.rz.f32.s32 cvt.ftz.s32.s64 cvt.rn.f16x2.f64 cvt.rn.relu.f32.f64
cvt.rna.f16.f32 cvt.tf32.f32 cvt.rn.ftz.tf32.f32 cvt.rn.f16x2.e4m3x2 cvt.pack.sat.s16.s32
cvt.rn.satfinite.e4m3x2.f32 cvta.to.shared.u64 cvta.u64 prmt.b32.f4e
"""


@pytest.mark.parametrize("name", UNKNOWN.split())
def test_what_is_no_instruction_or_not_modelled(name):
    opcode, *modifiers = name.split(".")
    with pytest.raises(Unsupported):
        find(opcode, tuple(modifiers))


@pytest.mark.parametrize("kind", HALF)
def test_comparisons_of_pairs(kind):
    a, b = (operands("u32", seed=k) for k in range(2))
    a[::3] = b[::3]
    also = operands("pred")
    for name in ("lt", "geu", "ne"):
        halves = ((a & 0xFFFF, b & 0xFFFF), (a >> 16, b >> 16))
        one = [compute(f"setp.{name}.{kind}", *(h.astype(np.uint16) for h in h2)) for h2 in halves]
        both = find("setp", (name, f"{kind}x2"))
        assert both.results == 2
        assert all(map(np.array_equal, both.compute(a, b), one))
        joined = find("setp", (name, "and", f"{kind}x2")).compute(a, b, also)
        assert all(np.array_equal(got, want & also) for got, want in zip(joined, one, strict=True))


@pytest.mark.parametrize("kind", ("f16", "bf16", "f64", "s16", "u16", "s64", "u64"))
def test_comparisons_of_other_types(kind):
    if kind in HALF:
        (a, x), (b, y) = half_operands(kind), half_operands(kind, 1)
        b[::5], y[::5] = a[::5], x[::5]
        x, y = x.tolist(), y.tolist()
    else:
        a, b = operands(kind), operands(kind, seed=1)
        b[::5] = a[::5]
        x, y = a.tolist(), b.tolist()
    names = {"lt": "lt", "le": "le", "gt": "gt", "ge": "ge", "eq": "eq", "ne": "ne"}
    if kind[0] == "u":
        names |= {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
    other = operands("pred")
    for name, method in names.items():
        pairs = list(zip(x, y, strict=True))
        want = [getattr(p, f"__{method}__")(q) if p == p and q == q else False for p, q in pairs]
        assert compute(f"setp.{name}.{kind}", a, b).tolist() == want, name
        joined = compute(f"setp.{name}.xor.{kind}", a, b, other).tolist()
        assert joined == [p != q for p, q in zip(want, other.tolist(), strict=True)]
        for result, true in (("u32", 0xFFFFFFFF), ("s32", -1), ("f32", 1.0)):
            got = compute(f"set.{name}.{result}.{kind}", a, b)
            assert got.tolist() == [true if w else 0 for w in want]


def test_select_by_sign():
    a, b = operands("u32"), operands("u32", seed=1)
    for kind, sign in (("s32", operands("s32", seed=2)), ("f32", operands("f32", seed=2))):
        got = compute(f"slct.b32.{kind}", a, b, sign)
        rows = zip(a.tolist(), b.tolist(), sign.tolist(), strict=True)
        assert got.tolist() == [x if s >= 0 else y for x, y, s in rows]
    tiny = np.array([-1e-40], np.float32)
    for ftz, want in (("", 2), ("ftz.", 1)):
        assert compute(f"slct.{ftz}b32.f32", np.uint32([1]), np.uint32([2]), tiny) == want
