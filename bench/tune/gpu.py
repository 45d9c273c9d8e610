"""Which launch is the fastest of a layer, and whether cuDNN is faster still: gate, then clock.

Candidates are all launches that the table of plans has for the layer, and torch.nn's kernels as
"auto" would run them. One that raises, or disagrees with the float64 reference on the very problem
that is timed, drops out with a note.
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
    """The self-check: a small problem under a deadline, so that one that hangs is never timed."""
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
        gate: made of a problem and modes; its ``check`` takes a name and a module.
        race: as ``timing.race``.

    Raises:
        RuntimeError: a kernel that was right breaks in the race; nothing that follows on this
            device can be believed.
    """
    found, notes = candidates(problem, check)
    judge, right = gate(problem, list(MODES)), {}
    for name, build in found.items():
        try:
            module = problem.load(build())
            verdict = judge.check(str(name), module)
        except Exception as error:  # whatever it is: this candidate is none, others may be
            notes.append(f"{_name(name)}: {type(error).__name__}: {error}".splitlines()[0])
            continue
        if verdict.ok:
            right[name] = module
        else:
            notes.append(f"{_name(name)}: {verdict}")
    return {mode: _timing(problem, mode, right, notes, race, rounds) for mode in MODES}


def candidates(problem: Problem, check: Callable) -> tuple[dict, list[str]]:
    """By launch, or ATEN, how its module is made; and notes of what takes no part."""
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
    """Let ``plan`` and "auto" know."""
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
    """The winner, and torch.nn beside it."""
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
