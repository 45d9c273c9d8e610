"""Counts, by the simulator, of what the kernels of the core cells read, write and execute.

    python -m bench.reports.counters            # writes bench/results/counters.md

None of the figures is a time. Those per step are differences between two sequence lengths.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"  # the kernels are to be compiled

import torch
import triton

from bench.machine_code.launches import launch_both, planned_for
from fused_rnn import cells, fast_activations, plan
from fused_rnn.cells.graphs import graph
from simulator import simulate
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
SIZES = (("resident", 64), ("resident", 128), ("grid", 256), ("stream", 256), ("step", 256))
CAPABILITY, BATCH, DTYPE = 80, 16, torch.bfloat16


# Goals: warp instructions per step of an LSTM's forward, by (H, whether it saves).
GOALS = {(64, True): 1300, (64, False): 1050, (128, True): 2700, (128, False): 2200}


def count(cell, strategy, H, T, save=True) -> dict[str, Counters]:
    """The counters of a forward and, with ``save``, of its backward, by the kind of kernel."""
    with (
        planned_for(CAPABILITY),
        plan.use_strategy(strategy),
        simulate(CAPABILITY, races=False) as device,
    ):
        launch_both(cell, DTYPE, H, T, BATCH, save)
    totals: dict[str, Counters] = {}
    for name, counters in device.launches:
        kind = "forward" if "forward" in name else "backward"
        totals[kind] = totals.get(kind, Counters()) + counters
    return totals


def least(cell, H, kind, step: Counters) -> int:
    """The fewest bytes that a step can move: each value once, in the dtype of its tensor."""
    size = DTYPE.itemsize
    gates = len(cell.gates) * size
    states = [size if s == cell.stages[0].source[0] else 4 for s in cell.states]
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


def is_planned(cell, strategy, H) -> bool:
    """Whether the weights fit on the chip, for strategies that keep them there."""
    planned = plan.plan(cell, 2, BATCH, H, DTYPE, divmod(CAPABILITY, 10))
    return strategy in ("stream", "step") or planned.forward.strategy == strategy


def row(cell, strategy, H) -> list[str]:
    short, long = count(cell, strategy, H, 2), count(cell, strategy, H, 3)
    weights = len(cell.recurrent_gates) * H * H * DTYPE.itemsize
    rows = []
    for kind in ("forward", "backward"):
        step = long[kind] - short[kind]
        moved = step.spaces["global"]
        per_sequence = long[kind].read_of("weight_ptrs") / weights
        moved = moved.read + moved.written - step.read_of("weight_ptrs")
        special = step["special functions"] + step["divisions"]
        passed = step.read_of("source_ptr") + step.written_of("source_ptr")
        passed += step.read_of("dpre_ptr")
        figures = (moved, passed, least(cell, H, kind, step), step["instructions"])
        figures += (step["barriers"], step["atomics"], step.mma(), special, step["bank conflicts"])
        labels = (cell.name, strategy, H, kind, f"{per_sequence:.2f}")
        numbers = [f"{n:,}" for n in figures]
        rows.append(f"| {' | '.join([*map(str, labels), *numbers])} |")
    return rows


def lstm_rows():
    """Rows of the LSTM with all its weights in one program, in all its forms."""
    for H in (64, 128):
        for fast in (False, True):
            for save in (True, False):
                with fast_activations(fast):
                    short, long = (count(cells.LSTM, "resident", H, T, save) for T in (2, 3))
                for kind in short:
                    step = long[kind] - short[kind]
                    moved = step.spaces["global"]
                    warps = plan.plan(
                        cells.LSTM, 2, BATCH, H, DTYPE, divmod(CAPABILITY, 10)
                    ).forward.num_warps
                    form, saves = "fast" if fast else "half", "yes" if save else "no"
                    bytes_moved = moved.read + moved.written
                    least_ = floor(cells.LSTM, H, kind, form, save, bytes_moved, step.mma(), warps)
                    goal = f"{GOALS[H, save]:,}" if kind == "forward" else "none"
                    yield (
                        f"| {H} | {form} | {saves} | {kind} "
                        f"| {step['instructions']:,} | {goal} | {least_:,} "
                        f"| {step['barriers'] // warps} "
                        f"| {step.mma()} | {step['special functions']} "
                        f"| {bytes_moved:,} |"
                    )


def main() -> None:
    lines = [
        "# What the kernels do, counted",
        "",
        "Written by `python -m bench.reports.counters`:",
        "compiled kernels executed in the simulator, not",
        f"on a GPU. sm_{CAPABILITY}, bfloat16, batch {BATCH}, Triton {triton.__version__}; a",
        "training forward (pre and all states saved) and its backward. Weight reads are of a",
        "sequence of 3 steps, in multiples of the recurrent weights' bytes; all else is per time",
        "step: bytes in global memory without the weights, of these the ones that programs pass to",
        "each other (each program reads all of the source), the least that all can be;",
        "instructions of warps. The atomics are arrivals at the barrier of the grid, one of each",
        "warp per stage and step, of which one warp's has an effect.",
        "",
        "| cell | strategy | H | kernel | weights read, × W | bytes | passed on | least "
        "| instructions | bar.sync | atomics | mma | special functions | bank conflicts |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell in CELLS:
        for strategy, H in SIZES:
            if not is_planned(cell, strategy, H):
                continue
            lines += row(cell, strategy, H)
            print("\n".join(lines[-2:]), flush=True)
            RESULTS.write_text("\n".join(lines) + "\n")
    lines += [
        "",
        "The LSTM, resident, per time step, with and without `fast_activations`, and with and",
        "without what a backward needs; beside the instructions that were aimed at. `bar.sync` is",
        "of one warp. Most of what remains: the activations (five of each unit and row), x and the",
        "gates on their way between layouts of registers, conversions to and from bfloat16.",
        "",
        "| H | activations | saves | kernel | instructions | goal | floor | bar.sync | mma "
        "| special functions | bytes |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *lstm_rows(),
    ]
    RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
