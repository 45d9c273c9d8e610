"""Find the fastest launch of a layer, and whether cuDNN is faster still.

Candidates are all launches that the table of plans has for the layer, and torch.nn's kernels as
"auto" would run them. A candidate that raises, or that disagrees with the float64 reference on the
timed problem, is excluded with a note.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable

import fused_rnn
from fused_rnn import plan
from fused_rnn.plan import tuned
from fused_rnn.plan.chips import Launch
from fused_rnn.plan.tuned import Timing
from fused_rnn.self_check.trial import Outcome

from ..race.gate import Gate
from ..race.problem import MODES, Problem
from ..race.timing import race

ATEN = "torch.nn"


def check(cell, strategy: str, dtype, device) -> Outcome:
    """The self-check, under a deadline, so that kernels that hang are never timed."""
    options = {"dtype": dtype, "device": device, "strategies": (strategy,)}
    outcomes = fused_rnn.check_kernels(cell, **options)
    return outcomes.get(strategy, Outcome(False, "no small problem fits"))


def measure(
    problem: Problem,
    *,
    check: Callable = check,
    gate: Callable = Gate,
    race: Callable = race,
    rounds: int = 15,
) -> dict[str, Timing]:
    """The times of a problem by mode, of ``problem.MODES``.

    Args:
        check: see ``check`` above.
        gate: a class with the methods of ``Gate``.
        race: a function like ``timing.race``.

    Raises:
        RuntimeError: a kernel that passed the gate fails in the race. Nothing that follows on this
            device is reliable.
    """
    found, notes = candidates(problem, check)
    judge, right = gate(problem, list(MODES)), {}
    for name, build in found.items():
        try:
            module = problem.load(build())
            verdict = judge.check(str(name), module)
        except Exception as error:  # of any kind: this candidate is excluded, others may do
            notes.append(f"{_name(name)}: {type(error).__name__}: {error}".splitlines()[0])
            continue
        if verdict.ok:
            right[name] = module
        else:
            notes.append(f"{_name(name)}: {verdict}")
    return {mode: _timing(problem, mode, right, notes, race, rounds) for mode in MODES}


def candidates(problem: Problem, check: Callable) -> tuple[dict, list[str]]:
    """Functions that make a module, by launch or ATEN, and notes about what is excluded."""
    cell, size = problem.cell, problem.size
    found, notes = {ATEN: functools.partial(problem.layer, "aten")}, []
    fitting = plan.launches(cell, size.T, size.H, problem.dtype, problem.device, problem.directions)
    for strategy, (fit, lack) in fitting.items():
        outcome = check(cell, strategy, problem.dtype, problem.device) if fit else None
        if outcome is None:
            notes.append(f"{strategy}: {lack}")
        elif not outcome.agrees:
            notes.append(f"{strategy}: {outcome.reason}")
        else:
            found |= {launch: functools.partial(_fused, problem, launch) for launch in fit}
    return found, notes


def save(problem: Problem, timings: dict[str, Timing]) -> None:
    """Record the times for ``plan`` and "auto"."""
    for mode, timing in timings.items():
        tuned.record(
            timing,
            problem.cell,
            problem.size.H,
            problem.dtype,
            problem.device,
            problem.directions,
            training=mode == "training",
        )


def known(cell, size, dtype, device, directions: int = 1) -> bool:
    """Whether ``save`` has been called for such a problem on this machine."""
    layer = (cell, size.T, size.B, size.H, dtype, device, directions)
    return all(tuned.find(*layer, training=mode == "training") for mode in MODES)


def summary(timing: Timing) -> str:
    """The fastest launch and its time, beside torch.nn's."""
    best = min(timing.launches, key=lambda pair: pair[1], default=None)
    ours = f"{_name(best[0])} {best[1]:.2f}" if best else "no kernel"
    aten = "-" if timing.aten is None else f"{timing.aten:.2f}"
    who = ATEN if timing.aten_is_fastest else "fused"
    return f"{ours}; {ATEN} {aten} us per step: {who}"


def _timing(problem, mode, right, notes, race, rounds) -> Timing:
    calls = {name: MODES[mode](module, problem) for name, module in right.items()}
    samples = race(calls, rounds, problem.device) if calls else {}
    steps = problem.size.T
    times = {name: statistics.median(s) * 1e3 / steps for name, s in samples.items()}
    aten = times.pop(ATEN, None)
    return Timing(steps, problem.size.B, aten, tuple(times.items()), tuple(notes))


def _fused(problem, launch):
    layer = problem.layer("triton")
    layer.around = functools.partial(plan.use_launch, launch)
    return layer


def _name(candidate: Launch | str) -> str:
    return candidate if candidate == ATEN else plan.describe(candidate)
