"""A small random problem: the fused kernels against the float64 reference, under a deadline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import numerics
from ..cells import Cell, reference
from ..plan import Plan, plan, use_strategy
from . import deadline, measure

# The units of error that are allowed, see ``measure``. The project's tests ask for 4. A false alarm
# costs a user the kernels, and a real fault exceeds this by orders of magnitude.
MOST = 8
# Two loops in float64 differ by a thousand units in the last place where sums in another order
# cancel.
_FLOAT64 = 1e-12 / MOST

# Hidden units, the first that fit: two slices of any strategy; else one block.
SIZES = (40, 17)
_STEPS, _BATCH = 3, 3

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
        inputs, cotangents = _problem(cell, hidden, dtype, seed)
        exact = _results(inputs, cotangents, _by_reference(cell), torch.float64)
        if not all(tensor.isfinite().all() for tensor in exact.values()):
            # A cell may take logarithms or roots, which negative values have not.
            inputs = {name: [t.abs() + 0.5 for t in group] for name, group in inputs.items()}
            exact = _results(inputs, cotangents, _by_reference(cell), torch.float64)
        # The products of "tf32" round as float16 does: to 10 bits.
        usual = torch.float16 if numerics.uses_tf32(dtype, device) else dtype
        eager = _results(inputs, cotangents, _by_reference(cell), usual)
        return _results(inputs, cotangents, _by_kernels(cell), dtype, device), eager, exact

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
    why = f"{where} is off by {error:.3g} times the error of an eager loop; {MOST} are allowed"
    return Outcome(False, why, error)


def _problem(cell, H, dtype, seed) -> tuple[dict[str, list[Tensor]], list[Tensor]]:
    """Inputs in the groups of the op, and cotangents of sequences and finals, on the CPU.

    |x| is from 1 to 2 and rows of |R| sum to 1/2, so that hardly a gate comes near 0, where the
    derivative of relu jumps.
    """
    generator = torch.Generator().manual_seed(seed)
    T, B = _STEPS, _BATCH

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")

    x = normal(T, B, 1, len(cell.x_gates), H)
    weights = [
        normal(1, (end - begin) * H, size * H)
        for (begin, end), size in zip(cell.spans, cell.source_sizes, strict=True)
    ]
    inputs = {
        "x": [x.sign() * (1 + x.abs() / 4).clamp(max=2)],
        "weights": [w / (2 * w.abs().sum(-1, keepdim=True)) for w in weights],
        "bias": [normal(1, len(cell.bias_gates), H)] if cell.bias_gates else [],
        "states": [normal(1, B, H).clamp(-2, 2) for _ in cell.states],
        "params": [normal(1, H) for _ in cell.params],
        "streams": [normal(T, B, 1, H) for _ in cell.streams],
    }
    cotangents = [normal(T, B, 1, H) for _ in cell.states] + [normal(1, B, H) for _ in cell.states]
    # Rounded once, so that every dtype starts from the same numbers.
    inputs = {group: [t.to(dtype) for t in tensors] for group, tensors in inputs.items()}
    return inputs, [c.to(dtype) for c in cotangents]


def _results(inputs, cotangents, run: Callable, dtype, device="cpu") -> dict[str, Tensor]:
    """Outputs and gradients, by name."""
    leaves = {
        group: [t.to(device, dtype).requires_grad_() for t in tensors]
        for group, tensors in inputs.items()
    }
    outputs = run(*leaves.values())
    flat = [leaf for tensors in leaves.values() for leaf in tensors]
    given = [c.to(o.device, o.dtype) for c, o in zip(cotangents, outputs, strict=True)]
    # In this thread: the one that autograd has for the device may be waiting for this check.
    with torch.autograd.set_multithreading_enabled(False):
        gradients = torch.autograd.grad(outputs, flat, given, materialize_grads=True)
    named = {f"output {i}": output.detach() for i, output in enumerate(outputs)}
    names = [f"gradient of {g} {i}" for g, tensors in leaves.items() for i in range(len(tensors))]
    return named | dict(zip(names, gradients, strict=True))


def _by_reference(cell):
    def run(x, weights, bias, states, params, streams):
        bias = bias[0] if bias else None
        sequences, finals = reference.forward(cell, x[0], weights, bias, states, params, streams)
        return [*sequences, *finals]

    return run


def _by_kernels(cell):
    def run(x, weights, bias, states, params, streams):
        bias = bias[0] if bias else None
        args = (cell.key, x[0], weights, bias, states, params, streams, False, True, "unchecked")
        out = torch.ops.fused_rnn.forward(*args)
        count = len(cell.states)
        return [s.to(x[0].dtype) for s in out[:count]] + list(out[count + 1 :])

    return run
