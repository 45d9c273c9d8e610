"""What the kernels of some cells read, and how often their programs wait, by execution."""

import pytest
from fused_rnn.kernels.gpu import wiring

from bench.reports import counters
from fused_rnn import cells, plan
from fused_rnn.plan import cost

KINDS = ("forward", "backward")
MULTIPLY = [name for name in counters.OTHERS if cells.get(name).stages]


@pytest.mark.parametrize("name", MULTIPLY)
def test_weights_are_read_once_in_a_sequence(name):
    cell, H = cells.get(name), 32
    weights = cost.squares(cell) * H * H * counters.DTYPE.itemsize
    for counted in counters.count(cell, "resident", H, KINDS).values():
        assert counted.sequence.read_of("weight_ptrs") == counted.tiles * weights
        assert counted.step["atomics"] == 0  # no program waits


@pytest.mark.parametrize("heads", [2, 4])
def test_heads_read_their_blocks_once(heads):
    cell, H = cells.get("slstm"), 128
    weights = cost.squares(cell) * H * H // heads * counters.DTYPE.itemsize
    for counted in counters.count(cell, "resident", H, KINDS, heads).values():
        assert counted.programs == counted.tiles * heads
        assert counted.sequence.read_of("weight_ptrs") == counted.tiles * weights
        assert counted.step["atomics"] == 0


@pytest.mark.parametrize("heads", [2, 4])
def test_heads_wait_once_for_each_part_of_a_step(heads):
    waits_once(cells.get("slstm"), 64, heads)


@pytest.mark.parametrize("name", MULTIPLY)
def test_one_wait_for_each_part_of_a_step(name):
    waits_once(cells.get(name), 64)


def waits_once(cell, H, heads=1):
    """A barrier for each part; or a load of each value that is passed on, where nothing is late."""
    with plan.use_strategy("grid"):
        size = (64, 16, H, counters.DTYPE, (8, 0), heads)
        explicit = plan.plan(cell, *size).forward.explicit
    for kind, counted in counters.count(cell, "grid", H * heads, KINDS, heads).items():
        arrivals = counted.step["atomics"] / (counted.programs * counted.warps)
        assert arrivals == (0 if explicit else len(wiring.parts(cell)) - 1)
        if explicit:
            units = -(-H // (16 * counted.warps)) * 16 * counted.warps
            blocks = sum(cell.source_sizes)
            if kind == "backward":
                blocks = sum(last - first for first, last in cell.spans)
            each = 16 * units * counters.DTYPE.itemsize * counted.programs
            passed = {"forward": "source_ptr", "backward": "passed_ptr"}[kind]
            assert counted.step.read_of(passed) == blocks * each


def test_without_a_product_no_program_waits():
    for counted in counters.count(cells.get("min_gru"), "scan", 64, KINDS).values():
        assert counted.sequence.read_of("weight_ptrs") == 0
        assert counted.step["atomics"] == counted.step["barriers"] == 0
