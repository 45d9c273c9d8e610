"""Providers: each makes a one-layer module for a problem, or gives the reason why it cannot.

A provider is a function of a ``Problem`` that returns a module with the parameters of a one-layer
``fused_rnn.Recurrent`` (names and shapes), called as ``output, finals = module(x, hx)``. If the
module has an attribute ``around``, every forward and backward runs inside ``with module.around()``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

import fused_rnn
from fused_rnn import context, plan
from fused_rnn.engines import contract
from fused_rnn.plan import plans

from .eager import EagerLoop
from .problem import Problem

BASELINE = "eager"


class Skip(Exception):
    """The reason why a provider does not take part."""


@dataclass(frozen=True)
class Provider:
    """A named way to run a layer.

    Attributes:
        build: makes the module, or raises Skip.
        kernels: whether it may run Triton kernels, which on a CPU means Triton's interpreter.
        yardstick: a cell that it runs instead of the problem's, at the same sizes.
    """

    name: str
    build: Callable[[Problem], nn.Module]
    kernels: bool = False
    yardstick: str | None = None

    def problem(self, problem: Problem) -> Problem:
        """The problem that it runs when it is raced on ``problem``."""
        if self.yardstick is None:
            return problem
        cell = fused_rnn.cells.get(self.yardstick)
        if problem.device.type != "cpu":
            raise Skip("a yardstick for the CPU")
        if problem.cell is cell:
            raise Skip("the same as torch")
        return Problem.make(
            cell, problem.size, problem.dtype, problem.device, directions=problem.directions
        )

    def module(self, problem: Problem) -> nn.Module:
        return problem.load(self.build(problem))

    def interpreted(self, device: torch.device) -> bool:
        """Whether it would run in Triton's interpreter, which is not timed."""
        return self.kernels and device.type == "cpu" and context.interpreted()


REGISTRY: dict[str, Provider] = {}


def provider(name: str, kernels: bool = False, yardstick: str | None = None):
    def register(build):
        REGISTRY[name] = Provider(name, build, kernels, yardstick)
        return build

    return register


@provider(BASELINE)
def eager(problem):
    return problem.layer(kind=EagerLoop)


@provider("torch")
def torch_nn(problem):
    """cuDNN on a GPU, oneDNN or ATen's own kernels on the CPU."""
    makers = {
        "rnn_tanh": functools.partial(nn.RNN, nonlinearity="tanh"),
        "rnn_relu": functools.partial(nn.RNN, nonlinearity="relu"),
        "lstm": nn.LSTM,
        "gru": nn.GRU,
    }
    if problem.cell.name not in makers:
        raise Skip("torch.nn has no such cell")
    both = problem.directions == 2
    return makers[problem.cell.name](problem.size.I, problem.size.H, bidirectional=both)


# torch.nn's own cells at the same sizes: the only comparison for cells that torch.nn lacks.
YARDSTICKS = {"lstm": "nn.LSTM", "gru": "nn.GRU"}
for _cell, _name in YARDSTICKS.items():
    provider(_name, yardstick=_cell)(torch_nn)


@provider("cpp")
def cpp(problem):
    reason = contract.why_not("cpp", problem.cell, problem.device, problem.dtype)
    if reason:
        raise Skip(reason)
    return problem.layer("cpp")


@provider("sequence")
def sequence(problem):
    return problem.layer("sequence")


@provider("triton", kernels=True)
def triton(problem):
    """The kernels with the strategy that the plan chooses."""
    reason = plans.why_not_triton(problem.cell, problem.device, problem.dtype)
    if reason:
        raise Skip(reason)
    return problem.layer("triton")


def _forced(strategy, problem):
    layer = triton(problem)
    layer.around = functools.partial(plan.use_strategy, strategy)
    try:
        with layer.around():
            plan.plan(
                problem.cell,
                problem.size.T,
                problem.size.B,
                problem.size.H,
                problem.dtype,
                problem.device,
                problem.directions,
            )
    except RuntimeError as error:  # it does not fit
        raise Skip(str(error)) from None
    return layer


for _strategy in plan.STRATEGIES:
    provider(f"triton-{_strategy}", kernels=True)(functools.partial(_forced, _strategy))


@provider("auto", kernels=True)
def auto(problem):
    return problem.layer("auto")
