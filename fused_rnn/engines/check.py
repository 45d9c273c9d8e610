"""A check of one cell on this machine: derivatives, every engine, compiled kernels."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import re
import sys
from collections.abc import Iterator
from typing import TextIO

import torch
from torch.autograd.gradcheck import GradcheckError

from .. import context, plan
from ..cells import Cell, reference
from ..cells.report import CellReport, Check
from ..checks.arguments import check_flags, whole_number
from ..self_check import admission, measure, trial
from ..self_check.problem import Problem
from ..self_check.trial import Sizes
from .contract import load, why_not

_DTYPES = (torch.float64, torch.float32)
_CPU = torch.device("cpu")

# Central differences in float64: they are off by about 1e-16 / 1e-5 and by 1e-5 squared, times
# values and third derivatives of size 1.
_STEP, _DIFFERENCE = 1e-5, 1e-6

# The largest sizes whose elements are moved one by one.
_SMALL = (3, 2, 3)

# Of the kernels that are compiled where there is no GPU: those of an A100 and of an H100.
_CAPABILITIES = ((8, 0), (9, 0))


def check(
    cell: Cell, sizes: Sizes, differences: bool, compile: bool, stream: TextIO | None
) -> CellReport:
    """Run all checks of a cell, and print each as it ends: see ``Cell.check``."""
    sizes = Sizes(*(whole_number(name, size, 1) for name, size in sizes._asdict().items()))
    check_flags(differences=differences, compile=compile)
    out, report = stream or sys.stdout, CellReport(cell.name, sizes, ())
    print(report.title, file=out)
    for found in _checks(cell, sizes, differences, compile):
        report = dataclasses.replace(report, checks=(*report.checks, found))
        print(found, file=out, flush=True)
    print(report.verdict, file=out)
    return report


def _name(dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _checks(cell, sizes, differences, compile) -> Iterator[Check]:
    if differences:
        yield _derivatives(cell, sizes)
        yield _gradcheck(cell, sizes)
    for engine in ("sequence", "cpp"):
        for dtype in _DTYPES:
            reason = why_not(engine, cell, _CPU, dtype)
            if reason:
                yield Check(engine, _name(dtype), None, reason)
                continue
            run = functools.partial(trial.by_engine, load(engine))
            yield _compared(engine, dtype, trial.compare(run, cell, dtype, _CPU, sizes))
    yield from _kernels(cell, sizes)
    if compile:
        yield from _compiled(cell, sizes)


def _compared(what, dtype, outcome) -> Check:
    result = outcome.reason or trial.in_words(outcome, dtype)
    return Check(what, _name(dtype), outcome.agrees, result, outcome.error)


def _derivatives(cell, sizes) -> Check:
    """Gradients of the reference against central differences, along a random direction of each
    input: all of its elements at the price of two forwards."""
    where, figure = measure.worst(_deviations(cell, sizes, seed=0))
    if not figure <= _DIFFERENCE:  # a kink may have been met by chance, see ``trial.compare``
        where, figure = measure.worst(_deviations(cell, sizes, seed=1))
    ok, result = figure <= _DIFFERENCE, f"{trial.name_of(f'd{where}')} is off by {figure:.3g}"
    result += f" from finite differences; {_DIFFERENCE:g} is allowed"
    if not ok and where.startswith("params."):
        result += f". A constant is Param({where.removeprefix('params.')!r}, ..., learned=False)"
    return Check("derivatives", "float64", ok, result, figure)


def _deviations(cell, sizes, seed) -> dict[str, float]:
    """Per input the difference between its gradient and the slope, relative to the gradient."""
    problem, exact = trial.finite_problem(cell, sizes, torch.float64, seed)
    generator = torch.Generator().manual_seed(seed)

    def loss(name, moved) -> float:
        args = problem.arguments(problem.inputs | {name: moved})
        results = problem.results(*reference.forward(cell, *args))
        return sum((results[key] * d).sum().item() for key, d in problem.cotangents.items())

    norms = {name: exact[f"d{name}"].norm().item() for name in problem.inputs}
    largest, found = max(norms.values()), {}
    for name, value in problem.inputs.items():
        if not _is_learned(cell, name):
            continue
        direction = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            rise = loss(name, value + _STEP * direction) - loss(name, value - _STEP * direction)
        difference = rise / (2 * _STEP) - (exact[f"d{name}"] * direction).sum().item()
        # Of a gradient that is small beside the others, differences see the rounding of the loss.
        scale = norms[name] + largest / 100
        found[name] = abs(difference) / scale if scale else math.inf
    return found


def _gradcheck(cell, sizes) -> Check:
    """PyTorch's gradcheck of the reference: every element of every input, of a smaller problem."""
    small = Sizes(*map(min, sizes, _SMALL))
    fault = _mismatch(cell, small, seed=0)
    if fault is not None:
        fault = _mismatch(cell, small, seed=1)
    result = fault or "every element agrees with finite differences"
    text = "{} (T = {}, B = {}, H = {})".format(result, *small)
    return Check("gradcheck", "float64", fault is None, text)


