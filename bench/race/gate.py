"""The gate before the clock: a provider that computes something else gets no figure.

The oracle is the reference loop in float64. The yardstick is the error that the eager loop makes in
the problem's dtype, tensor by tensor: others may err a few times as much, as they add in another
order.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import MODES, Problem
from .providers import BASELINE, REGISTRY

# How often eager's error, and how many units in the last place besides: as in the tests.
FACTOR = 4
FLOOR = 4


@dataclass(frozen=True)
class Verdict:
    """The tensor that is worst against what is allowed; errors relative to its largest value."""

    tensor: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed

    def __str__(self):
        return f"{self.tensor}: error {self.error:.1e}, allowed {self.allowed:.1e}"


class Gate:
    """The right results of a problem in some modes, and how close one has to come."""

    def __init__(self, problem: Problem, modes):
        self.problem = problem
        self.modes = modes
        exact = problem.double()
        # The oracle's outputs are the same in both modes, so one run of it will do.
        longest = max(modes, key=lambda mode: len(problem.result_names(mode)))
        results = MODES[longest](exact.load(exact.layer("reference")), exact)()
        self.right = dict(zip(problem.result_names(longest), results, strict=True))
        epsilon = torch.finfo(problem.dtype).eps
        # However bad eager is, half of the digits have to be right: a broken yardstick must not
        # open the gate.
        cap = math.sqrt(epsilon)
        self.allowed = dict.fromkeys(self._names(), cap)
        own = self._errors(REGISTRY[BASELINE].module(problem))
        self.allowed_eager = self.allowed
        # A tensor of few values may be right by accident; half of all tensors are not.
        usual = statistics.median(own.values())
        self.allowed = {
            name: min(FACTOR * max(error, usual) + FLOOR * epsilon, cap) if error <= cap else cap
            for name, error in own.items()
        }

    def check(self, name: str, module) -> Verdict:
        """The verdict on a provider's module."""
        allowed = self.allowed_eager if name == BASELINE else self.allowed
        verdicts = [Verdict(t, e, allowed[t]) for t, e in self._errors(module).items()]
        return max(verdicts, key=lambda v: v.error / v.allowed)

    def _names(self):
        return [f"{mode} {name}" for mode in self.modes for name in self.problem.result_names(mode)]

    def _errors(self, module) -> dict[str, float]:
        errors = {}
        for mode in self.modes:
            names = self.problem.result_names(mode)
            results = MODES[mode](module, self.problem)()
            for name, result in zip(names, results, strict=True):
                errors[f"{mode} {name}"] = _error(result, self.right[name], self.problem.dtype)
        return errors


def _error(result: Tensor, right: Tensor, dtype: torch.dtype) -> float:
    if result.shape != right.shape or result.dtype != dtype:
        return math.inf
    scale = right.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    error = ((result.double() - right).abs().max() / scale).item()
    return math.inf if math.isnan(error) else error
