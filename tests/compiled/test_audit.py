"""The kernels compiled for GPUs that are not here, as the plan would launch them.

A spill, a kernel that is nothing but a trap, weights beyond the shared memory, or a product that
missed the tensor cores compile without a word; so the machine code is read.
"""

import dataclasses
import inspect
import struct

import pytest
import torch
import triton
import triton.language as tl
from fused_rnn.kernels.gpu.offline import compiling

from bench.machine_code.grid import CAPABILITIES, products_of, torch_dtype
from bench.machine_code.kernels import examine, kernels
from bench.machine_code.launches import launch_both, planned_for
from fused_rnn import Cell, cells, plan
from fused_rnn.plan import chips
from simulator import audit, ptx
from simulator.audit import hoisted_loads, unordered_releases
from simulator.chips import CHIPS
from tests.support.functions import FUNCTIONS

# (cell, dtype, H, B, compute capability): every strategy, dtype and chip once or more.
FEW = (
    ("lstm", "bfloat16", 128, 8, 90),
    ("lstm", "float32", 32, 8, 80),
    ("lstm", "float32", 64, 8, 80),
    ("lstm", "float16", 512, 64, 80),
    ("lstm", "float64", 1000, 8, 80),
    ("peephole_lstm", "bfloat16", 64, 8, 86),
    ("peephole_lstm", "float32", 512, 8, 90),
    ("gru", "bfloat16", 100, 8, 89),
    ("gru", "float64", 32, 8, 80),
    ("gru_reset_before", "bfloat16", 128, 8, 100),
    ("gru_reset_before", "float16", 300, 8, 90),
    ("rnn_tanh", "bfloat16", 17, 8, 120),
    ("lstm", "bfloat16", 1024, 16, 90),
    ("gru_reset_before", "float16", 1536, 64, 80),
    ("gru", "float16", 512, 64, 100),
    ("gru_reset_before", "float32", 256, 16, 80),
    ("cifg_lstm", "bfloat16", 2048, 1, 80),
    *(("block_gru", "bfloat16", 64, 8, capability) for capability in (80, 86, 89, 90, 100, 120)),
    ("block_gru", "bfloat16", 256, 64, 90),
    ("layer_norm_lstm", "bfloat16", 64, 16, 80),
    ("layer_norm_gru", "bfloat16", 64, 16, 90),
    ("layer_norm_gru", "bfloat16", 32, 16, 86),
)
MANY = tuple(
    (cell, dtype, H, B, capability)
    for capability in (80, 86, 89, 90, 100, 120)
    for cell in ("rnn_relu", "lstm", "peephole_lstm", "cifg_lstm", "gru", "gru_reset_before")
    for dtype, H, B in (
        ("bfloat16", 32, 8),
        ("bfloat16", 64, 8),
        ("bfloat16", 128, 8),
        ("bfloat16", 192, 8),
        ("float32", 32, 8),
        ("float32", 64, 8),
        ("bfloat16", 1000, 8),
        ("bfloat16", 1000, 64),
        ("float32", 1000, 8),
        ("float32", 1000, 64),
        ("float64", 32, 8),
        ("float64", 1000, 8),
    )
)
# Norms: a few sizes. Of those between them some spill, see docs/design.md.
MANY += tuple(
    (f"layer_norm_{cell}", "bfloat16", H, 16, capability)
    for cell, H, capabilities in (
        ("lstm", 64, (80, 86, 89, 90)),
        ("lstm", 512, (80, 90)),
        ("lstm", 768, (90,)),
        ("gru", 64, (80, 86, 89, 90, 100, 120)),
        ("gru", 768, (80,)),
        ("gru", 1152, (90,)),
    )
    for capability in capabilities
)


def test_chips_are_those_of_the_plans():
    for capability, chip in CHIPS.items():
        assert chip.shared_memory == chips.chip(divmod(capability, 10)).shared_memory


@pytest.mark.parametrize("case", FEW, ids=str)
def test_machine_code(case):
    check(*case)


@pytest.mark.slow
@pytest.mark.parametrize("case", MANY, ids=str)
def test_machine_code_of_every_plan(case):
    check(*case)


def check(cell, dtype, H, B, capability):
    cell = cells.get(cell)
    with products_of(dtype):
        planned = [
            plan.plan(cell, T, B, H, torch_dtype(dtype), divmod(capability, 10)).forward
            for T in (1, 2)  # of a single step no program waits for another
        ]
    for launch in dict.fromkeys(planned):
        found = kernels(cell, dtype, H, launch, capability=capability)
        assert found
        for kernel in found:
            for _, facts in examine(kernel, [capability]):
                assert not facts.faults(dtype, capability), facts


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_counts_by_opcode_are_those_of_the_disassembler(capability):
    with planned_for(capability), compiling(capability) as launches:
        launch_both(cells.LSTM, torch.bfloat16, 64, 2, 1)
    for launch in launches:
        found = audit.audit(launch)
        assert found == audit._sound(launch, found.expected)
        assert found == audit._disassembled(launch, found.expected)
        assert found.tensor_core > 0


@triton.jit
def _spilling_kernel(x_ptr, SIZE: tl.constexpr):
    offsets = tl.arange(0, SIZE)
    x = tl.load(x_ptr + offsets)
    tl.debug_barrier()
    tl.store(x_ptr + SIZE + offsets, x)


