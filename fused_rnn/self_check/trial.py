"""A small random problem: the fused kernels compared with the reference, under a deadline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import numerics, products
from ..cells import Cell, reference
from ..plan import Plan, plan, strategies, use_strategy
from . import deadline, measure
from .problem import Problem

# The units of error that are allowed, see ``measure``. The project's tests ask for 4. A false alarm
# costs a user the kernels, and a real fault exceeds this by orders of magnitude.
MOST = 8
# Two loops in float64 differ by a thousand units in the last place where sums in another order
# cancel.
_FLOAT64 = 1e-12 / MOST


class Sizes(NamedTuple):
    """Steps, rows and hidden units of a problem, see the legend in ``cells``."""

    T: int
    B: int
    H: int


# The first that fit are taken. 40 units make two slices in every strategy, 17 one block.
SIZES = (Sizes(3, 3, 40), Sizes(3, 3, 17))
# The sum of a row of |R|. Where states are at most 2, hardly a gate comes near 0.
_OFF_ZERO = 1 / 2

# Devices on which a check never ended. Anything started there may wait for it forever.
_stuck: set[torch.device] = set()


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check.

    Args:
        agrees: whether the kernels may be trusted.
        reason: why they may not be; empty if they agree.
        error: the largest error in units, see ``measure``; None if there is no result.
        where: the result or gradient that has it.
    """

    agrees: bool
    reason: str = ""
    error: float | None = None
    where: str = ""


def attempt(
    cell: Cell,
    strategy: str,
    dtype: torch.dtype,
    device: torch.device,
    sizes: tuple[Sizes, ...] = SIZES,
) -> Outcome:
    """Run a strategy's kernels, forward and backward, and compare outputs and every gradient.

    Never raises because of the kernels, and returns after the deadlines at the latest.

    Args:
        sizes: of the problem; the first that fit are taken.
    """
    if stuck(device):
        return Outcome(False, "not run, since an earlier check on this device did not end")
    size, planned = fitting(cell, strategy, dtype, device, sizes)
    if planned is None:
        return Outcome(False, "no small problem fits this strategy on this device")
    deadline.settle(device)
    # Here and not in the thread, which may never return to restore the plan.
    with use_strategy(strategy):
        return compare(by_kernels, cell, dtype, device, size)


def stuck(device: torch.device | None = None) -> bool:
    """Whether a check on this device, or on any for None, never ended."""
    return bool(_stuck) if device is None else device in _stuck


def fitting(
    cell: Cell,
    strategy: str,
    dtype: torch.dtype,
    device: torch.device,
    sizes: tuple[Sizes, ...] = SIZES,
) -> tuple[Sizes, Plan | None]:
    """The sizes that ``attempt`` tries, and their plan; None if none fit."""
    for size in sizes:
        try:
            with use_strategy(strategy):
                return size, plan(cell, *size, dtype, device)
        except RuntimeError:
            continue
    return sizes[0], None


def runnable(cell: Cell, device: torch.device) -> tuple[str, ...]:
    """The strategies of a cell that a device can run, if its plans fit."""
    # Programs that wait for each other never end in an interpreter that runs one at a time.
    waiting = () if device.type == "cuda" else ("grid", "stream")
    return tuple(strategy for strategy in strategies(cell) if strategy not in waiting)


def compare(
    run: Callable[[Problem], dict[str, Tensor]],
    cell: Cell,
    dtype: torch.dtype,
    device: torch.device,
    sizes: Sizes,
) -> Outcome:
    """Compare the outputs and every gradient of an engine with the reference in float64.

    Never raises because of the engine, and returns after the deadlines at the latest.

    Args:
        run: as ``Problem.differentiate`` of the reference.
    """
    outcome = _attempt(run, cell, dtype, device, sizes, seed=0)
    if outcome.agrees or outcome.error is None:
        return outcome
    # At a kink of a cell (a ReLU, a clamp) a rounding decides between two right gradients. That
    # happens by chance, while a fault does not depend on the numbers.
    return _attempt(run, cell, dtype, device, sizes, seed=1)


