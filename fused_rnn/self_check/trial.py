"""A small random problem: the fused kernels against the float64 reference, under a deadline."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import numerics, products
from ..cells import Cell, reference
from ..plan import Plan, plan, use_strategy
from . import deadline, measure
from .problem import Problem

# The units of error that are allowed, see ``measure``. The project's tests ask for 4. A false alarm
# costs a user the kernels, and a real fault exceeds this by orders of magnitude.
MOST = 8
# Two loops in float64 differ by a thousand units in the last place where sums in another order
# cancel.
_FLOAT64 = 1e-12 / MOST

# Hidden units, the first that fit: two slices of any strategy; else one block.
SIZES = (40, 17)
_STEPS, _BATCH = 3, 3
# The sum of a row of |R|. Where states are at most 2, hardly a gate comes near 0.
_OFF_ZERO = 1 / 2

# Devices on which a check never ended: whatever else is started there may wait for it forever.
_stuck: set[torch.device] = set()


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Args:
        agrees: whether the kernels may be trusted.
        reason: why not, in words; empty where they agree.
        error: the largest, as a multiple of the error of the eager loop in the same dtype; None
            where there is no result.
    """

    agrees: bool
    reason: str = ""
    error: float | None = None


def attempt(
    cell: Cell, strategy: str, dtype: torch.dtype, device: torch.device, hidden: int | None = None
) -> Outcome:
    """Run a strategy's kernels, forward and backward, and compare outputs and every gradient.

    Never raises for what the kernels do, and returns after the deadlines at the latest.

    Args:
        hidden: hidden units to try where none of ``SIZES`` fits.
    """
    if stuck(device):
        return Outcome(False, "not run, since an earlier check on this device did not end")
    size, planned = fitting(cell, strategy, dtype, device, hidden)
    if planned is None:
        return Outcome(False, "no small problem fits this strategy on this device")
    deadline.settle(device)
    outcome = _attempt(cell, strategy, dtype, device, size, seed=0)
    if outcome.agrees or outcome.error is None:
        return outcome
    # A cell with a kink (a ReLU, a clamp) may by chance have met it within a rounding, where two
    # right gradients differ. A fault does not depend on the numbers.
    return _attempt(cell, strategy, dtype, device, size, seed=1)


def stuck(device: torch.device | None = None) -> bool:
    """Whether a check on this device, or on any, never ended."""
    return bool(_stuck) if device is None else device in _stuck


def fitting(
    cell: Cell, strategy: str, dtype: torch.dtype, device: torch.device, hidden: int | None = None
) -> tuple[int, Plan | None]:
    """The hidden units that ``attempt`` tries, and the plan, which is None where none fit."""
    for size in (*SIZES, *([hidden] if hidden else [])):
        try:
            with use_strategy(strategy):
                return size, plan(cell, _STEPS, _BATCH, size, dtype, device)
        except RuntimeError:
            continue
    return 0, None


def _attempt(cell, strategy, dtype, device, hidden, seed) -> Outcome:
    def work():
        options = {"dtype": dtype, "seed": seed, "off_zero": _OFF_ZERO}
        problem = Problem.make(cell, _STEPS, _BATCH, hidden, **options)
        exact = _by_reference(problem, torch.float64)
        if not all(tensor.isfinite().all() for tensor in exact.values()):
            # A cell may take logarithms or roots, which negative values have not.
            inputs = {name: tensor.abs() + 0.5 for name, tensor in problem.inputs.items()}
            problem = dataclasses.replace(problem, inputs=inputs)
            exact = _by_reference(problem, torch.float64)
        # The products of "tf32" round as float16 does: to 10 bits.
        usual = torch.float16 if numerics.uses_tf32(dtype, device) else dtype
        return by_kernels(problem.to(device=device)), _by_reference(problem, usual), exact

    try:
        # Here and not in the thread, which may never come back to undo it.
        with use_strategy(strategy):
            got, eager, exact = deadline.supervise(work, device)
        eps = _FLOAT64 if dtype == torch.float64 else None
        where, error = measure.worst(measure.multiples(got, eager, exact, eps))
    except TimeoutError as late:
        _stuck.add(device)
        return Outcome(False, str(late))
    except Exception as failure:
        text = str(failure).strip().split("\n")[0][:300]
        return Outcome(False, f"{type(failure).__name__}: {text}")
    if error <= MOST:
        return Outcome(True, "", error)
    where = f"gradient of {where[1:]}" if where.startswith("d") else where
    why = f"{where} is off by {error:.3g} times the error of an eager loop; {MOST} are allowed"
    return Outcome(False, why, error)


def _by_reference(problem, dtype):
    return problem.to(dtype).differentiate(reference.forward)


def by_kernels(problem: Problem) -> dict[str, Tensor]:
    """What ``problem.differentiate`` returns, by the kernels alone, without autograd and ops."""
    from ..kernels.gpu import engine

    cell, reverse = problem.cell, problem.reverse
    x, weights, bias, *groups = args = problem.arguments()
    with torch.no_grad():
        sequences, pre, finals = engine.forward(cell, *args, reverse, True)
        dsequences = [problem.cotangents.get(f"sequence.{name}") for name in cell.states]
        pairs = zip(dsequences, sequences, strict=True)
        dsequences = [None if d is None else d.to(sequence.dtype) for d, sequence in pairs]
        dfinals = [problem.cotangents.get(f"final.{name}") for name in cell.states]
        kept = (*groups, sequences, pre)
        given = (dsequences, None, dfinals)
        dpre, *dgroups = engine.backward(cell, weights, *kept, *given, reverse)
        dx = products.columns(dpre, [cell.gates.index(gate) for gate in cell.x_gates])
        dweights, dbias = products.gradients(cell, dpre, *kept, reverse, bias is not None)
    gradients = [dx, *dweights, *([] if bias is None else [dbias])]
    gradients += [gradient for dgroup in dgroups for gradient in dgroup]
    results = problem.results([sequence.to(x.dtype) for sequence in sequences], finals)
    return results | {f"d{name}": d for name, d in zip(problem.inputs, gradients, strict=True)}
