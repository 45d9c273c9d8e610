"""A small random problem: the fused kernels compared with the reference, under a deadline."""

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

# Hidden units; the first that fit are taken. 40 make two slices in every strategy, 17 one block.
SIZES = (40, 17)
_STEPS, _BATCH = 3, 3
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
    """

    agrees: bool
    reason: str = ""
    error: float | None = None


def attempt(
    cell: Cell, strategy: str, dtype: torch.dtype, device: torch.device, hidden: int | None = None
) -> Outcome:
    """Run a strategy's kernels, forward and backward, and compare outputs and every gradient.

    Never raises because of the kernels, and returns after the deadlines at the latest.

    Args:
        hidden: hidden units to try if none of ``SIZES`` fits.
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
    # At a kink of a cell (a ReLU, a clamp) a rounding decides between two right gradients. That
    # happens by chance, while a fault does not depend on the numbers.
    return _attempt(cell, strategy, dtype, device, size, seed=1)


def stuck(device: torch.device | None = None) -> bool:
    """Whether a check on this device, or on any for None, never ended."""
    return bool(_stuck) if device is None else device in _stuck


def fitting(
    cell: Cell, strategy: str, dtype: torch.dtype, device: torch.device, hidden: int | None = None
) -> tuple[int, Plan | None]:
    """The hidden units that ``attempt`` tries, and their plan; None if none fit."""
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
            # A cell may take logarithms or roots, which negative values do not have.
            inputs = {name: tensor.abs() + 0.5 for name, tensor in problem.inputs.items()}
            problem = dataclasses.replace(problem, inputs=inputs)
            exact = _by_reference(problem, torch.float64)
        # Products in TF32 round to 10 bits, as float16 does.
        usual = torch.float16 if numerics.uses_tf32(dtype, device) else dtype
        return by_kernels(problem.to(device=device)), _by_reference(problem, usual), exact

    try:
        # Here and not in the thread, which may never return to restore the plan.
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
    """What ``problem.differentiate`` returns, computed by the kernels without autograd or ops."""
    from ..kernels.gpu import engine

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
