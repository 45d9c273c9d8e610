"""How long a step of a launch should take: a model, not a measurement.

It ranks launches that could run the same problem, where nothing has been timed. The constants are
published figures of one GPU, the H100, and stand in for the others': what decides between two
launches (a barrier against the bytes and products it saves) changes less from chip to chip than the
times do. A step costs, one after the other without overlap:

- what its programs do to wait for each other, per stage: a barrier of the grid, or a launch, of
  which Python makes no more than so many;
- the latency and the bytes of what they read of each other, and of weights that are not kept;
- products, at the pace of the tensor cores or of the shared memory that feeds them. A warp computes
  tiles of 16 x 16; where there are more warps than tiles, several compute the same one, and the
  pointwise part too;
- exponentials and divisions of the pointwise part, of which a multiprocessor does 16 per cycle;

and never less than the memory takes to deliver x and to store what is saved.
"""

from __future__ import annotations

from ..cells import Cell
from .chips import Launch

# Microseconds, and bytes or operations per microsecond and multiprocessor, unless it says else.
BARRIER = 1.09  # of all programs of a cooperative grid
NODE = 1.40  # a launch after a launch, on the GPU
LAUNCH = 10.0  # a launch from Python, while the GPU works on those before
OVERHEAD = 0.15  # of a step's loop, with its barriers of one program
LATENCY = 0.24  # of the L2 cache
L2 = 30e3
SHARED = 128 * 1755
TENSOR = 0.6 * 2680 * 1755  # 16-bit mma.sync
SPECIAL = 16 * 1755
MEMORY = 2.77e6  # of the whole GPU

# How much slower than 16-bit ones products are, by bytes of an element: TF32, float64.
_SLOWER = {2: 1, 4: 2, 8: 16}


def step_time(
    cell: Cell,
    launch: Launch,
    B: int,
    H: int,
    D: int,
    itemsize: int,
    multiprocessors: int,
    python: float = LAUNCH,
) -> float:
    """Microseconds per time step of a forward in training.

    Args:
        itemsize: bytes of an element of x.
        python: microseconds that a launch takes at least; 0 in a graph.
    """
    own = launch.own * launch.block_h
    tiles, slices = -(-B // launch.block_b), -(-H // own)
    inner = own if launch.strategy == "resident" else -(-H // launch.block_k) * launch.block_k
    stages, recurrent = len(cell.stages), len(cell.recurrent_gates)

    weights = recurrent * inner * own * itemsize
    source = stages * launch.block_b * inner * itemsize
    across = min(launch.num_warps, max(1, launch.block_h // 16))  # warps side by side
    copies = launch.num_warps / min(launch.num_warps, across * (launch.block_b // 16))
    products = 2 * launch.block_b * inner * own * recurrent * copies * _SLOWER[itemsize] / TENSOR
    operands = (weights * launch.num_warps / across + source) / SHARED
    time = OVERHEAD + max(products, operands)
    time += 2.5 * launch.block_b * own * len(cell.gates) * copies / SPECIAL
    if launch.strategy != "resident":
        wait = BARRIER if launch.waits else NODE
        time += stages * (wait + LATENCY) + source / L2
    if not launch.keeps_weights:
        time += weights / L2

    moved = B * D * H * itemsize * (len(cell.x_gates) + len(cell.gates) + 2 * len(cell.states))
    if launch.strategy == "step":
        work = time * max(1.0, tiles * slices * D / multiprocessors)
        return max(work, stages * python, moved / MEMORY)
    at_once = launch.tiles if launch.waits else max(1, multiprocessors // D)
    return max(time * -(-tiles // at_once), moved / MEMORY)
