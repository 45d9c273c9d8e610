"""The stages of a session with a GPU: what each runs, for how long, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
OUT = "{out}"  # in a command: the folder of the stage


@dataclass(frozen=True)
class Stage:
    """
    Attributes:
        name: of its folder and of its section in the report.
        what: it shows, in a sentence.
        command: after ``python -m``, on a GPU.
        dry: the same, where there is none: tiny, by the interpreter, the simulator or the CPU.
        seconds: after which it is ended. What it has written until then stays.
        dry_environment: of the dry command.
    """

    name: str
    what: str
    command: Sequence[str]
    dry: Sequence[str]
    seconds: int
    dry_environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Done:
    """What became of a stage.

    Attributes:
        status: "passed", "failed" (its exit status is not 0), or "out of time".
        files: that it wrote, besides ``log.txt`` with what it printed.
    """

    stage: Stage
    command: str
    status: str
    seconds: float
    log: str
    files: list[str]


INTERPRETED = {"TRITON_INTERPRET": "1"}
SELF_CHECKED = ("lstm", "gru", "gru_reset_before", "peephole_lstm")
STAGES = (
    Stage(
        "self-check",
        "Every strategy of the kernels agrees with the float64 reference on a small problem.",
        ("fused_rnn.doctor", "--cells", *SELF_CHECKED, "--json", f"{OUT}/doctor.json"),
        ("fused_rnn.doctor", "--cells", "rnn_tanh", "--dtypes", "float32", "--json",
         f"{OUT}/doctor.json"),
        90,
        INTERPRETED,
    ),
    Stage(
        "tests",
        "The tests that need a GPU pass.",
        ("pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", "--junitxml", f"{OUT}/tests.xml"),
        ("pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "tests/kernels/test_kernels.py",
         "-k", "test_empty_batch", "--junitxml", f"{OUT}/tests.xml"),
        120,
    ),
    Stage(
        "tuning",
        "The launches of the core cells, timed on this machine; \"auto\" uses them from here on.",
        ("bench.tune", "--minutes", "1.5", "--cells", "lstm", "gru", "--dtypes", "bfloat16",
         "--directions", "1", "--sizes", "512x16x128,512x16x512,512x64x1024", "--rounds", "5"),
        ("bench.tune", "--offline", "--check", "--capability", "90", "--cells", "rnn_tanh",
         "--hidden", "32", "--dtypes", "bfloat16", "--minutes", "1", "--out",
         f"{OUT}/chips.json"),
        110,
    ),
    Stage(
        "workloads",
        "What people run recurrent layers for, beside what they run today.",
        ("bench.workloads", "--seconds", "0.5", "--out", OUT),
        ("bench.workloads", "--quick", "--threads", "1", "--device", "cpu", "--out", OUT,
         "separation"),
        130,
    ),
    Stage(
        "peers",
        "Every backend and every strategy beside torch.nn (cuDNN) and an eager loop.",
        ("bench", "--cells", "lstm,gru,peephole_lstm", "--dtype", "bf16", "--rounds", "5",
         "--sizes", "512x16x128,512x16x512,512x64x1024", "--out", OUT),
        ("bench", "--quick", "--device", "cpu", "--threads", "1", "--cells", "lstm", "--sizes",
         "tiny", "--rounds", "2", "--out", OUT),
        90,
    ),
    Stage(
        "clock",
        "The clock of the machine code, a model, beside what the race measured of the kernels.",
        ("bench.gpu.clock", "--race", f"{OUT}/../peers", "--seconds", "50", "--out", OUT),
        ("bench.gpu.clock", "--layers", "lstm:16x32", "--seconds", "50", "--out", OUT),
        60,
    ),
)  # fmt: skip


def run(stage: Stage, folder: Path, dry: bool) -> Done:
    """Run a stage; its files are in a folder of its own in ``folder``."""
    out = folder / stage.name
    out.mkdir(parents=True, exist_ok=True)
    given = [part.replace(OUT, str(out)) for part in (stage.dry if dry else stage.command)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if dry:
        environment |= stage.dry_environment
    log, begin = out / "log.txt", time.monotonic()
    with log.open("wb") as file:
        # A group of its own, so that the workers of what is late end with it.
        process = subprocess.Popen(
            [sys.executable, "-m", *given], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = "failed" if process.wait(stage.seconds) else "passed"
        except subprocess.TimeoutExpired:
            status = "out of time"
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    shown = " ".join(stage.dry if dry else stage.command).replace(OUT, stage.name)
    files = sorted(str(p.relative_to(folder)) for p in out.rglob("*") if p.is_file() and p != log)
    seconds = time.monotonic() - begin
    text = log.read_text(encoding="utf-8", errors="replace")
    return Done(stage, f"python -m {shown}", status, seconds, text, files)