def _mismatch(cell, sizes, seed) -> str | None:
    """The first gradient that gradcheck finds wrong, in words; None if there is none."""
    problem, _ = trial.finite_problem(cell, sizes, torch.float64, seed)
    names = [name for name in problem.inputs if _is_learned(cell, name)]

    def run(*tensors):
        args = problem.arguments(problem.inputs | dict(zip(names, tensors, strict=True)))
        results = problem.results(*reference.forward(cell, *args))
        return tuple(results[key] for key in problem.cotangents)

    inputs = [problem.inputs[name].detach().clone().requires_grad_() for name in names]
    try:
        torch.autograd.gradcheck(run, inputs, check_undefined_grad=False)
    except GradcheckError as error:
        place = re.search(r"respect to input (\d+)", str(error))
        where = f"gradient of {names[int(place[1])]}: " if place else ""
        return where + str(error).strip().split("\n")[0]
    return None


def _is_learned(cell, name) -> bool:
    group, _, own = name.partition(".")
    return group != "params" or cell.given[own].learned


def _kernels(cell, sizes) -> Iterator[Check]:
    """The Triton kernels with every strategy that runs here: on a GPU, or interpreted."""
    device = _CPU
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    reason = why_not("triton", cell, device, torch.float32) or _why_not_printed(cell)
    if reason:
        yield Check("triton", "", None, reason)
        return
    for strategy, dtype in itertools.product(trial.runnable(cell, device), _DTYPES):
        what = f"triton, {strategy}"
        with admission.turn:
            fits = trial.fitting(cell, strategy, dtype, device, (sizes,))[1] is not None
            outcome = trial.attempt(cell, strategy, dtype, device, (sizes,)) if fits else None
        if outcome is None:
            yield Check(what, _name(dtype), None, f"{sizes.H} units do not fit")
        else:
            yield _compared(what, dtype, outcome)


def _compiled(cell, sizes) -> Iterator[Check]:
    """The kernels that the plan chooses in float32, compiled for GPUs that are absent."""
    T, B, H = sizes
    reason = _why_not_compiled() or _why_not_printed(cell)
    if reason:
        yield Check("compiled", "", None, reason)
        return
    for capability in _CAPABILITIES:
        of = "sm_{}{}".format(*capability)
        try:
            launch = plan.plan(cell, T, B, H, torch.float32, capability).forward
        except RuntimeError as error:
            yield Check("compiled", of, None, str(error))
            continue
        try:
            kernels = _compile(cell, sizes, capability, launch)
        except Exception as error:
            text = str(error).strip().split("\n")[0][:300]
            yield Check("compiled", of, False, f"{launch.strategy}: {type(error).__name__}: {text}")
            continue
        result = f"{launch.strategy}: " + ", ".join(
            f"{name} {registers} registers" + (f" and {words} words spilled" if words else "")
            for name, (registers, words) in kernels.items()
        )
        yield Check("compiled", of, True, result, max(words for _, words in kernels.values()))


def _compile(cell, sizes, capability, launch) -> dict[str, tuple[int, int]]:
    """By kernel, forward and backward, its largest registers and spills per thread."""
    from ..kernels.gpu import offline

    problem = Problem.make(cell, *sizes, dtype=torch.float32, device="meta")
    major, minor = capability
    with (
        admission.turn,
        plan.use_launch(launch),
        offline.compiling(10 * major + minor) as launches,
    ):
        trial.by_kernels(problem)
    found: dict[str, tuple[int, int]] = {}
    for kernel in launches:
        name = kernel.name.removesuffix("_kernel").lstrip("_")
        now, before = offline.resources(kernel), found.get(name, (0, 0))
        found[name] = (max(now[0], before[0]), max(now[1], before[1]))
    return found


def _why_not_printed(cell) -> str | None:
    try:
        cell.triton_source()
    except NotImplementedError as error:
        return str(error)
    return None


def _why_not_compiled() -> str | None:
    if not context.triton_installed():
        return "Triton is not installed"
    if torch.cuda.is_available():
        return "the kernels are compiled for this GPU"
    from ..kernels.gpu import offline

    return offline.why_not()
