"""A cost model of launches: the estimated time per step, not a measurement.

It ranks launches that could run the same problem, where nothing has been timed. The constants are
published figures of one GPU, the H100 unless noted, and are used for all: the trade-off between two
launches (a barrier against the bytes and products that it saves) varies less between chips than the
times do. The time of a step is the sum of these parts, without overlap:

- synchronization between programs, per part of a step: a barrier of the grid, a launch, or values
  that programs poll for; Python's launch rate is limited;
- latency and bytes of what programs read from each other, and of weights that are not kept;
- products, at the pace of the tensor cores or of the shared memory that feeds them;
- layouts: what goes through shared memory since other threads need it;
- exponentials and divisions of the pointwise part, of which a multiprocessor does 16 per cycle.

It is at least the time to load x from memory and to store what is saved. The shares of these parts
that do not overlap are fitted to the clock of the machine code, on 8.0 and 9.0: see docs/plans.md.
"""

from __future__ import annotations

from .. import once
from ..cells import Cell, graphs
from .chips import Launch

# Microseconds; bytes or operations per microsecond and multiprocessor, unless noted otherwise.
BARRIER = 1.09  # a barrier of all programs of a cooperative grid
NODE = 1.40  # a launch after a launch, on the GPU
LAUNCH = 10.0  # a launch from Python, while the GPU is busy with earlier ones
OVERHEAD = 0.1  # of the loop per step, with the barriers within a program
LATENCY = 0.35  # to pass on a source by the L2 cache, fitted
L2 = 30e3  # where each multiprocessor reads something else
PATH = 64 * 1755  # from the L2 cache to one, of what all read
SHARED = 128 * 1755
TENSOR = 2048 * 1410  # 16-bit mma.sync, of the A100
SPECIAL = 16 * 1755
SCHEDULERS = 4  # of a multiprocessor: fewer warps leave some without work
MEMORY = 2.77e6  # of the whole GPU
WARPS = 32  # that a multiprocessor takes, with up to 64 registers per thread

# Of an operation; the others have none, or stand for more than special functions.
_SPECIAL = {
    "sigmoid": 2, "tanh": 2, "silu": 2, "gelu": 2, "mish": 3, "softplus": 2, "log_sigmoid": 2,
    "exp": 1, "exp2": 1, "expm1": 1, "elu": 1, "log": 1, "log2": 1, "log1p": 1, "sqrt": 1,
    "rsqrt": 1, "reciprocal": 1, "div": 1, "pow": 2, "sin": 1, "cos": 1,
}  # fmt: skip
# The share of reading operands that products do not overlap with.
_OPERANDS = 0.7

# Slowdown of products against 16-bit ones, by bytes of an element: 16-bit, TF32, float64.
SLOWER = {2: 1, 4: 2, 8: 16}


def squares(cell: Cell) -> int:
    """The number of H x H matrices of a step: one per gate and vector of its stage's source."""
    return sum(gates * vectors for gates, vectors in cell.matrices)


def step_time(
    cell: Cell,
    launch: Launch,
    B: int,
    H: int,
    D: int,
    itemsize: int,
    multiprocessors: int,
    python: float = LAUNCH,
    steps: int = 0,
) -> float:
    """Estimate the microseconds per time step of a forward in training.

    Args:
        itemsize: bytes of an element of x.
        python: minimum microseconds of a launch; 0 in a graph.
        steps: of the sequence, for "parallel_scan".
    """
    given = (B, H, D, itemsize, multiprocessors, python, steps)
    return max(step_bounds(cell, launch, *given).values())


