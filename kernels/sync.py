"""The barrier of programs that work on one sequence together, and why each part of it is there.

Every program adds one to a counter and waits until all have. The counter only grows within a
launch: nobody has to reset it between two barriers, and a program that is early can not be
mistaken for one of the barrier before. It starts at zero, in memory of its launch alone.
"""

import triton
import triton.language as tl


@triton.jit
def grid_barrier(counter_ptr, target):
    """What any of the programs stored before is seen by all of them after.

    Args:
        counter_ptr: int64, shared by the programs that wait for each other, all of which have to
            be on the chip at once: a cooperative launch sees to that.
        target: how many arrivals there will have been when all have arrived: at the n-th barrier
            n times the number of programs.
    """
    # The stores are made by all warps, the arrival by one: it has to be the last of them. Triton
    # up to 3.8 puts no barrier of its own between a store and an atomic.
    tl.debug_barrier()
    tl.atomic_add(counter_ptr, 1, sem="release", scope="gpu")
    # A plain load would be taken out of the loop by the compiler, also a volatile one.
    while tl.atomic_add(counter_ptr, 0, sem="acquire", scope="gpu") < target:
        pass
    # One warp has acquired; the loads that follow are made by all.
    tl.debug_barrier()
