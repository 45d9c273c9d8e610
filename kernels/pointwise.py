"""Pointwise functions that the printed cells call: finite for every finite x, NaN for NaN."""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    # exp overflows to inf below -88 (float32), and 1 / inf is the right limit.
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    # 1 - 2 / (exp(2|x|) + 1) loses the leading digits of small values, so below 0.625 a polynomial
    # takes over: x + x³ P(x²), P fitted by least relative error, see docs/numerics.md. In float64
    # the first form is kept: its absolute error is at rounding.
    a = tl.abs(x)
    large = 1.0 - 2.0 / (tl.exp(2.0 * a) + 1.0)
    large = tl.where(x < 0, -large, large)
    if x.dtype == tl.float64:
        return tl.where(x == x, large, x)
    else:
        z = x * x
        p = -0.005704984 * z + 0.020639088
        p = p * z - 0.05373971
        p = p * z + 0.13331442
        p = p * z - 0.33333282
        return tl.where(a < 0.625, x + x * z * p, large)


@triton.jit
def remainder(a, b):
    """The remainder with the sign of b, as torch.remainder for floating-point values."""
    r = a - b * tl.floor(a / b)
    return tl.where((r == b) | ((r < 0) & (b > 0)), 0.0, r)