def step_bounds(
    cell: Cell,
    launch: Launch,
    B: int,
    H: int,
    D: int,
    itemsize: int,
    multiprocessors: int,
    python: float = LAUNCH,
    steps: int = 0,
) -> dict[str, float]:
    """Estimate the microseconds that each resource needs for a step, of which the longest counts.

    "programs", one after the other where not all run at once; "launches", which Python starts;
    "memory". See ``step_time`` for the arguments.
    """
    tiles, slices = -(-B // launch.block_b), launch.programs(H)
    meetings = 1 + len(graphs.late_stages(cell))
    parts = step_parts(cell, launch, H, itemsize)
    time = sum(parts.values())
    moved = B * D * H * itemsize * (len(cell.x_gates) + len(cell.gates) + 2 * len(cell.states))
    memory = moved / MEMORY
    if launch.strategy == "step":
        work = time * max(1.0, tiles * slices * D / multiprocessors)
        return {"programs": work, "launches": meetings * python, "memory": memory}
    if launch.strategy == "scan":  # small programs, of which many share a multiprocessor
        at_once = multiprocessors * WARPS / launch.num_warps
        return {"programs": time * max(1.0, tiles * slices * D / at_once), "memory": memory}
    if launch.strategy == "parallel_scan":  # all steps twice, in pieces; and what joins these
        at_once = multiprocessors * WARPS / launch.num_warps
        pieces, length = launch.cut(max(steps, 1))
        walks = 2 * length * time * max(1.0, tiles * slices * D * pieces / at_once)
        joined = 2 * max(NODE, python) + 4 * LATENCY
        return {"programs": (walks + joined) / max(steps, 1), "memory": 2 * memory}
    at_once = launch.tiles if launch.waits else max(1, multiprocessors // D)
    if launch.per_multiprocessor:
        # Programs that share a multiprocessor wait side by side, but its pipes work for each.
        shared = -(-slices * min(tiles, at_once) * D // multiprocessors)
        work = (parts[name] for name in ("products", "layouts", "activations", "reads"))
        time = max(time, shared * sum(work) + parts["waits"] - LATENCY)
    return {"programs": time * -(-tiles // at_once), "memory": memory}


def step_parts(cell: Cell, launch: Launch, H: int, itemsize: int) -> dict[str, float]:
    """Estimate the microseconds of each part of one program's step, by name, in its order.

    "loop", "products", "activations"; where programs meet "waits" and "reads", of what the others
    computed; and "weights", where these are read again at each step.
    """
    own = launch.own * launch.block_h
    inner = own if launch.strategy == "resident" else -(-H // launch.block_k) * launch.block_k
    blocks, rows, gates = squares(cell), launch.block_b, len(cell.gates)
    weights = blocks * inner * own * itemsize
    source = sum(cell.source_sizes) * rows * inner * itemsize
    idle = max(1.0, SCHEDULERS / launch.num_warps)
    meetings = 1 + len(graphs.late_stages(cell))

    # Weights in registers are operands as they are; others go through shared memory at each step.
    products = 2 * rows * inner * own * blocks * idle * SLOWER[itemsize] / TENSOR
    if launch.explicit:
        moved = 0 if launch.alone else 4 * launch.num_warps * rows * own * gates  # partial sums
    else:
        across = min(launch.num_warps, max(1, launch.block_h // 16))  # warps side by side
        operands = (weights * launch.num_warps / across + source) / SHARED
        products = max(products, _OPERANDS * operands)
        moved = 18 * rows * own * gates if launch.strategy == "resident" else 0
    parts = {
        "loop": OVERHEAD * (meetings if launch.alone else 1),
        "products": products,
        "layouts": moved / SHARED,
        "activations": special_functions(cell) * rows * own * idle / SPECIAL,
    }
    if not launch.alone:
        # A meeting per part of a step, of the programs that own different units. With explicit
        # layouts they poll for the values themselves.
        wait = NODE if not launch.waits else 0.0 if launch.explicit else BARRIER
        parts["waits"] = meetings * (wait + LATENCY)
        # Explicit layouts load operands; others move what they load through shared memory.
        parts["reads"] = source * (1 if launch.explicit else 3.5) / PATH
    if not launch.keeps_weights:
        parts["weights"] = weights / L2
    return parts


@once.per_cell
def special_functions(cell: Cell) -> int:
    """How many a step takes of each unit and row, with those of sources: a sigmoid has two."""
    parts = [("step", 0), *(("source", s) for s in range(len(cell.stages)))]
    total = 0
    for part, stage in parts:
        nodes = list(graphs.graph(cell, part, stage).graph.nodes)
        calls = [node for node in nodes if node.op == "call_function"]
        total += sum(_SPECIAL.get(getattr(call.target, "_opname", ""), 0) for call in calls)
        total -= len(graphs.joint_products(nodes))
    return total
