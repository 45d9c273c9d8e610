"""Random cells: every engine against autograd through a plain loop, in float64.

A failure prints the smallest cell that still fails, as ``RandomCell(...)``.
"""

import pytest
import torch
from fused_rnn.kernels.cpu import compiler
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from fused_rnn import plan, scan
from fused_rnn.cells import draws
from tests.support.random_cells import RandomCell, RandomStage, random_cells
from tests.support.tolerances import assert_equal_in_float64

ENGINES = ("reference", "sequence", *(["cpp"] if compiler.find() else []))
# A C++ loop is compiled for each cell, so time says nothing.
COMMON = {
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
# Of the interpreter, in which to look for a smaller cell takes minutes.
AS_DRAWN = {"phases": [Phase.explicit, Phase.generate]}
CELLS = random_cells(heads=(1, 2, 4))
# Steps, rows and units; four heads divide the units.
SIZES = st.sampled_from([(4, 3, 8), (1, 2, 4), (3, 1, 12)])


def _run(random: RandomCell, cell, v, key, reverse, engine):
    """``scan`` with the matrices that ``Stage.weight`` gives."""
    learned = [s for s, stage in enumerate(random.stages) if not stage.fixed]
    return scan(
        cell,
        v["x"].flatten(2),
        [random.matrix(v, s) for s in learned],
        [v[name] for name in cell.states],
        bias=v["bias"].flatten() if "bias" in v else None,
        params=[v[name] for name in cell.params],
        streams=[*(v[name] for name in cell.streams), *key],
        num_heads=[random.stages[s].heads for s in learned] or 1,
        reverse=reverse,
        return_states=True,
        backend=engine,
    )


def _with_gradients(v, sequences, finals):
    """All outputs and final states, and the gradients of all of ``v`` for the same cotangents."""
    outputs = [*sequences, *finals]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(o.shape, generator=generator, dtype=o.dtype) for o in outputs]
    gradients = torch.autograd.grad(outputs, list(v.values()), cotangents, materialize_grads=True)
    named = {f"output.{i}": output for i, output in enumerate(outputs)}
    return named | {f"d{name}": g for name, g in zip(v, gradients, strict=True)}


def check(random: RandomCell, sizes, reverse, engines):
    cell, v = random.cell(), random.values(*sizes)
    steps, rows, hidden = sizes
    key = [draws.draw_key(rows, generator=torch.Generator().manual_seed(0))] * bool(random.drawn)
    drawn = []
    if key:
        times = torch.arange(steps)
        drawn = [d.squeeze(2) for d in draws.values(cell, *key, times, 1, hidden, torch.float64)]
    want = _with_gradients(v, *random.loop(v, reverse, drawn))
    for engine in engines:
        got = _with_gradients(v, *_run(random, cell, v, key, reverse, engine))
        assert_equal_in_float64(got, want, engine)


@settings(max_examples=40, derandomize=True, **COMMON)
@given(CELLS, SIZES, st.booleans())
def test_random_cells(random, sizes, reverse):
    check(random, sizes, reverse, ENGINES)


# A gate without a product stands before a stage whose source is computed and reads no gate.
GATE_BEFORE_AN_EARLY_SOURCE = RandomCell(
    stages=(RandomStage(1, (("*", ("state", 0), ("params", 0)),), computed=True),),
    free=(1, 0),
    without_input=frozenset(),
    order=(1, 0),
    states=1,
    params=1,
    streams=0,
    reads_t=False,
    step=(("tanh", ("*", ("pre", 0), ("pre", 1))),),
)


@example(GATE_BEFORE_AN_EARLY_SOURCE, "resident", False)
@example(GATE_BEFORE_AN_EARLY_SOURCE, "step", True)
@settings(max_examples=4, derandomize=True, **COMMON, **AS_DRAWN)
@given(CELLS, st.sampled_from(["resident", "step"]), st.booleans())
def test_random_cells_by_kernels(interpreter, random, strategy, reverse):
    with plan.use_strategy(strategy if random.stages else "scan"):
        check(random, (3, 2, 8), reverse, ["triton"])


@pytest.mark.slow
@settings(max_examples=60, derandomize=True, **COMMON)
@given(CELLS, SIZES, st.booleans())
def test_more_random_cells(random, sizes, reverse):
    check(random, sizes, reverse, ENGINES)


@pytest.mark.slow
@settings(max_examples=10, derandomize=True, **COMMON, **AS_DRAWN)
@given(CELLS, st.sampled_from(["resident", "step"]), st.booleans())
def test_more_random_cells_by_kernels(interpreter, random, strategy, reverse):
    with plan.use_strategy(strategy if random.stages else "scan"):
        check(random, (3, 2, 8), reverse, ["triton"])
