"""What fits the kernels with explicit layouts: where their matrices and values lie.

Matrices lie in registers. A program that owns all units may leave some in shared memory, from which
each step reads them. The numbers of registers are counted, not measured: a linear rule, fitted to
what the assembler needed for the built-in cells, see docs/design.md. Where a kernel spills in spite
of it, the next one of ``held_choices`` is compiled.
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
# The most matrices that a kernel which spills gives up.
_MOST_FEWER = 3


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


def held_choices(
    cell: Cell, launch: Launch, H: int, itemsize: int, backward: bool, shared_memory: float
) -> tuple[tuple[int, ...], ...]:
    """``held``, then one matrix fewer each time, as far as the others fit in shared memory."""
    found = [held(cell, launch, H, itemsize, backward)]
    while launch.alone and len(found) <= _MOST_FEWER:
        last = max((s for s, count in enumerate(found[-1]) if count), default=None)
        if last is None:
            break
        fewer = (*found[-1][:last], found[-1][last] - 1, *found[-1][last + 1 :])
        if _bytes(cell, launch, fewer, itemsize, backward) > shared_memory:
            break
        found.append(fewer)
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
    for backward, launch in enumerate((row.blocks, row.blocks.backward())):
        own = held(cell, launch, H, itemsize, bool(backward))
        matrices = _matrices(cell)
        if sum(own) < matrices and not launch.alone:
            return f"{matrices} matrices of {H} units: more than registers hold"
        need = _bytes(cell, launch, own, itemsize, bool(backward))
        if need > shared_memory:
            return f"{matrices - sum(own)} matrices in shared memory: {need // 1024} KiB"
    return None


def _bytes(cell, launch, own, itemsize, backward) -> int:
    """Of shared memory, where these matrices are in registers."""
    block = launch.block_b * launch.block_h * itemsize
    passed = 2 * block * (len(cell.gates) if backward else sum(cell.source_sizes))
    rest = (_matrices(cell) - sum(own)) * launch.block_h**2 * itemsize
    return rest + passed * launch.alone + _SCRATCH


def _matrices(cell) -> int:
    return sum(gates * vectors for gates, vectors in _matrices_of_stages(cell))


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
