"""The measure of errors that the self-check, the tests and the benchmark share."""

import math

import pytest
import torch

from fused_rnn.self_check import measure

EXACT = {name: torch.tensor([0.0, 4.0], dtype=torch.float64) for name in "abc"}
EPS = torch.finfo(torch.float32).eps


def off(**errors):
    """The exact tensors in float32 with these relative errors."""
    return {name: (EXACT[name] + 4 * errors.get(name, 0.0)).float() for name in EXACT}


def test_an_error_is_relative_to_the_largest_value():
    assert measure.error(torch.tensor([0.5, 4.0]), EXACT["a"]) == 0.125
    assert measure.error(torch.tensor([4.0]), EXACT["a"]) == math.inf
    assert math.isnan(measure.error(torch.tensor([0.0, torch.nan]), EXACT["a"]))
    empty = torch.empty(0, 3)
    assert measure.error(empty, empty.double()) == 0


def test_every_error_of_zeros_is_too_large():
    zeros = torch.zeros(2, dtype=torch.float64)
    assert measure.error(zeros.float(), zeros) == 0
    assert measure.error(torch.tensor([0.0, 1e-30]), zeros) > 1e200


def test_a_unit_is_the_error_of_eager_and_at_least_the_median():
    errors = {"a": 0.0, "b": 0.25, "c": 1.0}
    assert measure.units(errors, dict.fromkeys(errors, 0.5)) == {"a": 0.75, "b": 0.75, "c": 1.5}


def test_multiples_count_units():
    eager = off(b=0.25, c=1.0)
    got = measure.multiples(off(a=0.5, b=0.5, c=0.5), eager, EXACT)
    assert got == pytest.approx({"a": 2, "b": 2, "c": 0.5})
    assert measure.multiples(off(a=0.5), eager, EXACT, eps=0.75)["a"] == 0.5
    right = measure.multiples(off(a=3 * EPS), off(), EXACT)
    assert right == pytest.approx({"a": 3, "b": 0, "c": 0})


def test_nan_is_the_worst():
    assert measure.worst({"a": 2.0, "b": 3.0}) == ("b", 3.0)
    assert measure.worst({"a": math.inf, "b": math.nan, "c": 1.0})[0] == "b"
    wrong = off(a=1.0) | {"c": torch.tensor([torch.nan, 4.0])}
    assert measure.worst(measure.multiples(wrong, off(), EXACT))[0] == "c"
