"""The forms of sigmoid and tanh: which dtype gets which, and how exact each is."""

import threading

import numpy as np
import pytest
import torch
from fused_rnn.kernels.gpu.emit import emit

import fused_rnn
from bench.reports import activations as formulas
from fused_rnn import cells, numerics


def test_16_bit_tensors_get_the_form_of_16_bits_and_others_the_exact_one():
    assert [numerics.form(d) for d in (torch.bfloat16, torch.float16)] == ["half", "half"]
    assert [numerics.form(d) for d in (torch.float32, torch.float64)] == ["exact", "exact"]


def test_the_switch_is_for_16_bit_tensors_nests_and_ends():
    with fused_rnn.fast_activations():
        assert numerics.form(torch.bfloat16) == numerics.form(torch.float16) == "fast"
        assert numerics.form(torch.float32) == numerics.form(torch.float64) == "exact"
        with fused_rnn.fast_activations(False):
            assert numerics.form(torch.bfloat16) == "half"
        assert numerics.form(torch.bfloat16) == "fast"
    with pytest.raises(KeyError), fused_rnn.fast_activations():
        raise KeyError
    assert numerics.form(torch.bfloat16) == "half"


def test_the_switch_is_seen_by_the_threads_of_autograd():
    seen = []
    with fused_rnn.fast_activations():
        thread = threading.Thread(target=lambda: seen.append(numerics.form(torch.bfloat16)))
        thread.start()
        thread.join()
    assert seen == ["fast"]


def test_each_form_is_printed_once_with_functions_of_its_own(interpreter):
    printed = {form: emit(cells.LSTM, form) for form in numerics.FORMS}
    assert len({p.source_text for p in printed.values()}) == 1
    called = {form: p.step.fn.__globals__["tanh"] for form, p in printed.items()}
    assert len(set(called.values())) == 3
    assert all(emit(cells.LSTM, form) is p for form, p in printed.items())


@pytest.mark.parametrize(
    ("form", "bound"),
    (
        ("exact", 2.5e-7),  # relative, 4 units in the last place
        ("half", 2.5e-7),  # absolute
        ("fast", 2.0**-11),  # absolute
    ),
)
def test_the_formulas_keep_to_what_is_documented(form, bound):
    x = np.concatenate([np.linspace(-20, 20, 100_001), np.array([0.0, -1e4, 1e4])])
    x = x.astype(np.float32)
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        exact = (1 / (1 + np.exp(-wide)), np.tanh(wide))
    for function, value in zip(formulas.FORMS[form], exact, strict=True):
        error = np.abs(function(x).astype(np.float64) - value)
        if form == "exact":
            error = error / np.maximum(np.abs(value), 1e-30)
        assert error.max() < bound


@pytest.mark.parametrize("form", ("exact", "half"))
def test_the_product_of_both_keeps_to_what_is_documented(form):
    x = np.array([*np.linspace(-30, 30, 601), 0.0, -1e4, 1e4, np.inf, -np.inf], np.float32)
    a, b = np.meshgrid(x, x)
    with np.errstate(over="ignore", invalid="ignore"):
        exact = np.tanh(b.astype(np.float64)) / (1 + np.exp(-a.astype(np.float64)))
        error = np.abs(formulas.PRODUCTS[form](a, b).astype(np.float64) - exact)
    assert error.max() < 2.5e-7


def test_a_product_is_printed_as_one_function_where_its_factors_have_no_other_use(interpreter):
    def step(pre, state):
        i, o, g = pre
        (h,) = state
        once, twice = torch.tanh(g), torch.sigmoid(o)
        return once * torch.sigmoid(i) + twice * torch.tanh(h) + twice

    cell = cells.Cell("both_orders", step, gates=("i", "o", "g"))
    lines = cell.triton_source().split("def step_vjp")[0].splitlines()
    assert sum("sigmoid_tanh(pre[0], pre[2])" in line for line in lines) == 1
    assert sum("= sigmoid(pre[1])" in line for line in lines) == 1
    assert sum("= tanh(state[0])" in line for line in lines) == 1