@pytest.mark.parametrize(("size", "spills"), ((128, False), (8192, True)))
def test_spills_are_counted(size, spills):
    """32 registers hold a value of each thread, but not 64 of them."""
    with compiling(80) as launches:
        _spilling_kernel[(1,)](torch.zeros(2 * size), SIZE=size, num_warps=4, maxnreg=32)
    assert bool(audit.audit(launches[0]).spills) == spills


@pytest.mark.parametrize("planted", ("a missing product", "no exit"))
def test_a_kernel_with_a_fault_is_not_sound(planted):
    with planned_for(80), compiling(80) as launches:
        launch_both(cells.LSTM, torch.bfloat16, 64, 2, 1, save=False)
    (launch,) = launches
    found = audit.audit(launch)
    if planted == "no exit":
        code = launch.cubin.replace(struct.pack("<H", 0x794D), struct.pack("<H", 0x7918))
        launch = dataclasses.replace(launch, cubin=code)
        assert audit.audit(launch).exits < found.exits
    else:
        launch = dataclasses.replace(launch, ptx=launch.ptx.replace("mma.sync", "fma", 1))
        assert audit.audit(launch).expected == audit.audit(launch).tensor_core - 1


@triton.jit
def _passing_kernel(x_ptr, counter_ptr, BARRIER: tl.constexpr):
    offsets = tl.program_id(0) * 256 + tl.arange(0, 256)
    tl.store(x_ptr + offsets, offsets.to(tl.float32))
    if BARRIER:
        tl.debug_barrier()
    tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")


def test_a_store_that_reaches_a_release_without_a_barrier_is_seen():
    """Newer Triton puts one in by itself: so it is taken out of the text."""
    x, counter = torch.zeros(512), torch.zeros(1, dtype=torch.int64)
    with compiling(90) as launches:
        _passing_kernel[(2,)](x, counter, BARRIER=True)
    text = launches[0].ptx
    assert "release" in text
    assert not unordered_releases(ptx.parse(text))
    planted = "\n".join(line for line in text.split("\n") if "bar.sync" not in line)
    assert planted != text
    found = unordered_releases(ptx.parse(planted))
    assert found
    assert all("release" in release.modifiers for _, release in found)


@triton.jit
def _rows_of_a_step(x_ptr, step, rows, units):
    width: tl.constexpr = units.shape[0]
    return tl.load(x_ptr + (step * rows.shape[0] + rows[:, None]) * width + units[None, :])


@triton.jit
def _pipelined_kernel(
    x_ptr, y_ptr, steps, BLOCK: tl.constexpr, STAGES: tl.constexpr, PASSED: tl.constexpr
):  # fmt: skip
    units = tl.arange(0, BLOCK)
    rows = tl.arange(0, 16)
    acc = tl.zeros((16, BLOCK), tl.float32)
    for step in tl.range(0, steps, num_stages=STAGES):
        x = _rows_of_a_step(x_ptr, step, rows, units)
        acc = tl.dot(x, tl.load(y_ptr + units[:, None] * BLOCK + units[None, :]), acc)
    out_ptr = x_ptr if PASSED else y_ptr
    tl.store(out_ptr + rows[:, None] * BLOCK + units[None, :], acc.to(tl.bfloat16))


@pytest.mark.parametrize(
    ("stages", "passed", "hoisted"), ((1, True, False), (3, True, True), (3, False, False))
)
def test_a_load_that_the_pipeliner_hoists_is_seen(stages, passed, hoisted):
    """A load of x, if the kernel may write to it; the loop calls a function that makes it."""
    x, y = torch.zeros(2, 4096, dtype=torch.bfloat16).unbind()
    with compiling(80) as launches:
        _pipelined_kernel[(1,)](x, y, 8, BLOCK=32, STAGES=stages, PASSED=passed)
    source, first = inspect.getsourcelines(_pipelined_kernel.fn)
    begin = next(i for i, line in enumerate(source) if "tl.range" in line)
    # Of x alone: y is the same at every step, and its load may go anywhere.
    lines = range(first + begin + 1, first + begin + 2)
    assert bool(hoisted_loads(ptx.parse(launches[0].ptx), lines)) == hoisted


@pytest.mark.parametrize("first", range(0, len(FUNCTIONS), 10))
def test_every_operation_compiles(first):
    """Ten in one cell."""
    capability = (80, 100)[first // 10 % 2]

    def step(pre, state):
        functions = list(FUNCTIONS.values())[first : first + 10]
        return sum(function(pre[0], state[0]) for function in functions)

    cell = Cell("some_functions", step, gates=("a",), states=("h",))
    launch = plan.plan(cell, 2, 16, 16, torch.float32, divmod(capability, 10)).forward
    for kernel in kernels(cell, "tf32", 16, launch, capability=capability):
        for _, facts in examine(kernel, [capability]):
            assert not facts.error
            assert facts.exits


def test_new_lengths_and_batch_sizes_do_not_compile_anew():
    """T and B are run-time values: the compiled kernel does not change with them."""
    with planned_for(90), compiling(90) as launches:
        for T, B in ((1, 1), (2, 16), (7, 5), (16, 8), (33, 3)):
            launch_both(cells.LSTM, torch.bfloat16, 64, T, B)
    assert len({launch.cubin for launch in launches if "forward" in launch.name}) == 1
    assert len({launch.cubin for launch in launches if "backward" in launch.name}) == 1
