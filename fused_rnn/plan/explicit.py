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
# Bytes of partial sums that have two places; see ``kernels/gpu/explicit/gathered.py``.
_TURNS = 65536
# Registers of the operands that a program gathers: of 16 rows in 16 bits it loads the rest later.
_OPERANDS = 40
# The most matrices that a kernel which spills gives up.
_MOST_FEWER = 3
# Registers by which the assembler for some chips exceeds the rule for TF32 with several products in
# turn; it matters where no matrix can be given up.
_BEYOND = 20


def held(cell: Cell, launch: Launch, H: int, itemsize: int, backward: bool) -> tuple[int, ...]:
    """Per stage, how many matrices are in registers: all, or as many as there is room for.

    Args:
        launch: of the forward, or of the backward.
    """
    size = _registers_of_matrix(launch, H, itemsize)
    left = max(0, _room(cell, launch, H, itemsize, backward) // size)
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
        if shared_bytes(cell, launch, fewer, itemsize, backward) > shared_memory:
            break
        found.append(fewer)
    return tuple(found)


def why_not(cell: Cell, row: Row, H: int, shared_memory: float) -> str | None:
    """The reason why a row of the table does not fit, or None."""
    launch, itemsize = row.blocks, row.itemsize
    if not cell.matrices:
        return "explicit layouts: not for cells without products"
    fixed = {stage.fixed for stage in cell.stages} - {None}
    if "cumsum" in fixed or (fixed and not launch.alone):
        return "explicit layouts: of fixed matrices sums of all units, by a program that owns them"
    if itemsize == 4 and numerics.rnn_precision() != "tf32":
        return "explicit layouts: float32 products are TF32"
    if launch.alone and launch.block_h < H:
        return f"{H} units: more than the {launch.block_h} of a program"
    for backward, launch in enumerate((row.blocks, row.blocks.backward())):
        own = held(cell, launch, H, itemsize, bool(backward))
        matrices = _matrices(cell)
        if sum(own) < matrices and not launch.alone:
            return f"{matrices} matrices of {H} units: more than registers hold"
        need = shared_bytes(cell, launch, own, itemsize, bool(backward))
        if need > shared_memory:
            return f"{matrices - sum(own)} matrices in shared memory: {need // 1024} KiB"
        if itemsize == 4 and launch.alone and any(own) and len(cell.matrices) > 1:
            given = (cell, launch, H, itemsize, bool(backward))
            needed = sum(own) * _registers_of_matrix(launch, H, itemsize) + _BEYOND
            if len(held_choices(*given, shared_memory)) == 1 and needed > _room(*given):
                return f"{sum(own)} matrices in registers: they may spill, and fit nowhere else"
    return None


def shared_bytes(
    cell: Cell, launch: Launch, own: tuple[int, ...], itemsize: int, backward: bool
) -> int:
    """Count the shared memory of a kernel that has these matrices in registers, per stage."""
    block = launch.block_b * launch.block_h
    stages = _matrices_of_stages(cell)
    if not launch.alone:  # partial sums of each warp, in two places if these are small
        sums = max(vectors if backward else gates for gates, vectors in stages)
        place = 4 * block * launch.num_warps * sums
        return (2 * place if 2 * place <= _TURNS else place) + _SCRATCH
    passed = 2 * block * sum(gates if backward else vectors for gates, vectors in stages)
    rest = (_matrices(cell) - sum(own)) * launch.block_h**2
    return (passed + rest) * itemsize + 4 * _floats(cell, launch) + _SCRATCH


def _floats(cell, launch) -> int:
    """The numbers in shared memory that are none of a matrix or of a block: many params, and for
    each row and warp the parts of sums of all units, of which lanes exchange eight each."""
    counts = [len(s.gates) for s in cell.stages if s.fixed in ("mean", "sum")]
    parts = [1 << (count - 1).bit_length() for count in counts]
    sums = (sum(parts) + 8 * max(parts, default=0)) * launch.block_b * launch.num_warps
    return sums + (0 if keeps_params(cell) else len(cell.params)) * launch.block_h


def keeps_params(cell: Cell) -> bool:
    """Whether a thread holds the params; more are read at each use, see ``kernels/gpu/blocks.py``,
    and their gradients summed over pairs of rows."""
    return len(cell.params) <= 4


def _matrices(cell) -> int:
    return sum(gates * vectors for gates, vectors in _matrices_of_stages(cell))


def _matrices_of_stages(cell: Cell) -> list[tuple[int, int]]:
    """Per stage its gates and the vectors of its source; of a fixed matrix none."""
    sizes = iter(cell.matrices)
    return [(0, 0) if stage.fixed else next(sizes) for stage in cell.stages]


def _room(cell: Cell, launch: Launch, H: int, itemsize: int, backward: bool) -> int:
    """The registers of a thread that may hold matrices."""
    most = min(_MOST, _ALL // (32 * launch.num_warps * (launch.per_multiprocessor or 1)))
    return most - _other_registers(cell, launch, H, itemsize, backward)


def _registers_of_matrix(launch: Launch, H: int, itemsize: int) -> int:
    warps = launch.num_warps
    inner = launch.block_h if launch.alone else -(-H // (16 * warps)) * 16 * warps
    return max(1, launch.block_h * inner * itemsize // (128 * warps))


def _other_registers(cell: Cell, launch: Launch, H: int, itemsize: int, backward: bool) -> int:
    """Those of a thread that do not hold matrices."""
    operations = _operations(cell) if backward else 0
    if not launch.alone:
        values = len(cell.gates) + len(cell.states) + len(cell.params) + len(cell.streams)
        chunks = -(-H // (16 * launch.num_warps))
        operands = chunks * launch.block_b * itemsize // 8
        of_thread = -(-launch.block_b * launch.block_h // (32 * launch.num_warps))
        values += 4 * (len(cell.matrices) - 1)  # what a stage leaves to the next ones
        others = (2 * values + operations // 3) * of_thread
        if itemsize == 4:  # it holds a whole block of operands, and more sums in larger blocks
            return 33 + (launch.block_h - 8) * launch.block_b // 8 + others + operands
        return 60 + others + (min(operands, _OPERANDS) if launch.block_b == 16 else operands)
    values, stages = _values(cell, backward), len(cell.matrices) - 1
    if backward:
        # Of many vectors and stages, the contributions to each wait to be added.
        waiting = 18 * (
            max(0, max(vectors for _, vectors in cell.matrices) - 2) + max(0, stages - 4)
        )
        of_operations = 3 * operations // 5 if keeps_params(cell) else operations // 2
        return 66 + 6 * values + of_operations + 14 * stages + waiting
    return 66 + 11 * values // 2 + 20 * stages + 10 * max(0, values - 9)


def _values(cell, backward) -> int:
    """The values of a unit in registers, where a program owns all units.

    A sum of all units is one number per row; the backward reads those of a step side by side.
    """
    sums = sum(len(stage.gates) for stage in cell.stages if stage.fixed in ("mean", "sum"))
    params = len(cell.params) if keeps_params(cell) else len(cell.params) // 3 * backward
    gates = len(cell.gates) - sums + (0 if backward else sums // 3)
    return gates + len(cell.states) + params + len(cell.streams)


@once.per_cell
def _operations(cell: Cell) -> int:
    """The operations of the derivative of a step: a measure of the values between them."""
    nodes = graphs.graph(cell, "step_vjp").graph.nodes
    return sum(node.op == "call_function" for node in nodes)