def finite_problem(
    cell: Cell, sizes: Sizes, dtype: torch.dtype, seed: int
) -> tuple[Problem, dict[str, Tensor]]:
    """A small random problem whose results are finite if any are, and its results in float64."""
    problem = Problem.make(cell, *sizes, dtype=dtype, seed=seed, off_zero=_OFF_ZERO)
    exact = _by_reference(problem, torch.float64)
    if not all(tensor.isfinite().all() for tensor in exact.values()):
        # A cell may take logarithms or roots, which negative values do not have.
        inputs = {name: tensor.abs() + 0.5 for name, tensor in problem.inputs.items()}
        problem = dataclasses.replace(problem, inputs=inputs)
        exact = _by_reference(problem, torch.float64)
    return problem, exact


def _attempt(run, cell, dtype, device, sizes, seed) -> Outcome:
    def work():
        problem, exact = finite_problem(cell, sizes, dtype, seed)
        # Products in TF32 round to 10 bits, as float16 does.
        usual = torch.float16 if numerics.uses_tf32(dtype, device) else dtype
        return run(problem.to(device=device)), _by_reference(problem, usual), exact

    try:
        got, eager, exact = deadline.supervise(work, device)
        eps = _FLOAT64 if dtype == torch.float64 else None
        where, error = measure.worst(measure.multiples(got, eager, exact, eps))
    except TimeoutError as late:
        _stuck.add(device)
        return Outcome(False, str(late))
    except Exception as failure:
        text = str(failure).strip().split("\n")[0][:300]
        return Outcome(False, f"{type(failure).__name__}: {text}")
    found = Outcome(error <= MOST, "", error, where)
    return found if found.agrees else dataclasses.replace(found, reason=in_words(found, dtype))


def in_words(outcome: Outcome, dtype: torch.dtype) -> str:
    """The largest error of an outcome that has one, where it is, and how much is allowed."""
    units: Any = outcome.error
    off = f"{name_of(outcome.where)} is off by"
    if dtype == torch.float64:  # an eager loop makes no error there: the reference is one
        return (
            f"{off} {units * _FLOAT64:.3g} of its largest value; {MOST * _FLOAT64:.3g} is allowed"
        )
    return f"{off} {units:.3g} times the error of an eager loop; {MOST} are allowed"


def name_of(tensor: str) -> str:
    """The name of a result or gradient of a problem, in words."""
    return f"gradient of {tensor[1:]}" if tensor.startswith("d") else tensor


def _by_reference(problem, dtype):
    return problem.to(dtype).differentiate(reference.forward)


def by_kernels(problem: Problem) -> dict[str, Tensor]:
    """``by_engine`` of the Triton kernels."""
    from ..kernels.gpu import engine

    return by_engine(engine, problem)


def by_engine(engine: Any, problem: Problem) -> dict[str, Tensor]:
    """What ``problem.differentiate`` returns, computed by an engine without autograd or ops.

    Args:
        engine: a module as ``engines.contract.Engine``.
    """
    cell, reverse = problem.cell, problem.reverse
    x, weights, bias, states, params, streams = args = problem.arguments()
    with torch.no_grad():
        sequences, pre, finals = engine.forward(cell, *args, reverse, True)
        dsequences = [problem.cotangents.get(f"sequence.{name}") for name in cell.states]
        pairs = zip(dsequences, sequences, strict=True)
        dsequences = [None if d is None else d.to(sequence.dtype) for d, sequence in pairs]
        dfinals = [problem.cotangents.get(f"final.{name}") for name in cell.states]
        kept = (states, params, streams, sequences, pre)
        given = (dsequences, None, dfinals)
        dpre, *dgroups = engine.backward(cell, weights, *kept, *given, reverse)
        dx = products.columns(dpre, [cell.gates.index(gate) for gate in cell.x_gates])
        dweights, dbias = products.gradients(cell, dpre, weights, *kept, reverse, bias is not None)
    gradients = [dx, *dweights, *([] if bias is None else [dbias])]
    gradients += [gradient for dgroup in dgroups for gradient in dgroup]
    results = problem.results([sequence.to(x.dtype) for sequence in sequences], finals)
    return results | {f"d{name}": d for name, d in zip(problem.inputs, gradients, strict=True)}
