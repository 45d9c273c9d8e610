"""The time that torch.compile takes for a model with a recurrent layer: ours, and torch.nn's.

    python -m bench.reports.torch_compile_time            # writes bench/results/compile.md
    python -m bench.reports.torch_compile_time --quick    # one row of each, printed

torch.nn's layers are compiled with ``torch._dynamo.config.allow_rnn``, without which they break the
graph. Each row comes from a separate process with cold caches. Its time is from the first call of a
compiled model in training to the end of the first backward.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ..progress import over

RESULTS = Path(__file__).parents[1] / "results" / "compile.md"
LAYERS = {
    "nn.LSTM": "torch.nn.LSTM(64, 64)",
    "fused_rnn.LSTM": "fused_rnn.LSTM(64, 64)",
    "fused_rnn.PeepholeLSTM": "fused_rnn.PeepholeLSTM(64, 64)",
    "fused_rnn.GRU": "fused_rnn.GRU(64, 64)",
}
# (backend of torch.compile, lengths). With torch.nn's longer ones Inductor takes minutes.
SWEEP = (("aot_eager", (10, 20, 40)), ("inductor", (10,)))
BATCH = 8


def measure(layer: str, backend: str, T: int) -> dict:
    """Measure in this process: seconds of the first step, nodes, seconds at other sizes."""
    import torch
    from torch import nn

    import fused_rnn

    torch._dynamo.config.allow_rnn = True
    torch.set_num_threads(1)
    namespace = {"torch": torch, "fused_rnn": fused_rnn}

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(100, 64), nn.Linear(64, 100)
            self.rnn = eval(LAYERS[layer], namespace)

        def forward(self, tokens):
            output, _ = self.rnn(self.embed(tokens))
            return self.head(output).square().mean()

    model = Model()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)

    def step(T, B):
        begin = time.perf_counter()
        compiled(torch.randint(100, (T, B))).backward()
        return time.perf_counter() - begin

    first = step(T, BATCH)
    return {"first": first, "longer": step(T + 3, BATCH + 1)}


def _in_a_process(layer, backend, T) -> dict:
    with tempfile.TemporaryDirectory() as caches:
        environment = os.environ | {
            "TORCHINDUCTOR_CACHE_DIR": caches,
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "TRITON_CACHE_DIR": caches,
        }
        call = f"c.measure{(layer, backend, T)}"
        code = f"import json, bench.reports.torch_compile_time as c; print(json.dumps({call}))"
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            env=environment,
            timeout=1800,
        )
    if done.returncode:
        return {"failed": done.stderr.strip().splitlines()[-1][:120]}
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one row of each, printed")
    args = parser.parse_args()
    import torch

    from ..race import environment

    facts = environment.facts(torch.device("cpu"))
    lines = [
        "# Compile time",
        "",
        "Written by `python -m bench.reports.torch_compile_time`:",
        "an embedding, one layer of 64 units and a",
        "linear layer, `torch.compile(fullgraph=True, dynamic=True)`, training on the CPU. Each",
        "row is a process of its own with cold caches. Seconds of the first step (forward and",
        "backward, with their compilation), and of the next step, which has three steps of time",
        "and one batch row more. `torch.nn`'s layers are compiled with `allow_rnn`.",
        "",
        ", ".join(f"{name} {facts[name]}" for name in ("cpu", "cores", "torch", "load", "date"))
        + ".",
        "",
        "| backend | T | layer | first step, s | next step, s |",
        "| --- | --: | --- | --: | --: |",
    ]
    wanted = [(layer, backend, T) for backend, of in SWEEP for T in of for layer in LAYERS]
    if args.quick:
        wanted = wanted[: len(LAYERS)]
    for layer, backend, T in over(wanted, "torch.compile"):
        found = _in_a_process(layer, backend, T)
        figures = found.get("failed") or f"{found['first']:.1f} | {found['longer']:.3f}"
        lines.append(f"| {backend} | {T} | {layer} | {figures} |")
        print(lines[-1], flush=True)
        if not args.quick:
            RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
