"""Pointwise functions that the printed cells call: finite for every finite x, NaN for NaN.

Three forms, see ``fused_rnn.activations``: exact to float32 rounding; exact to the rounding of
16-bit values; and one instruction of the GPU. docs/numerics.md has the error of each.
"""

import triton
import triton.language as tl

from . import interpreter

# The interpreter has no inline assembly; it takes numpy's exp and division instead.
_COMPILED = tl.constexpr(not interpreter.in_use())


@triton.jit
def sigmoid(x):
    # exp overflows to inf below -88 (float32), and 1 / inf is the right limit.
    return _reciprocal(1.0 + _exp(-x))


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
    return 1.0 - 2.0 * _reciprocal(1.0 + _exp(2.0 * x))


@triton.jit
def sigmoid_fast(x):
    return 0.5 * tanh_fast(0.5 * x) + 0.5


@triton.jit
def tanh_fast(x):
    if _COMPILED:
        return _assembly("tanh.approx.f32 $0, $1;", x)
    else:
        return tanh(x)


@triton.jit
def remainder(a, b):
    """The remainder with the sign of b, as torch.remainder for floating-point values."""
    r = a - b * tl.floor(a / b)
    return tl.where((r == b) | ((r < 0) & (b > 0)), 0.0, r)


# Triton's own exp and division scale their arguments before and after, for results that are
# denormal; here these may be zero, and the scaling is more than half of the instructions.


@triton.jit
def _exp(x):
    if _COMPILED and x.dtype == tl.float32:
        return _assembly("ex2.approx.ftz.f32 $0, $1;", 1.4426950408889634 * x)
    else:
        return tl.exp(x)


@triton.jit
def _reciprocal(x):
    if _COMPILED and x.dtype == tl.float32:
        return _assembly("rcp.approx.ftz.f32 $0, $1;", x)
    else:
        return 1.0 / x


@triton.jit
def _assembly(TEXT: tl.constexpr, x):
    return tl.inline_asm_elementwise(TEXT, "=f,f", [x], tl.float32, is_pure=True, pack=1)


@triton.jit
def expm1(x):
    """exp(x) - 1, by tanh(x / 2) where the difference would lose leading digits."""
    half = tanh(0.5 * x)
    return tl.where(tl.abs(x) < 1.0, 2.0 * half / (1.0 - half), tl.exp(x) - 1.0)


@triton.jit
def sinh(x):
    less_one = expm1(tl.abs(x))
    half = 0.5 * (less_one + less_one / (less_one + 1.0))
    return tl.where(x < 0, -half, half)
