"""The check before the race: a provider that computes something else gets no figure.

Errors are measured as in ``fused_rnn.self_check.measure``: against the reference in float64, in
units of the error that the eager loop makes in the problem's dtype.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fused_rnn.self_check import measure

from .problem import MODES, Problem
from .providers import BASELINE, REGISTRY

# The units that an error may have, as in the tests.
MOST = 4


@dataclass(frozen=True)
class Verdict:
    """The tensor whose error is the largest multiple of what is allowed; errors are relative."""

    tensor: str
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed

    def __str__(self):
        return f"{self.tensor}: error {self.error:.1e}, allowed {self.allowed:.1e}"


class Gate:
    """The exact results of a problem in some modes, and the error that each may have."""

    def __init__(self, problem: Problem, modes):
        self.problem = problem
        self.modes = modes
        exact = problem.double()
        # The outputs are the same in both modes, so one run of the reference is enough.
        longest = max(modes, key=lambda mode: len(problem.result_names(mode)))
        results = MODES[longest](exact.load(exact.layer("reference")), exact)()
        self.right = dict(zip(problem.result_names(longest), results, strict=True))
        self.allowed = allowed(self._errors(REGISTRY[BASELINE].module(problem)), problem.dtype)
        self.allowed_eager = dict.fromkeys(self.allowed, _cap(problem.dtype))

    def check(self, name: str, module) -> Verdict:
        """The verdict on a provider's module."""
        bounds = self.allowed_eager if name == BASELINE else self.allowed
        errors = self._errors(module)
        tensor, _ = measure.worst({t: error / bounds[t] for t, error in errors.items()})
        return Verdict(tensor, errors[tensor], bounds[tensor])

    def _errors(self, module) -> dict[str, float]:
        errors = {}
        for mode in self.modes:
            names = self.problem.result_names(mode)
            results = MODES[mode](module, self.problem)()
            for name, result in zip(names, results, strict=True):
                errors[f"{mode} {name}"] = _error(result, self.right[name], self.problem.dtype)
        return errors


def allowed(errors: dict[str, float], dtype: torch.dtype) -> dict[str, float]:
    """The errors that providers may have, given those of the eager loop.

    At least half of the digits must be right, however large the eager loop's error.
    """
    units = measure.units(errors, dict.fromkeys(errors, torch.finfo(dtype).eps))
    return {name: min(MOST * unit, _cap(dtype)) for name, unit in units.items()}


def _cap(dtype):
    return math.sqrt(torch.finfo(dtype).eps)


def _error(result: Tensor, right: Tensor, dtype: torch.dtype) -> float:
    error = measure.error(result, right) if result.dtype == dtype else math.inf
    return math.inf if math.isnan(error) else error
