"""The cost model ranks strategies as the clock of the machine code does."""

import itertools

import pytest

from bench.machine_code.clocked import BATCH, DTYPE, STEPS, clocked
from fused_rnn import cells, plan
from fused_rnn.plan import cost

# The clock's own uncertainty: nearer times are no ranking.
NEAR = 1.1


def times(cell, hidden, capability) -> dict[str, tuple[float, float]]:
    """Microseconds of a forward's step by strategy, by the model and by the clock."""
    found = {}
    for strategy in plan.strategies(cell):
        with plan.use_strategy(strategy):
            try:
                planned = plan.plan(cell, STEPS, BATCH, hidden, DTYPE, divmod(capability, 10))
            except RuntimeError:  # its weights do not fit
                continue
            kernels = list(clocked(cell, hidden, capability, kinds=("inference",)))
        clock = sum(k.waits.microseconds for k in kernels)
        if not (planned.forward.alone or planned.forward.waits):
            clock += len(kernels) * cost.LAUNCH  # which the clock does not see
        found[strategy] = planned.time, clock
    return found


@pytest.mark.parametrize(
    ("cell", "hidden", "capability"),
    [
        ("lstm", 64, 90),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("lstm", 128, 90),
                ("lstm", 256, 80),
                ("lstm", 512, 90),
                ("gru_reset_before", 128, 90),
                ("gru_reset_before", 256, 80),
            )
        ),
    ],
)
def test_the_model_ranks_strategies_as_the_clock_does(cell, hidden, capability):
    cell = cells.get(cell)
    found = times(cell, hidden, capability)
    assert {"grid", "stream", "step"} <= {*found}
    for a, b in itertools.permutations(found, 2):
        (model_a, clock_a), (model_b, clock_b) = found[a], found[b]
        if clock_a > NEAR * clock_b:
            assert model_a > model_b, (a, b, found)
    chosen = plan.plan(cell, STEPS, BATCH, hidden, DTYPE, divmod(capability, 10)).forward.strategy
    assert found[chosen][1] < NEAR * min(clock for _, clock in found.values())
    for model, clock in found.values():
        assert model / 1.6 < clock < 1.6 * model
