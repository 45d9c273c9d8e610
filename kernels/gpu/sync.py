"""The barrier of programs that work on one sequence together, and why each part of it is there.

Every program adds one to a counter, and before it goes on waits until all have: two functions, so
that it can do something else in between. The counter only grows within a launch: nobody has to
reset it between two barriers, and a program that is early can not be mistaken for one of the
barrier before. It starts at zero, in memory of its launch alone.
"""

import triton
import triton.language as tl


@triton.jit
def arrive(counter_ptr):
    """What this program has stored will be seen by all that have waited for it.

    Args:
        counter_ptr: int64, shared by the programs that wait for each other, all of which have to
            be on the chip at once: a cooperative launch sees to that.
    """
    # The stores are made by all warps, the arrival by one: it has to be the last of them. Triton
    # up to 3.8 puts no barrier of its own between a store and an atomic.
    tl.debug_barrier()
    tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter_ptr, target):
    """Wait until there have been ``target`` arrivals: n for each program at the n-th barrier."""
    # A plain load would be taken out of the loop by the compiler, also a volatile one.
    while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") < target:
        pass
    # One warp has acquired; the loads that follow are made by all.
    tl.debug_barrier()
