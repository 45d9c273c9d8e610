"""Run Triton kernels without a GPU, and find the race in one: python examples/simulate.py"""

import torch
import triton
import triton.language as tl

from simulator import Findings, simulate


@triton.jit
def softmax(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    row, units = tl.program_id(0), tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * N + units, mask=units < N, other=-float("inf"))
    e = tl.exp(x - tl.max(x, 0))
    tl.store(y_ptr + row * N + units, e / tl.sum(e, 0), mask=units < N)


@triton.jit
def reverse_twice(x_ptr, BLOCK: tl.constexpr):
    units = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + units)
    tl.debug_barrier()
    tl.store(x_ptr + BLOCK - 1 - units, x)
    # Missing: tl.debug_barrier(). Another warp may not have stored yet what is loaded here.
    x = tl.load(x_ptr + units)
    tl.debug_barrier()
    tl.store(x_ptr + BLOCK - 1 - units, x)


if __name__ == "__main__":
    x = torch.randn(5, 300)
    with simulate(90) as device:  # compute capability 9.0
        y = torch.empty_like(x)
        softmax[(5,)](x, y, 300, BLOCK=512)
    print("largest error:", (y - x.softmax(1)).abs().max().item())
    print("bytes read of x:", device.counters.arguments["x_ptr"].read, "of", 4 * x.numel())
    print("instructions:", device.counters["instructions"])

    try:
        with simulate(90):
            reverse_twice[(1,)](torch.arange(256), BLOCK=256)
    except Findings as error:
        print(f"\nand of the second kernel, {error}")
