"""Kernels that are not this project's, as a reader of the documentation would bring them."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from examples import simulate as example
from simulator import Findings, MemoryFault, simulate


@triton.jit
def _matmul_kernel(
    a_ptr, b_ptr, c_ptr, M, N, K, TRANSPOSED: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        inner = first + tl.arange(0, BLOCK_K)
        a = tl.load(a_ptr + rows * K + inner[None, :])
        if TRANSPOSED:
            b = tl.load(b_ptr + columns * K + inner[:, None])
        else:
            b = tl.load(b_ptr + inner[:, None] * N + columns)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    tl.store(c_ptr + rows * N + columns, acc)


@pytest.mark.parametrize("stages", (1, 3))
@pytest.mark.parametrize("transposed", (False, True))
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
@pytest.mark.parametrize("capability", (80, 90))
@pytest.mark.parametrize("block", ((64, 64, 64), (64, 32, 32), (16, 16, 32)), ids=str)
def test_matmul(capability, dtype, transposed, stages, block):
    """mma.sync and wgmma with operands in any layout, through registers or asynchronous copies."""
    if dtype == torch.float32 and block[0] == 64:
        block = (block[0], 32, 32)
    M, N, K = 2 * block[0], block[1], 3 * block[2]
    a, b = torch.randn(M, K).to(dtype), torch.randn(K, N).to(dtype)
    b_given = b.t().contiguous() if transposed else b
    uses_wgmma = capability == 90 and block[0] == 64
    # Triton 3.6 leaves out the fence between asynchronous copies and the products that read them.
    is_bad = uses_wgmma and stages > 1 and triton.__version__.startswith("3.6.")
    with simulate(capability, strict=False) as device:
        c = torch.empty(M, N)
        _matmul_kernel[(2, 1)](
            a, b_given, c, M, N, K, transposed, *block, stages,
            "tf32" if dtype == torch.float32 else None,
        )  # fmt: skip
    exact = _seen_by_tensor_cores(a) @ _seen_by_tensor_cores(b)
    assert (c - exact).abs().max() < 1e-4  # products are exact, their sums are float32
    assert {finding.kind for finding in device.report} == ({"proxy race"} if is_bad else set())
    kinds = "".join(device.counters.totals)
    assert ("wgmma" in kinds) == uses_wgmma
    assert "mma" in kinds


def _seen_by_tensor_cores(x):
    """TF32 is float32 without its last 13 bits."""
    return (x.view(torch.int32) & -0x2000).view(x.dtype).double() if x.itemsize == 4 else x.double()


@triton.jit
def _triangle_kernel(a_ptr, b_ptr, c_ptr, K: tl.constexpr, BLOCK: tl.constexpr):
    """C = A B for a block lower triangular A."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    acc = tl.zeros((BLOCK, BLOCK), tl.float32)
    for first in tl.range(0, (tl.program_id(0) + 1) * BLOCK, BLOCK, num_stages=2):
        inner = first + tl.arange(0, BLOCK)
        a = tl.load(a_ptr + rows * K + inner[None, :])
        b = tl.load(b_ptr + inner[:, None] * BLOCK + columns)
        acc = tl.dot(a, b, acc)
    tl.store(c_ptr + rows * BLOCK + columns, acc)


@pytest.mark.parametrize("schedule", ("lockstep", "random", "run-ahead"))
@pytest.mark.parametrize("capability", (80, 90))
def test_programs_that_leave_a_loop_one_after_the_other(capability, schedule):
    """Those that started a product together do not wait for it together."""
    blocks, size = 3, 64
    a, b = torch.randn(blocks * size, blocks * size).half(), torch.randn(blocks * size, size).half()
    with simulate(capability, schedule=schedule, strict=False):
        c = torch.empty(blocks * size, size)
        _triangle_kernel[(blocks,)](a, b, c, blocks * size, size)
    for i in range(blocks):
        want = 0
        for k in range(i + 1):
            part = slice(k * size, (k + 1) * size)
            rows = slice(i * size, (i + 1) * size)
            want = want + a[rows, part].double() @ b[part].double()
        assert (c[rows] - want).abs().max() < 1e-4


@triton.jit
def _locked_kernel(lock_ptr, sum_ptr, x_ptr, BLOCK: tl.constexpr, BARRIER: tl.constexpr):
    units = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * BLOCK + units)
    while tl.atomic_cas(lock_ptr, 0, 1) == 1:
        pass
    tl.store(sum_ptr + units, tl.load(sum_ptr + units) + x)
    if BARRIER:
        tl.debug_barrier()
    tl.atomic_xchg(lock_ptr, 0)


@pytest.mark.parametrize("schedule", ("lockstep", "random", "run-ahead"))
def test_a_lock(schedule):
    """Programs that wait for it, at a barrier in their loop, do not stop its owner."""
    x = torch.randn(5, 256)
    lock, total = torch.zeros(1, dtype=torch.int32), torch.zeros(256)
    with simulate(80, schedule=schedule, stretches=100_000):
        _locked_kernel[(5,)](lock, total, x, 256, True)
        torch.testing.assert_close(total, x.sum(0))
    if triton.__version__.startswith("3.9."):
        return  # it puts the barrier before the atomic by itself
    with (
        simulate(80, schedule=schedule),
        pytest.raises(Findings, match=r"race: sum_ptr(.|\n)*test_own_kernels.py"),
    ):
        _locked_kernel[(5,)](lock, total, x, 256, False)


