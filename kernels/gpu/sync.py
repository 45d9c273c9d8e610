"""The barrier between programs that work on one sequence together.

Every program adds one to a counter and then waits until all have. These are two functions, so that
it can do other work in between. The counter only grows within a launch: it needs no reset between
two barriers, and an early arrival cannot be counted for the previous barrier. It starts at zero, in
memory that no other launch uses.
"""

import triton
import triton.language as tl


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
    # The compiler would hoist a plain load out of the loop, even a volatile one.
    while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") < target:
        pass
    # One warp has acquired; all warps make the loads that follow.
    tl.debug_barrier()
