"""Pointwise functions that the printed cells call: finite for every finite x, NaN for NaN.

Three forms, see ``fused_rnn.numerics``: exact to float32 rounding; exact to the rounding of
16-bit values; and one instruction of the GPU. docs/numerics.md has the error of each.
Other functions are libdevice's, with the values of CUDA's own, or PyTorch's in the interpreter.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra import libdevice

from .interpreter import compiled, elementwise, in_use


@triton.jit
def sigmoid(x):
    # exp overflows to inf below -88 (float32), and 1 / inf is the right limit.
    return _reciprocal(1.0 + _exp(x, -1.0))


@triton.jit
def tanh(x):
    # 1 - 2 / (exp(2|x|) + 1) loses the leading digits of small values, so below 0.625 a polynomial
    # takes over: x + x³ P(x²), P fitted by least relative error, see docs/numerics.md. In float64
    # the first form is kept: its absolute error is at rounding.
    a = tl.abs(x)
    large = tanh_half(a)
    large = tl.where(x < 0, -large, large)
    if x.dtype == tl.float64:
        return large
    else:
        z = x * x
        p = -0.005704984 * z + 0.020639088
        p = p * z - 0.05373971
        p = p * z + 0.13331442
        p = p * z - 0.33333282
        return tl.where(a < 0.625, x + x * z * p, large)


@triton.jit
def tanh_half(x):
    return 1.0 - 2.0 * _reciprocal(1.0 + _exp(x, 2.0))


@triton.jit
def sigmoid_tanh(a, b):
    return sigmoid(a) * tanh(b)


@triton.jit
def sigmoid_tanh_half(a, b):
    # (1 - e) / ((1 + d) (1 + e)) with d = exp(-a), e = exp(-2b): one reciprocal for both. Below -20
    # tanh is -1, and e is kept from its overflow; d may be inf, and the reciprocal 0, its limit.
    e = _exp(tl.maximum(b, -20.0, propagate_nan=tl.PropagateNan.ALL), -2.0)
    q = 1.0 + e
    return (1.0 - e) * _reciprocal(_exp(a, -1.0) * q + q)


@triton.jit
def sigmoid_fast(x):
    return 0.5 * tanh_fast(0.5 * x) + 0.5


@triton.jit
def sigmoid_tanh_fast(a, b):
    return sigmoid_fast(a) * tanh_fast(b)


@triton.jit
def tanh_fast(x):
    # Here and below: the interpreter has no inline assembly, and takes numpy's functions instead.
    if compiled():
        return _assembly("tanh.approx.f32 $0, $1;", x)
    else:
        return tanh(x)


# Triton's own exp and division scale their arguments before and after, for results that are
# subnormal. Here these may become zero; the scaling would be more than half of the instructions.


@triton.jit
def _exp(x, SCALE: tl.constexpr):
    """exp(SCALE · x): the assembler does not fold a sign or a factor into the one of ex2.

    Powers of two for SCALE change no bit of the product.
    """
    if compiled() and x.dtype == tl.float32:
        return _assembly("ex2.approx.ftz.f32 $0, $1;", (1.4426950408889634 * SCALE) * x)
    else:
        return tl.exp(SCALE * x)


@triton.jit
def _reciprocal(x):
    if compiled() and x.dtype == tl.float32:
        return _assembly("rcp.approx.ftz.f32 $0, $1;", x)
    else:
        return 1.0 / x


@triton.jit
def _assembly(TEXT: tl.constexpr, x):
    return tl.inline_asm_elementwise(TEXT, "=f,f", [x], tl.float32, is_pure=True, pack=1)


def _function(name, of_torch):
    if in_use():
        return elementwise(of_torch)
    return getattr(libdevice, name)


log1p = _function("log1p", torch.log1p)
log10 = _function("log10", torch.log10)
expm1 = _function("expm1", torch.expm1)
tan = _function("tan", torch.tan)
asin = _function("asin", torch.asin)
acos = _function("acos", torch.acos)
atan = _function("atan", torch.atan)
atan2 = _function("atan2", torch.atan2)
sinh = _function("sinh", torch.sinh)
cosh = _function("cosh", torch.cosh)
asinh = _function("asinh", torch.asinh)
acosh = _function("acosh", torch.acosh)
atanh = _function("atanh", torch.atanh)
erfc = _function("erfc", torch.erfc)
hypot = _function("hypot", torch.hypot)
copysign = _function("copysign", torch.copysign)
power = _function("pow", torch.pow)
fmod = _function("fmod", torch.fmod)
rounded = _function("rint", torch.round)
truncated = _function("trunc", torch.trunc)


@triton.jit
def zeros_like(x):
    """Zeros; Triton's own have no layout, which kernels with explicit ones demand."""
    return tl.where(x == x, 0.0, 0.0).to(x.dtype)


@triton.jit
def remainder(a, b):
    """The remainder with the sign of b, as torch.remainder; exact, as fmod is."""
    r = fmod(a, b)
    return tl.where((r != 0) & ((b < 0) != (r < 0)), r + b, r)


@triton.jit
def floor_quotient(a, b):
    """As torch.div with rounding_mode="floor": by the exact remainder, not by rounding a / b."""
    q = a / b
    r = fmod(a, b)
    whole = (a - r) / b
    whole = tl.where((r != 0) & ((b < 0) != (r < 0)), whole - 1, whole)
    below = tl.floor(whole)
    below = tl.where(whole - below > 0.5, below + 1, below)
    return tl.where(b == 0, q, tl.where(whole == 0, copysign(zeros_like(q), q), below))


# The forms, by the name that printed cells call.
FORMS = {
    "exact": {"sigmoid": sigmoid, "tanh": tanh, "sigmoid_tanh": sigmoid_tanh},
    "half": {"sigmoid": sigmoid, "tanh": tanh_half, "sigmoid_tanh": sigmoid_tanh_half},
    "fast": {"sigmoid": sigmoid_fast, "tanh": tanh_fast, "sigmoid_tanh": sigmoid_tanh_fast},
}
# What they call besides.
CALLED = {
    function: globals()[function]
    for function in (
        "log1p", "log10", "expm1", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh",
        "acosh", "atanh", "erfc", "hypot", "copysign", "power", "fmod", "rounded", "truncated",
        "remainder", "floor_quotient", "zeros_like",
    )
}  # fmt: skip
