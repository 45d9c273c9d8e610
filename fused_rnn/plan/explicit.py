"""What fits the kernels with explicit layouts: where their matrices and values lie.

Matrices lie in registers. A program that owns all units may leave some in shared memory, from which
each step reads them. The numbers of registers are counted, not measured: a linear rule that is at
or above what the assembler needed for every built-in cell, see docs/design.md.
"""

from __future__ import annotations

from .. import numerics, once
from ..cells import Cell, graphs
from .chips import Launch, Row

# Registers of a multiprocessor and of a thread; bytes of an exchange that is not a block.
_ALL, _MOST = 65536, 255
_SCRATCH = 1024
# Registers of the operands that a program gathers: where these are few, it loads the rest later.
_OPERANDS = 40


def held(cell: Cell, launch: Launch, H: int, itemsize: int, backward: bool) -> tuple[int, ...]:
    """Per stage, how many matrices are in registers: all, or as many as there is room for.

    Args:
        launch: of the forward, or of the backward.
    """
    warps, programs = launch.num_warps, launch.per_multiprocessor or 1
    size = _registers_of_matrix(launch, H, itemsize, warps)
    room = min(_MOST, _ALL // (32 * warps * programs)) - _other_registers(cell, launch, H, backward)
    left = max(0, room // size)
    found = []
    for gates, vectors in _matrices_of_stages(cell):
        found.append(min(left, gates * vectors))
        left -= found[-1]
    return tuple(found)


def why_not(cell: Cell, row: Row, H: int, shared_memory: float) -> str | None:
    """The reason why a row of the table does not fit, or None."""
    launch, itemsize = row.blocks, row.itemsize
    if not cell.stages or any(stage.fixed for stage in cell.stages):
        return "explicit layouts: not for cells without products, or with fixed matrices"
    if itemsize == 4 and numerics.rnn_precision() != "tf32":
        return "explicit layouts: float32 products are TF32"
    if launch.alone and launch.block_h < H:
        return f"{H} units: more than the {launch.block_h} of a program"
    matrices = sum(gates * vectors for gates, vectors in _matrices_of_stages(cell))
    for backward, launch in enumerate((row.blocks, row.blocks.backward())):
        rest = matrices - sum(held(cell, launch, H, itemsize, bool(backward)))
        if rest and not launch.alone:
            return f"{matrices} matrices of {H} units: more than registers hold"
        block = launch.block_b * launch.block_h * itemsize
        passed = 2 * block * (len(cell.gates) if backward else sum(cell.source_sizes))
        need = rest * launch.block_h**2 * itemsize + passed * launch.alone + _SCRATCH
        if need > shared_memory:
            return f"{rest} matrices in shared memory: {need // 1024} KiB"
    return None


def _matrices_of_stages(cell: Cell) -> list[tuple[int, int]]:
    """Per stage its gates and the vectors of its source."""
    spans = zip(cell.spans, cell.source_sizes, strict=True)
    return [(last - first, vectors) for (first, last), vectors in spans]


def _registers_of_matrix(launch: Launch, H: int, itemsize: int, warps: int) -> int:
    inner = launch.block_h if launch.alone else -(-H // (16 * warps)) * 16 * warps
    return max(1, launch.block_h * inner * itemsize // (128 * warps))


def _other_registers(cell: Cell, launch: Launch, H: int, backward: bool) -> int:
    """Those of a thread that do not hold matrices."""
    values = len(cell.gates) + len(cell.states) + len(cell.params) + len(cell.streams)
    operations = _operations(cell) if backward else 0
    if not launch.alone:
        chunks = -(-H // (16 * launch.num_warps))
        operands = min(chunks * launch.block_b // 4, _OPERANDS)
        return 60 + 2 * values + operations // 3 + operands
    stages = len(cell.stages) - 1
    if backward:
        # Of many vectors and stages, the contributions to each wait to be added.
        waiting = 18 * (max(0, max(cell.source_sizes) - 2) + max(0, stages - 4))
        return 66 + 6 * values + 3 * operations // 5 + 14 * stages + waiting
    return 66 + 11 * values // 2 + 20 * stages + 10 * max(0, values - 9)


@once.per_cell
def _operations(cell: Cell) -> int:
    """The operations of the derivative of a step: a measure of the values between them."""
    nodes = graphs.graph(cell, "step_vjp").graph.nodes
    return sum(node.op == "call_function" for node in nodes)
