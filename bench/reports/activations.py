"""The errors of the kernels' sigmoid and tanh, in each form.

    python -m bench.reports.activations            # writes bench/results/activations.md

The formulas of kernels/gpu/pointwise.py in numpy, one float32 rounding for each operation. The
GPU's own instructions have errors besides: ``ex2.approx`` and ``rcp.approx`` of about a unit in the
last place, and ``tanh.approx`` of up to 2^-11 relative to the result (PTX ISA). The latter is
modelled by rounding to 11 significant bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

RESULTS = Path(__file__).parents[1] / "results" / "activations.md"
POINTS = 1_000_001
RANGES = {"-20 to 20": (-20, 20), "-1 to 1": (-1, 1), "-0.01 to 0.01": (-0.01, 0.01)}
STEPS, BATCH, HIDDEN = 100, 16, 128


def sigmoid(x):
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + np.exp(-x))


def tanh_half(x):
    with np.errstate(over="ignore"):
        return np.float32(1) - np.float32(2) / (np.float32(1) + np.exp(np.float32(2) * x))


def tanh(x):
    z, p = x * x, np.float32(-0.005704984)
    for coefficient in (0.020639088, -0.05373971, 0.13331442, -0.33333282):
        p = p * z + np.float32(coefficient)
    large = np.copysign(tanh_half(np.abs(x)), x)
    return np.where(np.abs(x) < 0.625, x + x * z * p, large)


def tanh_fast(x):
    bits = np.tanh(x).view(np.uint32)
    return ((bits + np.uint32(1 << 12)) & np.uint32(0xFFFFE000)).view(np.float32)


def sigmoid_fast(x):
    return np.float32(0.5) * tanh_fast(np.float32(0.5) * x) + np.float32(0.5)


def product_half(a, b):
    """sigmoid(a) tanh(b) by one reciprocal."""
    with np.errstate(over="ignore"):
        e = np.exp(np.float32(-2) * np.maximum(b, np.float32(-20)))
        q = np.float32(1) + e
        return (np.float32(1) - e) * (np.float32(1) / (np.exp(-a) * q + q))


FORMS = {"exact": (sigmoid, tanh), "half": (sigmoid, tanh_half), "fast": (sigmoid_fast, tanh_fast)}
# Of a sigmoid and a tanh.
PRODUCTS = {
    "exact": lambda a, b: sigmoid(a) * tanh(b),
    "half": product_half,
    "fast": lambda a, b: sigmoid_fast(a) * tanh_fast(b),
}


def pointwise_rows():
    for form, functions in FORMS.items():
        for name, function in zip(("sigmoid", "tanh"), functions, strict=True):
            for label, (low, high) in RANGES.items():
                x = np.linspace(low, high, POINTS, dtype=np.float32)
                wide = x.astype(np.float64)
                exact = np.tanh(wide) if name == "tanh" else 1 / (1 + np.exp(-wide))
                error = np.abs(function(x).astype(np.float64) - exact)
                relative = (error / np.maximum(np.abs(exact), 1e-30)).max()
                yield f"| {form} | {name} | {label} | {error.max():.1e} | {relative:.1e} |"


def product_rows():
    for form, function in PRODUCTS.items():
        for label, (low, high) in RANGES.items():
            a, b = np.meshgrid(*[np.linspace(low, high, 1001, dtype=np.float32)] * 2)
            exact = np.tanh(b.astype(np.float64)) / (1 + np.exp(-a.astype(np.float64)))
            error = np.abs(function(a, b).astype(np.float64) - exact)
            relative = (error / np.maximum(np.abs(exact), 1e-30)).max()
            yield f"| {form} | sigmoid · tanh | {label} | {error.max():.1e} | {relative:.1e} |"


def lstm(form, dtype) -> torch.Tensor:
    """h (T, B, H) of an LSTM with h rounded to ``dtype``; None for exact functions."""
    torch.manual_seed(0)
    x = torch.randn(STEPS, BATCH, 4 * HIDDEN).to(dtype)
    weight = (torch.randn(4 * HIDDEN, HIDDEN) / HIDDEN**0.5).to(dtype)
    wide = torch.float64 if form is None else torch.float32
    x, weight = x.to(wide), weight.to(wide)
    if form is None:
        sig, both = torch.sigmoid, lambda a, b: torch.sigmoid(a) * torch.tanh(b)
    else:
        sig, both = (_of_tensors(f) for f in (FORMS[form][0], PRODUCTS[form]))
    h = c = torch.zeros(BATCH, HIDDEN, dtype=wide)
    out = []
    for pre in x:
        i, f, g, o = (pre + h @ weight.T).chunk(4, -1)
        c = sig(f) * c + both(i, g)
        h = both(o, c)
        h = h if form is None else h.to(dtype).to(wide)
        out.append(h)
    return torch.stack(out).double()


def _of_tensors(function):
    return lambda *values: torch.from_numpy(function(*(v.numpy() for v in values)))


def lstm_rows():
    for dtype in (torch.bfloat16, torch.float16):
        exact = lstm(None, dtype)
        for form in FORMS:
            error = (lstm(form, dtype) - exact).abs()
            name = str(dtype).removeprefix("torch.")
            yield f"| {name} | {form} | {error.max():.1e} | {error.square().mean().sqrt():.1e} |"


def main() -> None:
    lines = [
        "# Errors of the activations",
        "",
        "Written by `python -m bench.reports.activations`,",
        "with numpy on a CPU; nothing ran on a GPU.",
        "`exact` is for float32 and float64, `half` for bfloat16 and float16, `fast` for these",
        "inside `fused_rnn.fast_activations()`.",
        "",
        "| form | function | x | largest absolute error | largest relative error |",
        "| --- | --- | --- | --- | --- |",
        *pointwise_rows(),
        *product_rows(),
        "",
        f"What it does to an LSTM (T={STEPS}, B={BATCH}, H={HIDDEN}, random weights, h rounded to",
        "the dtype at each step, all else float32), against float64 throughout:",
        "",
        "| dtype | form | largest error of h | root mean square |",
        "| --- | --- | --- | --- |",
        *lstm_rows(),
    ]
    RESULTS.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
