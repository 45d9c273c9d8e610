"""Each form of sigmoid and tanh as it is compiled, executed, against float64."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from fused_rnn.kernels.gpu import pointwise

from simulator import simulate

FORMS = {form: (called["sigmoid"], called["tanh"]) for form, called in pointwise.FORMS.items()}


@triton.jit
def _apply_kernel(x_ptr, y_ptr, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, FUNCTION(tl.load(x_ptr + offs)))


@triton.jit
def _apply_both_kernel(a_ptr, b_ptr, y_ptr, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, FUNCTION(tl.load(a_ptr + offs), tl.load(b_ptr + offs)))


def apply(function, x):
    y = torch.full_like(x, float("nan"))
    with simulate(90):
        _apply_kernel[(x.numel() // 1024,)](x, y, FUNCTION=function, BLOCK=1024)
    return y


def exact(name, x):
    return getattr(torch, name)(x.double())


def points(dtype=torch.float32):
    x = torch.linspace(-20, 20, 8 * 1024, dtype=torch.float64)
    x[::7] *= 1e-3
    x[:8] = torch.tensor([0.0, -0.0, 1e4, -1e4, 88.0, -88.0, torch.inf, -torch.inf])
    return x.to(dtype)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
@pytest.mark.parametrize("place", (0, 1), ids=("sigmoid", "tanh"))
def test_exact_to_rounding(place, dtype):
    x, name = points(dtype), ("sigmoid", "tanh")[place]
    got, want = apply(FORMS["exact"][place], x), exact(name, x)
    # float64's tanh is exact to an absolute error; float32's sigmoid may flush what is denormal.
    unit = torch.finfo(dtype).eps * want.abs().clamp_min(1.0 if dtype == torch.float64 else 1e-30)
    # exp(-x) is 2 to the power of a rounded -x · log2(e): a relative error that grows with -x.
    units = 4 + x.double().clamp(-100, 0).abs() / 4
    assert ((got.double() - want).abs() <= units * unit).all()


@pytest.mark.parametrize("place", (0, 1), ids=("sigmoid", "tanh"))
@pytest.mark.parametrize("form", ("half", "fast"))
def test_forms_for_16_bits(form, place):
    x = points()
    got, want = apply(FORMS[form][place], x), exact(("sigmoid", "tanh")[place], x)
    # The simulator's tanh.approx is better than the GPU's, whose error may be 2^-11.
    assert (got.double() - want).abs().max() < 2.5e-7


@pytest.mark.parametrize("place", (0, 1), ids=("sigmoid", "tanh"))
@pytest.mark.parametrize("form", FORMS)
def test_a_nan_stays_one(form, place):
    x = torch.zeros(1024)
    x[5] = torch.nan
    assert np.flatnonzero(apply(FORMS[form][place], x).isnan().numpy()).tolist() == [5]


@pytest.mark.parametrize("form", FORMS)
def test_a_product_of_both(form):
    """At all pairs of large, small, infinite and undefined arguments; one reciprocal in "half"."""
    x = points()[:: 8 * 1024 // 57][:57].tolist()
    x = torch.tensor([*x, torch.inf, -torch.inf, torch.nan, 40.0, -40.0, 1e4, -1e4])
    a, b = (v.reshape(-1).contiguous() for v in torch.meshgrid(x, x, indexing="ij"))
    y = torch.empty_like(a)
    with simulate(90):
        _apply_both_kernel[(4,)](
            a, b, y, FUNCTION=pointwise.FORMS[form]["sigmoid_tanh"], BLOCK=1024
        )
    want = exact("sigmoid", a) * exact("tanh", b)
    assert torch.equal(y.isnan(), want.isnan())
    assert (y.double() - want).nan_to_num().abs().max() < 2.5e-7
