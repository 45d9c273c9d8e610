"""Plans are data: what is chosen for which size and chip, and why."""

import itertools

import pytest
import torch
from fused_rnn.kernels.gpu import launch as kernel_launch

import tests.support.cells as ours
from fused_rnn import cells, plan
from fused_rnn.plan import chips, cost, explicit

H100, A100, L40S = (9, 0), (8, 0), (8, 9)
EVERY = tuple(divmod(int(name), 10) for name in chips.chips() if name != chips.INTERPRETER)


def strategy(cell, H, B=16, device=H100, dtype=torch.bfloat16, T=100, D=1):
    planned = plan.plan(cell, T, B, H, dtype, device, D)
    assert planned.forward.strategy == planned.backward.strategy
    return planned.forward.strategy


def test_strategies_by_size():
    assert strategy(cells.LSTM, 64) == "resident"
    assert strategy(cells.LSTM, 128) == "grid"
    assert strategy(cells.LSTM, 128, B=4096) == "resident"  # more programs than fit at once
    assert strategy(cells.LSTM, 256) == "grid"
    assert strategy(cells.LSTM, 1536) == "grid"
    assert strategy(cells.LSTM, 2048) == "stream"
    assert strategy(cells.LSTM, 1536, device=A100) != "grid"
    assert strategy(cells.LSTM, 1536, device=L40S) != strategy(cells.LSTM, 1536, device=H100)


def test_a_single_step_waits_for_nobody():
    for H in (64, 512, 4096):
        assert strategy(cells.GRU_RESET_BEFORE, H, T=1) in ("resident", "step")


def test_in_the_interpreter_nobody_waits():
    for H in (64, 300, 4096):
        assert strategy(cells.LSTM, H, device=torch.device("cpu")) in ("resident", "step")


@pytest.mark.parametrize("cell", (cells.LAYER_NORM_LSTM, cells.LAYER_NORM_GRU, cells.ON_LSTM))
def test_cells_with_many_values_have_few_registers_for_each(cell):
    """Four of a thread, since the kernels spill with eight."""
    for device, H in ((A100, 64), (H100, 64), (H100, 512)):
        launch = plan.plan(cell, 100, 16, H, torch.bfloat16, device).forward
        assert launch.strategy == ("resident" if H == 64 else "grid")
        assert launch.block_b * launch.own * launch.block_h == 4 * 32 * launch.num_warps
    assert strategy(cell, 512) == "grid"
    assert strategy(cell, 4096, T=1) == "step"


@pytest.mark.parametrize("device", EVERY, ids=str)
def test_sums_of_all_units_by_programs_that_own_these(device):
    """Explicit layouts take means and sums, but no running sums."""
    for cell, H in itertools.product((cells.LAYER_NORM_LSTM, cells.LAYER_NORM_GRU), (32, 64, 128)):
        launch = plan.plan(cell, 100, 16, H, torch.bfloat16, device).forward
        assert (launch.strategy, launch.explicit) == ("resident", True)
    assert not plan.plan(cells.ON_LSTM, 100, 16, 32, torch.bfloat16, device).forward.explicit


@pytest.mark.parametrize("device", EVERY, ids=str)
def test_tf32_that_may_spill_keeps_room_for_a_matrix_elsewhere(device, monkeypatch):
    """Two products in turn: the assembler for 8.6 and 12.0 exceeds the rule of registers."""
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "tf32")
    launch = plan.plan(cells.GRU_RESET_BEFORE, 100, 16, 128, torch.float32, device).forward
    chip = chips.chip(device)
    assert launch.explicit
    if launch.strategy == "resident":
        given = (cells.GRU_RESET_BEFORE, launch, 128, 4, False, chip.shared_memory)
        assert len(explicit.held_choices(*given)) > 1
    assert (launch.strategy == "resident") == (chip.shared_memory > 128 * 1024)


