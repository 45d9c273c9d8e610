"""``python -m fused_rnn.doctor``: run every kernel on this machine, and say what to report."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
import time
from pathlib import Path

import torch

from . import cells, context, machine, numerics, plan
from .kernels.cpu import compiler
from .nn import recurrent
from .self_check import trial

# The cells of torch.nn, and those next to them.
CORE = ("rnn_tanh", "rnn_relu", "lstm", "peephole_lstm", "cifg_lstm", "gru", "gru_reset_before")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COLUMNS = (
    ("cell", "cell"),
    ("dtype", "dtype"),
    ("strategy", "strategy"),
    ("plan", "plan"),
    ("shared", "shared bytes"),
    ("error", "error / eager's"),
    ("verdict", "verdict"),
    ("us_per_step", "us/step"),
    ("cudnn_us_per_step", "cuDNN us/step"),
)

EVERY = 5.0  # seconds between two lines that say how much is left

# Of the problem that is timed.
STEPS, BATCH, INPUT, HIDDEN = 64, 16, 128, 128


def main(argv: list[str] | None = None) -> int:
    """Print a table, and write it as JSON.

    Returns:
        The exit status: 1 if any kernel disagrees with the reference, else 0.
    """
    options = _options(argv)
    device, why_not = find_device()
    facts = environment(device)
    for name, value in facts.items():
        print(f"{name:>12}  {value}")
    if why_not:
        print(f"\n{why_not}")
    rows = []
    if device is not None:
        print("\n" + "  ".join(title.ljust(WIDTHS[key]) for key, title in COLUMNS))
        kinds = [
            (cell, DTYPES[dtype], strategy)
            for cell in map(cells.get, options.cells)
            for dtype in options.dtypes
            for strategy in plan.strategies(cell)
        ]
        began = shown = time.monotonic()
        for done, kind in enumerate(kinds, 1):
            rows.append(examine(*kind, device))
            print(_line(rows[-1]), flush=True)
            now = time.monotonic()
            if now - shown >= EVERY and done < len(kinds):
                shown, left = now, (now - began) / done * (len(kinds) - done)
                said = f"{done} of {len(kinds)}, {now - began:.0f} s, {left:.0f} s to go"
                print(said, file=sys.stderr, flush=True)
    bad = [row for row in rows if row["verdict"] == "disagrees"]
    for row in bad:
        print(f"\n{row['cell']}, {row['dtype']}, {row['strategy']}: {row['reason']}")
    for reason in dict.fromkeys(row["reason"] for row in rows if row["verdict"] == "skipped"):
        print(f"\nskipped: {reason}")
    if rows:
        agree = sum(row["verdict"] == "agrees" for row in rows)
        print(f"\n{agree} agree, {len(bad)} disagree, {len(rows) - agree - len(bad)} skipped")
    if options.json:
        report = {"environment": facts, "no_kernels": why_not, "rows": rows}
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
        print(f"Wrote {options.json}; attach it to a report.")
    return int(bool(bad))


WIDTHS = {key: max(len(title), 9) for key, title in COLUMNS} | {"cell": 16, "plan": 24}


def _options(argv):
    parser = argparse.ArgumentParser(
        prog="python -m fused_rnn.doctor",
        description="Run every Triton kernel on this machine, and print what a bug report needs.",
    )
    parser.add_argument("--json", metavar="FILE", help="write the table here, for a report")
    names = ", ".join(cells.names())
    parser.add_argument(
        "--cells",
        nargs="+",
        choices=cells.names(),
        default=CORE,
        metavar="CELL",
        help=f"of {names} (default: {', '.join(CORE)})",
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        default=tuple(DTYPES),
        metavar="DTYPE",
        help=f"of {', '.join(DTYPES)} (default: all)",
    )
    return parser.parse_args(argv)


def find_device() -> tuple[torch.device | None, str]:
    """Where kernels can run, and what to say where that is not a GPU."""
    if not context.triton_installed():
        return None, "Triton is not installed: there are no kernels to check."
    if torch.cuda.is_available() and not context.interpreted():
        return torch.device("cuda", torch.cuda.current_device()), ""
    if context.interpreted():
        why = "The kernels run in Triton's interpreter (TRITON_INTERPRET=1), which says nothing"
        return torch.device("cpu"), f"{why} about a GPU."
    return None, (
        "There is no CUDA device, so no Triton kernel was checked. On CPU tensors the C++ engine\n"
        "runs, if there is a compiler above. TRITON_INTERPRET=1 in the environment checks the\n"
        "Triton kernels in Triton's interpreter instead; this takes minutes."
    )


def environment(device: torch.device | None) -> dict[str, str]:
    """Versions, the C++ compiler and the device."""
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    facts |= machine.versions()
    found = compiler.find()
    about = found and f"{found.command}: {next(iter(found.version.splitlines()), '')}"
    facts["compiler"] = about or "none that works"
    if device is not None and device.type == "cuda":
        facts |= machine.device_facts(device) or {}
        facts["cudnn"] = str(torch.backends.cudnn.version())
        facts["products"] = numerics.rnn_precision() + " in float32"
    else:
        facts["gpu"] = "none"
    return facts


def examine(cell: cells.Cell, dtype: torch.dtype, strategy: str, device: torch.device) -> dict:
    """One row: the small problem of the self-check, and on a GPU the time of a larger one."""
    row = dict.fromkeys(key for key, _ in COLUMNS)
    row |= {"cell": cell.name, "dtype": str(dtype).removeprefix("torch."), "strategy": strategy}
    row |= {"verdict": "skipped", "reason": ""}
    if device.type == "cpu" and strategy in ("grid", "stream"):
        why = "programs wait for each other, but Triton's interpreter runs one after the other"
        return row | {"reason": f"{strategy}: {why}"}
    size, planned = trial.fitting(cell, strategy, dtype, device)
    if planned is None:
        return row | {"reason": f"{strategy}: does not fit this device for some cells or dtypes"}
    row["plan"] = _describe(planned.forward)
    with _watched_launches() as shared:
        outcome = trial.attempt(cell, strategy, dtype, device)
    row |= {"shared": max(shared, default=None), "error": outcome.error, "hidden": size.H}
    row |= {"verdict": "agrees" if outcome.agrees else "disagrees", "reason": outcome.reason}
    if outcome.agrees and device.type == "cuda":
        row |= _times(cell, dtype, strategy, device)
    return row


def _describe(launch) -> str:
    blocks = f"{launch.block_b}x{launch.block_h}x{launch.block_k}"
    return f"{blocks} warps {launch.num_warps} own {launch.own}"


@contextlib.contextmanager
def _watched_launches():
    """Inside, the bytes of shared memory of each kernel that is launched, where they are known."""
    from .kernels.gpu import launch

    right, shared = launch.start, []

    def watch(kernel, grid, arguments, constants):
        def run(*arguments, **constants):
            compiled = kernel[grid](*arguments, **constants)
            used = getattr(getattr(compiled, "metadata", None), "shared", None)
            if used is not None:
                shared.append(used)

        right({grid: run}, grid, arguments, constants)

    launch.start = watch
    try:
        yield shared
    finally:
        launch.start = right


def _times(cell, dtype, strategy, device) -> dict:
    """Microseconds per step of a training step, ours and, where torch.nn has the cell, cuDNN's."""
    rivals = {
        "rnn_tanh": torch.nn.RNN,
        "rnn_relu": lambda *sizes, **kw: torch.nn.RNN(*sizes, nonlinearity="relu", **kw),
        "lstm": torch.nn.LSTM,
        "gru": torch.nn.GRU,
    }
    options = {"dtype": dtype, "device": device}
    times = {}
    try:
        ours = recurrent.Recurrent(cell, INPUT, HIDDEN, backend="triton", **options)
        with plan.use_strategy(strategy):
            times["us_per_step"] = _time(ours, options)
        if cell.name in rivals:
            times["cudnn_us_per_step"] = _time(rivals[cell.name](INPUT, HIDDEN, **options), options)
    except (RuntimeError, ValueError) as error:
        # The strategy does not fit with this number of units, the problem is too large, or the cell
        # has streams, which modules do not take.
        times["not_timed"] = str(error).split("\n")[0]
    return times


def _time(module, options, repeats=20) -> float:
    """The median over ``repeats`` of forward and backward, in microseconds per time step."""
    x = torch.randn(STEPS, BATCH, INPUT, **options, requires_grad=True)
    grad = torch.randn(STEPS, BATCH, HIDDEN, **options)
    inputs = [x, *module.parameters()]
    times = []
    for _ in range(repeats + 3):  # three to compile and to warm up
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        torch.autograd.grad(module(x)[0], inputs, grad)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times[3:])[repeats // 2] * 1000 / STEPS


def _line(row) -> str:
    def text(value):
        return "-" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)

    return "  ".join(text(row[key]).ljust(WIDTHS[key]) for key, _ in COLUMNS).rstrip()


if __name__ == "__main__":
    os.environ["FUSED_RNN_SELF_CHECK"] = "0"  # this is the check
    status = main()
    sys.stdout.flush()
    if trial.stuck():
        os._exit(status)  # the interpreter's own exit would wait for kernels that never end
    sys.exit(status)
