"""A model with torch.nn's layers, and the same converted: what both compute and learn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fused_rnn

from .tolerances import assert_equal_in_float64


def twins(model: nn.Module, **options: Any) -> tuple[nn.Module, nn.Module]:
    """The model as it is, and a converted copy; both in float64."""
    model = model.to(torch.float64)
    converted = fused_rnn.convert(copy.deepcopy(model), **options)
    ours = [m for m in converted.modules() if type(m).__module__.startswith("fused_rnn")]
    assert ours, "nothing was converted"
    return model, converted


def results(model: nn.Module, run: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    """The output of ``run(model)``, and the gradient of every parameter of its squared sum."""
    model.zero_grad()
    output = run(model)
    output.square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found
    return {"output": output.detach()} | {f"d{name}": grad for name, grad in found.items()}


def assert_twins_agree(
    model: nn.Module, run: Callable[[nn.Module], Tensor], **options
) -> nn.Module:
    """Outputs and all gradients agree to float64; returns the converted model."""
    model, converted = twins(model, **options)
    assert_equal_in_float64(results(converted, run), results(model, run))
    return converted


def assert_same_weights(got: nn.Module, want: nn.Module, atol: float = 1e-5) -> None:
    """Two models that trained in parallel still have the same state dict, up to rounding."""
    want_of = want.state_dict()
    assert got.state_dict().keys() == want_of.keys()
    for name, value in got.state_dict().items():
        torch.testing.assert_close(value, want_of[name], atol=atol, rtol=0, msg=name)