@pytest.mark.parametrize("device", EVERY, ids=str)
def test_what_waits_fits_on_the_chip(device):
    chip = chips.chip(device)
    sizes = itertools.product(
        (cells.LSTM, cells.GRU, cells.RNN_TANH),
        (torch.bfloat16, torch.float32, torch.float64),
        (1, 17, 300),
        (1, 96, 160, 300, 512, 1000, 1536, 2048, 4096),
        (1, 2),
    )
    seen = set()
    for cell, dtype, B, H, D in sizes:
        planned = plan.plan(cell, 10, B, H, dtype, device, D)
        launch, back = planned.forward, planned.backward
        if launch.waits:
            assert back.tiles * back.programs(H) * D <= chip.multiprocessors
        seen.add(launch.strategy)
        slices = -(-H // (launch.block_h * launch.own))
        if launch.waits:
            assert launch.tiles >= 1
            most = chip.multiprocessors * (launch.per_multiprocessor or 1)
            assert launch.tiles * slices * D <= most
        if launch.strategy == "resident":
            assert slices == 1
        if launch.keeps_weights and not launch.explicit:
            inner = len(cell.recurrent_gates) * H
            if launch.backward_k:
                inner = -(-inner // launch.backward_k) * launch.backward_k
            kept = inner * min(H, launch.block_h * launch.own)
            assert kept * dtype.itemsize < chip.shared_memory
    assert seen == set(plan.STRATEGIES)


@pytest.mark.parametrize(
    ("dtype", "precision", "warps"),
    ((torch.float32, "ieee", 8), (torch.float32, "tf32", 4), (torch.bfloat16, "ieee", 4)),
)
def test_exact_products_have_warps_of_their_own(dtype, precision, warps, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", precision)
    planned = plan.plan(cells.LSTM, 7, 3, 300, dtype, A100).forward
    assert planned.strategy == "grid"
    constants = kernel_launch.describe(cells.LSTM, planned, 1, 1, 300, dtype, False)
    assert constants["num_warps"] == warps


def test_a_program_that_reads_its_weights_may_have_all_registers():
    def described(strategy, **others):
        launch = plan.Launch(strategy, 16, 16, 64, **{"num_warps": 4} | others)
        return kernel_launch.describe(cells.LSTM, launch, 1, 1, 300, torch.bfloat16, False)

    for strategy in ("stream", "step"):
        assert described(strategy)["maxnreg"] == 255
        assert described(strategy, num_warps=16)["maxnreg"] == 128
    assert all("maxnreg" not in described(s) for s in ("resident", "grid"))


def test_pure():
    arguments = (cells.LSTM, 7, 3, 300, torch.float16, A100, 2)
    assert plan.plan(*arguments) == plan.plan(*arguments)
    with plan.use_strategy("step"):
        assert plan.plan(*arguments).forward.strategy == "step"
    assert plan.plan(*arguments).forward.strategy == "grid"


def test_explained():
    text = plan.plan(cells.LSTM, 100, 16, 512, torch.bfloat16, H100).explain()
    assert "forward: grid, explicit layouts; a program: 16 rows, 1 x 8 units, 4 warps" in text
    assert "backward: grid, explicit layouts; a program: 16 rows, 1 x 8 units, 8 warps" in text
    assert "resident: 2048 KiB of weights of a program, 227 KiB on a multiprocessor" in text
    assert "by the model of cost.py" in text


@pytest.mark.parametrize("name", ("resident", "grid", "stream"))
def test_a_forced_strategy_that_does_not_fit(name):
    with (
        plan.use_strategy(name),
        pytest.raises(RuntimeError, match=f"'lstm' with 20000 hidden units.*{name}: "),
    ):
        plan.plan(cells.LSTM, 2, 1, 20_000, torch.bfloat16, H100)


def test_unknown_strategy():
    with pytest.raises(ValueError, match="strategy: expected one of resident.*got 'fast'"):
        plan.use_strategy("fast").__enter__()


def test_costs_grow_with_the_work():
    def time(B=16, H=512, cell=cells.LSTM, itemsize=2, **changes):
        launch = plan.Launch("grid", 16, 16, 128, 4, tiles=2)
        return cost.step_time(cell, launch, B, H, 1, itemsize, 114)

    assert time() < time(H=1024) < time(H=2048)
    assert time() == time(B=32) < time(B=33)
    assert time(cell=cells.GRU) < time()
    assert time() < time(itemsize=4)
    assert time(cell=cells.GRU_RESET_BEFORE) > time(cell=cells.GRU) + 0.9 * cost.BARRIER


@pytest.mark.parametrize("capability", ((8, 0), (9, 0)))
def test_cells_without_products_have_a_strategy_of_their_own(capability):
    cell, dtype = ours.FADING_UNITS, torch.bfloat16
    assert plan.strategies(cell) == ("scan",)
    assert plan.strategies(cells.LSTM) == plan.STRATEGIES
    for size in ((1, 1, 1), (512, 16, 1024), (64, 4096, 4096), (4096, 1, 64)):
        found = plan.plan(cell, *size, dtype, capability)
        assert found.forward.strategy == found.backward.strategy == "scan"
        assert not found.forward.waits
    for other, strategy in ((cell, "grid"), (cells.LSTM, "scan")):
        with plan.use_strategy(strategy), pytest.raises(RuntimeError, match="strategies of cell"):
            plan.plan(other, 8, 4, 64, dtype, capability)


@pytest.mark.parametrize("capability", ((8, 0), (9, 0)))
def test_long_sequences_of_few_units_in_pieces(capability):
    """Of cells that are linear in their states."""

    def chosen(T, B, H, cell=cells.MIN_GRU, D=1):
        return strategy(cell, H, B, capability, T=T, D=D)

    assert plan.strategies(cells.MIN_GRU) == ("scan", "parallel_scan")
    assert chosen(1, 1, 64) == chosen(100, 1, 64) == "scan"
    assert chosen(4096, 1, 64) == chosen(512, 8, 256) == chosen(70_000, 1, 1024) == "parallel_scan"
    assert chosen(4096, 64, 1024) == chosen(4096, 1, 65536) == "scan"  # these fill the GPU
    assert chosen(4096, 1, 256, cells.QRNN, D=2) == "parallel_scan"
    assert chosen(4096, 1, 256, cells.SRU) == "scan"
    for T in (513, 800, 1023):  # lengths that vary have one plan
        assert plan.plan(cells.MIN_GRU, T, 1, 64, torch.float32, capability) is plan.plan(
            cells.MIN_GRU, 512, 1, 64, torch.float32, capability
        )
    text = plan.plan(cells.MIN_GRU, 4096, 1, 64, torch.float32, capability).explain()
    assert "forward: parallel_scan; a program: 1 rows, 1 x 32 units, 1 warps" in text
    assert "  scan: " in text


def test_cells_that_are_not_linear_have_no_pieces():
    for cell in (cells.SRU, cells.GRU):
        reason = f"'{cell.name}'.*parallel_scan: it.* (step|products)"
        with plan.use_strategy("parallel_scan"), pytest.raises(RuntimeError, match=reason):
            plan.plan(cell, 4096, 1, 64, torch.float32, (9, 0))


@pytest.mark.usefixtures("interpreter")  # other tests run what is printed here
@pytest.mark.parametrize(
    "cell",
    (ours.GATED_AVERAGE, ours.ATTENTIVE_GRU, ours.FULL_PEEPHOLE_LSTM, ours.FADED_RNN),
    ids=lambda cell: cell.name,
)
def test_the_kernels_take_every_wiring(cell):
    assert plan.plans.why_not_triton(cell, torch.device("cuda"), torch.float32) is None
    assert "def step(" in cell.triton_source()
