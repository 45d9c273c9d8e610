"""The kernels of ``parallel_scan``: compiled for every chip without spills, and executed."""

import pytest
import torch
from fused_rnn.kernels.gpu.offline import compiling

from bench.machine_code.launches import launch_both, planned_for
from fused_rnn import cells
from fused_rnn.plan import chips
from simulator.audit import audit
from tests.compiled.test_simulated_cells import check
from tests.support.cells import name_of
from tests.support.linear_cells import CHAIN, ROTATION
from tests.support.problems import make_problem

NAME = "parallel_scan"
CAPABILITIES = (80, 86, 89, 90, 100, 120)
KERNELS = {
    "_forward_maps_kernel",
    "_compose_kernel",
    "_forward_kernel",
    "_backward_maps_kernel",
    "_backward_kernel",
}


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_machine_code(capability):
    """Of the cell with one state and of that with the most, with both launches of the table."""
    chip = chips.chip(divmod(capability, 10))
    for cell, dtype in ((cells.MIN_GRU, torch.bfloat16), (CHAIN, torch.float32)):
        rows = chip.of(NAME, dtype.itemsize)
        assert rows
        for row in rows:
            with planned_for(capability, row.launch()), compiling(capability) as found:
                launch_both(cell, dtype, 40, 9, 2, device="meta")
            assert {kernel.name for kernel in found} == KERNELS
            for kernel in found:
                facts = audit(kernel)
                assert facts.exits >= 1, kernel.name
                assert facts.spills == 0, kernel.name
                assert facts.shared <= chip.shared_memory


@pytest.mark.parametrize("capability", (80, 90))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=name_of)
@pytest.mark.parametrize("cell", (cells.QRNN, ROTATION, CHAIN), ids=name_of)
def test_executed(cell, dtype, capability):
    """Several pieces, rows, slices and directions; without races."""
    device = check(make_problem(cell, 9, 2, 33, D=2, dtype=dtype), capability, NAME)
    assert {name for name, _ in device.launches} == KERNELS


@pytest.mark.parametrize("schedule", ("random", "run-ahead"))
def test_schedules(schedule):
    for seed in range(3):
        check(make_problem(ROTATION, 5, 2, 5), 80, NAME, schedule=schedule, seed=seed)


def test_no_warp_takes_many_steps():
    """The plan's choice for a long sequence; and what a warp executes, beside that by ``scan``."""
    problem = make_problem(cells.MIN_GRU, 512, 1, 32, dtype=torch.bfloat16)
    by_pieces = check(problem, 90).launches
    assert {name for name, _ in by_pieces} == KERNELS
    whole = {name: c["instructions"] for name, c in check(problem, 90, "scan").launches}
    pieces = 47  # of 11 steps; the maps of the last one are not needed, and 4 programs compose
    warps = {"_compose_kernel": 4 * 4, "_forward_kernel": pieces, "_backward_kernel": pieces}
    for way in ("forward", "backward"):
        path = sum(
            c["instructions"] / warps.get(name, pieces - 1)
            for name, c in by_pieces
            if name in (f"_{way}_maps_kernel", f"_{way}_kernel")
        )
        path += next(c for name, c in by_pieces if name == "_compose_kernel")["instructions"] / 16
        assert 8 * path < whole[f"_{way}_kernel"]