def _last_before_the_product(program, name):
    product = next(i.index for i in program.instructions if "mma_async" in i.modifiers)
    return max(i.index for i in program.instructions[:product] if i.name.startswith(name))


@pytest.mark.parametrize(
    ("left_out", "report"),
    (
        ("fence.proxy.async", "proxy race"),
        ("wgmma.fence", "register race"),
        ("bar.sync", "read-write race"),
    ),
)
def test_wgmma_without(left_out, report):
    a, b, c = torch.randn(64, 64).half(), torch.randn(64, 64).half(), torch.empty(64, 64)
    with (
        simulate(90, change=lambda p: p.without(_last_before_the_product(p, left_out))),
        pytest.raises(Findings, match=report),
    ):
        _matmul_kernel[(1, 1)](a, b, c, 64, 64, 64, False, 64, 64, 64, 1, None)


def test_wgmma_that_is_not_waited_for():
    """Its operands are overwritten while it reads them; what it left in the registers is NaN."""
    a, b, c = torch.randn(64, 64).half(), torch.randn(64, 64).half(), torch.empty(64, 64)

    def change(program):
        wait = next(i.index for i in program.instructions if "wait_group" in i.modifiers)
        return program.without(wait)

    with simulate(90, change=change, strict=False) as device:
        _matmul_kernel[(1, 1)](a, b, c, 64, 64, 64, False, 64, 64, 64, 1, None)
    assert "through wgmma: wgmma.mma_async" in str(device.report)
    assert c.isnan().all()


def test_the_documented_softmax():
    x = torch.randn(3, 300)
    with simulate(80):
        y = torch.empty_like(x)
        example.softmax[(3,)](x, y, 300, BLOCK=512)
    torch.testing.assert_close(y, x.softmax(1))


def test_the_documented_race():
    with (
        simulate(80),
        pytest.raises(Findings, match=r"ld.global.*simulate.py:\d+(.|\n)*st.global.*simulate.py"),
    ):
        example.reverse_twice[(1,)](torch.arange(256), BLOCK=256)


@triton.jit
def _add_kernel(x_ptr, sum_ptr, BLOCK: tl.constexpr):
    units = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * BLOCK + units)
    tl.atomic_add(sum_ptr + units, x, sem="relaxed")


@pytest.mark.parametrize("schedule", ("lockstep", "random", "run-ahead"))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
@pytest.mark.parametrize("capability", (80, 90))
def test_sums_by_atomics(capability, dtype, schedule):
    """In vectors, in pairs of halves, or by compare-and-swap, as the GPU has them."""
    x = torch.randint(-8, 9, (6, 256)).to(dtype)
    total = torch.zeros(256, dtype=dtype)
    with simulate(capability, schedule=schedule):
        _add_kernel[(6,)](x, total, 256)
    assert torch.equal(total, x.sum(0))


@triton.jit
def _scatter_kernel(x_ptr, to_ptr, y_ptr, BLOCK: tl.constexpr):
    units = tl.arange(0, BLOCK)
    places = tl.gather((y_ptr + units).to(tl.int64), tl.load(to_ptr + units), 0)
    tl.store(places.to(tl.pointer_type(tl.float32)), tl.load(x_ptr + units))


def test_addresses_that_went_through_shuffles_and_shared_memory():
    """What is stored there comes back, though no instruction adds to the parameter itself."""
    x, to = torch.randn(256), torch.randperm(256).int()
    with simulate(80):
        y = torch.zeros(256)
        _scatter_kernel[(1,)](x, to, y, 256)
    assert torch.equal(y[to.long()], x)


@triton.jit
def _scalars_kernel(out_ptr, single, double: tl.float64, flag, small, wide):
    tl.store(out_ptr, single.to(tl.float64))
    tl.store(out_ptr + 1, double)
    tl.store(out_ptr + 2, flag.to(tl.float64))
    tl.store(out_ptr + 3, small.to(tl.float64))
    tl.store(out_ptr + 4, wide.to(tl.float64))


def test_numbers_as_arguments():
    out = torch.zeros(5, dtype=torch.float64)
    with simulate(80):
        _scalars_kernel[(1,)](out, 1.5, 0.1, True, -7, 2**40)
    assert out.tolist() == [1.5, 0.1, 1, -7, 2**40]


@triton.jit
def _unmasked_kernel(x_ptr, y_ptr, BLOCK: tl.constexpr):
    units = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + units, tl.load(x_ptr + units))


def test_the_example_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    # From a file: Triton reads the source of a kernel.
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "example.py"
        script.write_text(code, encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, str(script)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"tensor\(2000\.\) \d+ Traffic\(read=4000, written=4000\)\n", done.stdout)


def test_an_unmasked_tail():
    with simulate(80), pytest.raises(MemoryFault, match=r"after the end of x_ptr"):
        _unmasked_kernel[(2,)](torch.zeros(200), torch.zeros(256), BLOCK=128)


def test_an_uninitialised_accumulator():
    with simulate(80), pytest.raises(Findings, match="uninitialised read: x_ptr"):
        _unmasked_kernel[(1,)](torch.empty(128), torch.zeros(128), BLOCK=128)


def test_strided_views_and_other_storages():
    x = torch.arange(512.0)
    with simulate(80):
        _unmasked_kernel[(1,)](x[128:], x[256:], BLOCK=128)
    assert torch.equal(x[256:384], torch.arange(128.0, 256.0))
