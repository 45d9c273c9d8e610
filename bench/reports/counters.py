"""Counts, by the simulator, of what the kernels of some cells read, write and execute.

    python -m bench.reports.counters            # writes bench/results/counters.md

None of the figures is a time. Those per step are differences between two sequence lengths.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"  # the kernels are to be compiled

import torch
import triton

from bench.machine_code.clocked import BATCH, DTYPE, clocked
from bench.progress import over
from fused_rnn import cells, fast_activations, plan
from fused_rnn.cells.graphs import graph
from fused_rnn.numerics import state_dtypes
from fused_rnn.plan import chips, cost
from simulator.counters import Counters

RESULTS = Path(__file__).parents[1] / "results" / "counters.md"
CELLS = (
    cells.RNN_TANH,
    cells.LSTM,
    cells.PEEPHOLE_LSTM,
    cells.CIFG_LSTM,
    cells.GRU,
    cells.GRU_RESET_BEFORE,
)
# Of the literature: several vectors of a source, many gates, derived states, norms, no product.
OTHERS = ("peephole_lstm_full", "fgr_lstm", "slstm", "layer_norm_lstm", "min_gru")
SIZES_OF_OTHERS = (("resident", 64), ("grid", 256), ("scan", 256))
# Cells with heads: a head is a direction of the launch, with its own block of each matrix.
HEADS = (("slstm", "resident", 128, 2), ("slstm", "resident", 256, 4), ("slstm", "grid", 256, 2))
SIZES = (("resident", 64), ("resident", 128), ("grid", 256), ("stream", 256), ("step", 256))
CAPABILITY = 80


# Goals: warp instructions per step of an LSTM's forward, by (H, whether it saves).
GOALS = {(64, True): 1300, (64, False): 1050, (128, True): 2700, (128, False): 2200}


@dataclass(frozen=True)
class Counted:
    """What the kernels of one kind do in a step.

    Args:
        step: counters of a step.
        sequence: of 3 steps, or 4.
        machine_code, special: instructions of the machine code, and of these ``MUFU``.
        warps: of a program.
        programs: of the launch.
        tiles: of the batch, each of which reads the weights.
    """

    step: Counters
    sequence: Counters
    machine_code: float
    special: float
    warps: int
    programs: int
    tiles: int


def count(cell, strategy, H, kinds, heads=1) -> dict[str, Counted]:
    """Compile and execute kernels: by their kind, see ``Clocked``."""
    with plan.use_strategy(strategy):
        found = list(clocked(cell, H, CAPABILITY, kinds=kinds, heads=heads))
    return {
        kind: Counted(
            sum((k.executed for k in found if k.kind == kind), Counters()),
            next(k.sequence for k in found if k.kind == kind),
            sum(k.l2.instructions * k.programs for k in found if k.kind == kind),
            sum(k.l2.special_functions * k.programs for k in found if k.kind == kind),
            next(k.warps for k in found if k.kind == kind),
            next(k.programs for k in found if k.kind == kind),
            next(k.compiled.grid[0] for k in found if k.kind == kind),
        )
        for kind in kinds
    }


def least(cell, H, kind, step: Counters) -> int:
    """The fewest bytes that a step can move: each value once, in the dtype of its tensor."""
    size = DTYPE.itemsize
    gates = len(cell.gates) * size
    states = [dtype.itemsize for dtype in state_dtypes(cell, DTYPE)]
    if kind == "forward":  # x in; pre and the states out
        each = len(cell.x_gates) * size + gates + sum(states)
    else:  # pre, the states that the derivative needs, and dh in; dpre out
        read = [step.read_of(f"sequence_ptrs.{i}") > 0 for i in range(len(states))]
        needed = [n for n, is_read in zip(states, read, strict=True) if is_read]
        each = 2 * gates + size + sum(needed)
    return BATCH * H * each


# Instructions of (sigmoid, tanh). A sigmoid is a product, ex2, a sum and rcp; a tanh takes one
# more. The fast ones are tanh.approx, and two more instructions for a sigmoid.
ACTIVATIONS = {"half": (4, 5), "fast": (3, 1)}


def floor(cell, H, kind, form, saves, moved: int, mma: int, warps: int) -> int:
    """The fewest warp instructions for a step of a resident program.

    They are its activations; its products, each fused with a sum; the conversions of bfloat16
    values, one to read a value and one to write two; the tensor cores' instructions, and a load of
    weights for every two of these; the source's way to the tensor cores through shared memory; and
    accesses to global memory of 16 bytes per lane. Addresses, the loop, barriers and changes of
    layout are left out.
    """
    part = "step" if kind == "forward" else "step_vjp"
    nodes = graph(cell, part, 0, True).graph.find_nodes
    ops = (torch.ops.aten.sigmoid.default, torch.ops.aten.tanh.default, torch.ops.aten.mul.Tensor)
    sigmoids, tanhs, products = (len(nodes(op="call_function", target=op)) for op in ops)
    of_sigmoid, of_tanh = ACTIVATIONS[form]
    gates, read = len(cell.recurrent_gates), len(cell.x_gates)
    stored = 1 + gates * saves  # h; pre
    if kind == "backward":
        read, stored = gates + 1, gates
    blocks = BATCH * H // 32  # warp instructions for one value of each unit and row
    pointwise = sigmoids * of_sigmoid + tanhs * of_tanh + products
    each = blocks * (pointwise + read + stored / 2)
    inner = H if kind == "forward" else gates * H
    source = inner * BATCH * DTYPE.itemsize // 512 + warps * inner // 16
    return int(each) + mma + mma // 2 + source + moved // 512


def is_planned(cell, strategy, H, heads=1) -> bool:
    """Whether the cell has the strategy and its weights fit on the chip."""
    if strategy not in plan.strategies(cell):
        return False
    size = (BATCH, H // heads, heads, DTYPE, chips.chip(divmod(CAPABILITY, 10)))
    return plan.quickest(cell, strategy, *size)[0] is not None


def row(cell, strategy, H, heads=1) -> list[str]:
    weights = max(1, cost.squares(cell) * H * H // heads * DTYPE.itemsize)
    name, rows = cell.name if heads == 1 else f"{cell.name}, {heads} heads", []
    for kind, counted in count(cell, strategy, H, ("forward", "backward"), heads).items():
        step = counted.step
        moved = step.spaces["global"]
        per_sequence = counted.sequence.read_of("weight_ptrs") / weights / counted.tiles
        moved = moved.read + moved.written - step.read_of("weight_ptrs")
        passed = step.read_of("source_ptr") + step.written_of("source_ptr")
        passed += step.read_of("dpre_ptr")
        passed += step.read_of("passed_ptr") + step.written_of("passed_ptr")
        figures = (moved, passed, least(cell, H, kind, step), step["global sectors"])
        figures += (step["instructions"], counted.machine_code, step["barriers"], step["atomics"])
        figures += (step.mma(), counted.special, step["shared wavefronts"], step["bank conflicts"])
        labels = (name, strategy, H, kind, f"{per_sequence:.2f}")
        numbers = [f"{n:,.0f}" for n in figures]
        rows.append(f"| {' | '.join([*map(str, labels), *numbers])} |")
    return rows


def lstm_rows():
    """Rows of the LSTM with all its weights in one program, in all its forms."""
    for H in (64, 128):
        for fast in (False, True):
            with fast_activations(fast):
                found = count(cells.LSTM, "resident", H, ("forward", "backward", "inference"))
            for kind, counted in found.items():
                step, warps = counted.step, counted.warps
                moved = step.spaces["global"]
                save, of = kind != "inference", "backward" if kind == "backward" else "forward"
                form = "fast" if fast else "half"
                bytes_moved = moved.read + moved.written
                least_ = floor(cells.LSTM, H, of, form, save, bytes_moved, step.mma(), warps)
                goal = f"{GOALS[H, save]:,}" if of == "forward" else "none"
                yield (
                    f"| {H} | {form} | {kind} | {step['instructions']:,} "
                    f"| {counted.machine_code:,.0f} | {goal} | {least_:,} "
                    f"| {step['barriers'] // warps} | {step.mma()} | {counted.special:,.0f} "
                    f"| {step['shared wavefronts']:,} | {bytes_moved:,} |"
                )


def main() -> None:
    lines = [
        "# What the kernels do, counted",
        "",
        "Written by `python -m bench.reports.counters`:",
        "compiled kernels executed in the simulator, not",
        f"on a GPU. sm_{CAPABILITY}, bfloat16, batch {BATCH}, Triton {triton.__version__}; a",
        "training forward (pre and all states saved) and its backward. Weight reads are of a",
        "sequence and a batch tile, in multiples of the recurrent weights' bytes; all else is per",
        "time",
        "step: bytes in global memory without the weights, of these the ones that programs pass to",
        "each other (each program reads all of the source), the least that all can be;",
        "sectors of 32 bytes; instructions of warps, of the PTX as executed and of the loop in the",
        "machine code, with its special functions (MUFU); cycles of shared memory (wavefronts).",
        "The atomics are arrivals at the barrier of the grid, one of each warp per stage and step,",
        "of which one warp's has an effect. Programs with explicit layouts poll for values.",
        "",
        "| cell | strategy | H | kernel | weights read, × W | bytes | passed on | least | sectors "
        "| PTX | machine code | bar.sync | atomics | mma | MUFU | wavefronts | bank conflicts |",
        f"| {' | '.join(['---'] * 17)} |",
    ]
    wanted = [(cell, *size) for cell, size in itertools.product(CELLS, SIZES)]
    others = itertools.product(map(cells.get, OTHERS), SIZES_OF_OTHERS)
    wanted += [(cell, *size) for cell, size in others]
    wanted += [(cells.get(name), *size) for name, *size in HEADS]
    for cell, *size in over(wanted, "counters"):
        if is_planned(cell, *size):
            lines += row(cell, *size)
            print("\n".join(lines[-2:]), flush=True)
            RESULTS.write_text("\n".join(lines) + "\n")
    lines += [
        "",
        "The LSTM, resident, per time step, with and without `fast_activations`; `inference` is a",
        "forward without what a backward needs. Beside the instructions that were aimed at, as PTX",
        "executes them. `bar.sync` is of one warp. Most of what remains: the activations (five of",
        "each unit and row), x and the gates on their way between layouts of registers,",
        "conversions to and from bfloat16.",
        "",
        "| H | activations | kernel | PTX | machine code | goal | floor | bar.sync | mma | MUFU "
        "| wavefronts | bytes |",
        f"| {' | '.join(['---'] * 12)} |",
        *lstm_rows(),
    ]
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
