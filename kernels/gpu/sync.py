"""The barrier between programs that work on one sequence together.

Every program adds one to a counter and then waits until all have. These are two functions, so that
it can do other work in between. The counter only grows within a launch: it needs no reset between
two barriers, and an early arrival cannot be counted for the previous barrier. It starts at zero, in
memory that no other launch uses.
"""

import triton
import triton.language as tl

from .interpreter import compiled


@triton.jit
def arrive(counter_ptr):
    """Publish what this program has stored to the programs that wait for it.

    Args:
        counter_ptr: int64, shared by the programs that wait for each other. All of them must be
            resident at once, which a cooperative launch ensures.
    """
    # All warps store, and one of them signals the arrival: it must come last. Triton up to 3.8
    # inserts no barrier between a store and an atomic.
    tl.debug_barrier()
    tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter_ptr, target):
    """Wait until there have been ``target`` arrivals: n for each program at the n-th barrier."""
    # The interpreter has no inline assembly; it polls by an atomic operation instead.
    if compiled():
        # Every thread acquires, so that no warp has to tell the others: that would be two barriers
        # of the program and a way through shared memory.
        while _acquired(counter_ptr) < target:
            pass
    else:
        while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") < target:
            pass


@triton.jit
def _acquired(counter_ptr):
    """The counter, loaded by each thread; the loads that follow are of after that.

    As it is not pure, the compiler does not hoist it out of a loop, as it would a plain load.
    """
    return tl.inline_asm_elementwise(
        "ld.acquire.gpu.global.b64 $0, [$1];", "=l,l,~{memory}", [counter_ptr.to(tl.int64)],
        dtype=tl.int64, is_pure=False, pack=1,
    )  # fmt: skip
