"""Functions that users may write cells with, and a cell made of one of them."""

import torch
from torch.nn import functional as F

from fused_rnn import Cell

# Functions of a gate a and the state b before the step.
FUNCTIONS = {
    "add with alpha": lambda a, b: torch.add(a, b, alpha=0.5) - torch.sub(1.5, a, alpha=2),
    "acosh, atanh": lambda a, b: torch.acosh(1.5 + b * b) * torch.atanh(0.9 * torch.tanh(a)),
    "addcdiv": lambda a, b: torch.addcdiv(a, b, 1 + b * b),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.5),
    "asin, acos": lambda a, b: torch.asin(0.9 * torch.tanh(a)) - torch.acos(0.9 * torch.tanh(b)),
    "asinh, atan, atan2": lambda a, b: torch.asinh(a) * torch.atan(b) + torch.atan2(a, 0.5 + b * b),
    "booleans": lambda a, b: (
        ((a > 0) + (b > -9)) * 0.35 * a
        + (a > 0) * (b > 0) * b
        + torch.where(~(a > 0) | (b > 1) ^ (a > b), a, b)
        + (a > 0).to(a.dtype)
        + torch.logical_xor(a > 0, b > 0) * torch.logical_not(a > b)
        + torch.maximum(a > 0, b > 0).to(a.dtype)
    ),
    "ceil, floor, trunc, frac": lambda a, b: a.ceil() * b.floor() + a.trunc() * b + a.frac(),
    "celu": lambda a, b: F.celu(a, 0.7) * b,
    "clamp": lambda a, b: torch.clamp(a, -0.5, 1) * torch.clamp(b, max=0.3),
    "clamp by tensors": lambda a, b: torch.clamp(a, -b.abs(), b.abs()),
    "constants": lambda a, b: (
        a * torch.full((), 0.1, dtype=a.dtype)
        + b * a.new_tensor(0.3)
        + torch.tensor(0.1) * a
        + b * torch.tensor(3)
        + torch.where(a > 0, 0.1, b)
        + torch.where(b > 0, 1.0, -0.7) * torch.ones_like(a)
    ),
    "copysign": lambda a, b: torch.copysign(a, b) + torch.copysign(b, -2.0) * a,
    "cosh": lambda a, b: torch.cosh(0.5 * a) - b,
    "div, rounded": lambda a, b: (
        b * torch.div(a, 0.3, rounding_mode="floor")
        + torch.div(a, 2 + b * b, rounding_mode="trunc") * a
        + torch.div(a, 2.0, rounding_mode=None)
    ),
    "elu": lambda a, b: F.elu(a, 1.3) + b,
    "erf, erfc": lambda a, b: torch.erf(a) * b + torch.erfc(b),
    "exp, log": lambda a, b: (
        torch.exp(0.5 * a) * torch.log(1.1 + b * b) + torch.log1p(0.001 * a * a)
    ),
    "exp2": lambda a, b: torch.exp2(0.5 * a) + 3.0**b,
    "expm1": lambda a, b: torch.expm1(0.5 * a) * b,
    "fmax, fmin": lambda a, b: torch.fmax(a, b) * torch.fmin(a, 0.3 * b),
    "fmod": lambda a, b: torch.fmod(a, 0.7) * b + torch.fmod(b, 0.5 + a * a),
    "gelu": lambda a, b: F.gelu(a) * b,
    "gelu by tanh": lambda a, b: F.gelu(a, approximate="tanh") * b,
    "hardshrink": lambda a, b: F.hardshrink(a) + b,
    "hardsigmoid": lambda a, b: F.hardsigmoid(3 * a) * b,
    "hardswish": lambda a, b: F.hardswish(3 * a) * b,
    "hardtanh": lambda a, b: F.hardtanh(a, -0.5, 0.6) * b,
    "hypot, sign": lambda a, b: torch.hypot(a, b) * torch.sign(b),
    "isnan": lambda a, b: torch.where(torch.isnan(a), b, a),
    "leaky_relu": lambda a, b: F.leaky_relu(a, 0.1) * b,
    "lerp": lambda a, b: torch.lerp(b, a, torch.sigmoid(a)),
    "log2, log10": lambda a, b: torch.log2(1 + a * a) + torch.log10(1 + b * b),
    "logaddexp": lambda a, b: torch.logaddexp(a, b),
    "logit": lambda a, b: torch.logit(0.1 + 0.8 * torch.sigmoid(a)) * b,
    "logsigmoid": lambda a, b: F.logsigmoid(a) * b,
    "masked_fill": lambda a, b: b.masked_fill(a > 0, 0.5) * a,
    "maximum, minimum": lambda a, b: torch.maximum(a, b) * torch.minimum(a, 0.5 * b),
    "mish": lambda a, b: F.mish(a) * b,
    "nan_to_num": lambda a, b: torch.nan_to_num(a) * b + torch.isfinite(b) * a,
    "powers by fractions": lambda a, b: (
        (1 + a * a) ** 0.5 * (0.5 + b * b) ** -0.5 + (0.1 + a * a) ** 1.7 + (b * b) ** (1 / 3)
    ),
    "powers by tensors": lambda a, b: torch.pow(0.2 + a * a, b) + torch.pow(1 + b * b, a),
    "powers by whole numbers": lambda a, b: (
        a**2 * b**3 + (0.5 * a) ** 5 + (b - 3) ** -2 + a**0 + b**1 + (0.3 * a) ** 40 + b.square()
    ),
    "powers of numbers": lambda a, b: 2**a * b + torch.pow(0.3, b) + 0.0 ** (1 + a * a) + 1.0**b,
    "prelu": lambda a, b: F.prelu(a, torch.full((1,), 0.2, dtype=a.dtype)) * b,
    "relu6": lambda a, b: F.relu6(4 * a) * b,
    "remainder by a tensor": lambda a, b: torch.remainder(a, 1.5 + b * b),
    "round": lambda a, b: torch.round(3 * a) * b + torch.round(b, decimals=1) * a,
    "rsqrt, reciprocal": lambda a, b: torch.rsqrt(1 + a * a) * torch.reciprocal(1 + b * b),
    "selu": lambda a, b: F.selu(a) * b,
    "silu": lambda a, b: F.silu(a) * b,
    "sin, cos, sinc": lambda a, b: torch.sin(3 * a) * torch.cos(b) + torch.sinc(a) * b,
    "sinh": lambda a, b: torch.sinh(0.5 * a) * b,
    "softplus": lambda a, b: F.softplus(a, beta=2, threshold=3) * b,
    "softshrink": lambda a, b: F.softshrink(a, 0.3) + b,
    "softsign": lambda a, b: F.softsign(a) * b,
    "tan": lambda a, b: torch.tan(0.3 * a) * b,
    "tanhshrink": lambda a, b: F.tanhshrink(a) * b,
    "threshold": lambda a, b: F.threshold(a, 0.1, -0.2) * b,
    "xlogy": lambda a, b: torch.xlogy(a, 1 + b * b),
}
# Functions with corners: where the sides of a comparison are equal, or at whole numbers.
TIES = {
    "clamp": lambda a, b: torch.clamp(a, -1, 1) * torch.clamp(b, max=0) + torch.clamp(b, min=1) * a,
    "hardtanh": lambda a, b: F.hardtanh(a) + F.relu6(a) * b,
    "leaky_relu": lambda a, b: F.leaky_relu(a) + F.elu(a) * b,
    "maximum, minimum": lambda a, b: torch.maximum(a, b) - 2 * torch.minimum(a, b),
    "rounding": lambda a, b: a.ceil() * b + b.floor() * a + a.trunc() * b,
    "shrinks": lambda a, b: F.hardshrink(a, 1) + F.softshrink(a, 1) * b,
    "sign": lambda a, b: a.sign() * b + a.abs(),
    "sgn": lambda a, b: torch.sgn(a) * b + a,
}


def cell_of(function):
    """h = sin(function(W x + R h_ + b, h_)), whose arguments stay near the function's corners."""

    def step(pre, state):
        return torch.sin(function(pre[0], state[0]))

    return Cell("function", step, gates=("a",), states=("h",))
