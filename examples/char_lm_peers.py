"""Train the model of char_lm.py beside a peer in PyTorch, from the same weights.

    python examples/char_lm_peers.py --cell peephole_lstm --against eager   # a loop over time
    python examples/char_lm_peers.py --cell gru --against torch             # torch.nn.GRU
    python examples/char_lm_peers.py --stop-at 400                          # interrupted, then ...
    python examples/char_lm_peers.py --resume runs/char_lm/checkpoint.pt    # ... continued exactly
    torchrun --nproc-per-node 2 examples/char_lm_peers.py   # data-parallel, on CPUs or GPUs

--against torch trains torch.nn's module of the same cell, --against eager a loop over time in
Python, each from the same weights on the same batches as ours, step by step in turn. Writes
checkpoint.pt and curve.png to --out.
"""

from __future__ import annotations

import argparse
import functools
import gc
import hashlib
import math
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import char_lm  # before torch: it sets the threads' waiting
import matplotlib
import torch
import torch.distributed as dist

# Its functions take the group that exists when it is imported for a default. DDP imports it later:
# then the group, and its threads, would live until the interpreter has shut down.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import fused_rnn
from fused_rnn import cells

# What --against torch trains, by cell.
TORCH = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN}
TORCH["rnn_relu"] = functools.partial(nn.RNN, nonlinearity="relu")
AGAINST = {
    "torch": "torch.nn's {cell} trains beside it for {steps} steps, from the same weights.",
    "eager": "The same {cell} as a loop over time in Python, as one would write it without this "
    "package, trains beside it for {steps} steps, from the same weights.",
}
# The settings in a checkpoint. With others of the first it could not be continued exactly.
FIXED = ("cell", "layers", "hidden", "embedding", "dtype", "batch", "length", "lr", "seed")
FIXED += ("against", "against_steps")
SETTINGS = (*FIXED, "steps", "eval_every", "text", "backend")
PARTS = ("module", "optimizer", "scaler")  # of a learner: what has a state_dict


def main(argv: list[str] | None = None) -> None:
    parser = make_parser()
    args, checkpoint = parse(parser, argv)
    text = read_text(parser, args.text)
    vocabulary = sorted(set(text))
    digest = hashlib.sha256(text.encode()).hexdigest()
    if checkpoint and checkpoint["digest"] != digest:
        parser.error("--resume: the checkpoint is of a run on another text")
    rank, world = join_processes(parser, args)
    try:
        streams, held_streams = char_lm.make_streams(args, text, vocabulary)
        learners = make_learners(args, len(vocabulary), world)
    except ValueError as error:
        parser.error(f"--{error}")
    except RuntimeError as error:
        parser.error(f"--cell, --backend: {error}".partition("\n")[0])
    streams = streams.chunk(world, 1)[rank]
    ours, held_out = learners[0], []  # (steps taken, bits per character)
    if checkpoint:
        held_out = checkpoint["held_out"]
        for learner, saved in zip(learners, checkpoint["learners"], strict=True):
            restore(learner, saved, rank, world)
    start, stop = len(ours.losses), min(args.stop_at or args.steps, args.steps)
    say = functools.partial(tqdm.write, file=sys.stdout) if rank == 0 else lambda line: None
    say(
        f"{args.cell}: {args.layers} × {args.hidden} units, {args.dtype}, backend {args.backend}, "
        f"{world} × {args.device}; {len(text):,} characters of text, {len(vocabulary)} different"
    )
    if args.against:
        say(AGAINST[args.against].format(cell=args.cell, steps=args.against_steps))

    began = time.perf_counter()
    bar = progress_bar(start, stop, disable=rank > 0)
    for step in range(start, stop):
        x, y, fresh = char_lm.window(streams, args.length, step)
        for learner in learners:
            if learner is ours or step < args.against_steps:
                if fresh:
                    learner.state = learner.module.initial_state(x.shape[1])
                timed_step(learner, x, y, char_lm.learning_rate(args, step))
        bar.set_postfix_str(f"{ours.losses[-1]:.2f} bits per character", refresh=False)
        bar.update()
        if (step + 1) % args.eval_every == 0 or step + 1 == stop:
            states = [gather(learner.state, world) for learner in learners]
            if rank == 0:
                bits = char_lm.bits_per_character(ours.module, held_streams)
                held_out.append((step + 1, bits))
                save(args, digest, learners, states, held_out)
                recent = statistics.mean(ours.losses[-args.eval_every :])
                say(
                    f"step {step + 1:>{len(str(stop))}}/{stop}   {speed(args, ours)}   "
                    f"bits per character: {recent:.3f} training, {held_out[-1][1]:.3f} held out"
                )
    bar.close()
    if rank == 0:
        report(args, learners)
        plot(args, learners, held_out)
        print(
            f"{held_out[-1][1]:.3f} bits per character held out after {len(ours.losses)} steps, "
            f"{time.perf_counter() - began:.1f} s; the curve is {args.out / 'curve.png'}"
        )
        if args.sample:
            print(f"\n{char_lm.sample(ours.module, vocabulary, args.sample, args.seed)}")
    if world > 1:
        dist.barrier()  # no process leaves while another may still need it
        learners.clear()  # what still uses the group would outlive it, and its threads with it
        del ours, learner
        gc.collect()
        dist.destroy_process_group()


def make_parser() -> argparse.ArgumentParser:
    parser = char_lm.make_parser(__doc__)
    add = parser.add_argument
    parser.set_defaults(embedding=None, device=None)
    add("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    add("--eval-every", type=int, help="steps between evaluations (default: a tenth of all)")
    add("--stop-at", type=int, help="end after this step of the schedule; --resume continues")
    add("--against", choices=("torch", "eager"), help="train this too, and compare")
    add("--against-steps", type=int, help="default: all for torch, 60 for eager")
    add("--out", type=Path, help="default: runs/char_lm, or the folder of --resume")
    add("--resume", type=Path, metavar="CHECKPOINT", help="continue, with the settings in it")
    return parser


def parse(parser, argv) -> tuple[argparse.Namespace, dict | None]:
    """The arguments and the checkpoint to resume; leaves with a message where they do not fit."""
    args, checkpoint = parser.parse_args(argv), None
    if args.resume:
        checkpoint = load(parser, args.resume)
        parser.set_defaults(**checkpoint["settings"])
        args = parser.parse_args(argv)
        for name in FIXED:
            saved, given = checkpoint["settings"][name], getattr(args, name)
            if given != saved:
                parser.error(f"--resume: the checkpoint was made with {name} {saved}, not {given}")
    check(parser, args)
    if args.against == "torch" and args.cell not in TORCH:
        parser.error(f"--against torch: torch.nn has only {', '.join(TORCH)}; try eager")
    if args.against == "torch" and args.device == "cpu" and args.dtype.endswith("float16"):
        parser.error("--against torch: on CPUs torch.nn has no layers under autocast; try float32")
    args.against_steps = args.against_steps or (60 if args.against == "eager" else args.steps)
    args.out = args.out or (args.resume.parent if args.resume else Path("runs/char_lm"))
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: {error}")
    return args, checkpoint


def check(parser, args) -> None:
    """Fill in the defaults that depend on others; leave with a message where one does not fit."""
    for name, value in vars(args).items():
        least = 0 if name in ("seed", "sample") else 1 if isinstance(value, int) else 1e-9
        if type(value) in (int, float) and not least <= value < math.inf:
            parser.error(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")
    try:
        cell = cells.get(args.cell)
        args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        torch.empty(0, device=args.device)
    except (ValueError, RuntimeError, AssertionError) as error:
        parser.error(f"--{error}".partition("\n")[0])
    args.embedding = args.embedding or (args.hidden if cell.raw_gates else 64)
    args.eval_every = args.eval_every or max(1, args.steps // 10)
    if args.threads:
        torch.set_num_threads(args.threads)


def read_text(parser, path: str | None) -> str:
    try:
        return char_lm.read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        parser.error(f"--text: {error}")


@dataclass
class Peer(char_lm.Learner):
    """One of the models that train in turn, with its losses and times."""

    name: str = ""
    losses: list[float] = field(default_factory=list)  # bits per character
    seconds: list[float] = field(default_factory=list)


def make_learners(args, characters: int, world: int) -> list[Peer]:
    """Ours and, with the same weights, the one that --against names."""
    size = (args.embedding, args.hidden, args.layers)
    layers = {"fused_rnn": char_lm.make_recurrent(args)}
    if args.against == "torch":
        layers["torch.nn"] = TORCH[args.cell](*size)
    elif args.against == "eager":
        layers["eager loop"] = fused_rnn.Recurrent(args.cell, *size, backend="reference")
    learners = []
    for name, recurrent in layers.items():
        like = learners[0].module if learners else None
        learner = Peer(**vars(char_lm.make_learner(args, recurrent, characters, like)), name=name)
        zero = torch.zeros(1, 1, dtype=torch.int64, device=args.device)
        learner.module(zero, learner.module.initial_state(1))  # whether the backend takes the cell
        if world > 1:
            learner.model = DistributedDataParallel(learner.model)
        learners.append(learner)
    return learners


def timed_step(learner: Peer, x: Tensor, y: Tensor, rate: float) -> None:
    began = time.perf_counter()
    bits = char_lm.train_step(learner, x, y, rate)
    if dist.is_initialized():
        dist.all_reduce(bits)
        bits /= dist.get_world_size()
    learner.losses.append(bits.item())  # which waits until a GPU has finished
    learner.seconds.append(time.perf_counter() - began)
    if not math.isfinite(learner.losses[-1]):
        raise SystemExit(f"{learner.name}: the loss is {learner.losses[-1]}; try a smaller --lr")


def join_processes(parser, args) -> tuple[int, int]:
    """Rank and number of processes, as torchrun says in the environment."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if args.batch % world:
        parser.error(f"--batch: expected a multiple of the {world} processes, got {args.batch}")
    if world == 1:
        return 0, 1
    if args.device == "cuda":
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(args.device)
    dist.init_process_group("nccl" if args.device.startswith("cuda") else "gloo")
    return dist.get_rank(), world


def gather(state: list[Tensor], world: int) -> list[Tensor]:
    """The states of all rows, from those of each process."""
    if world == 1:
        return state
    parts = [[torch.empty_like(s) for _ in range(world)] for s in state]
    for part, s in zip(parts, state, strict=True):
        dist.all_gather(part, s.contiguous())
    return [torch.cat(part, 1) for part in parts]


def save(args, digest: str, learners: list[Peer], states, held_out) -> None:
    checkpoint = {"settings": {name: getattr(args, name) for name in SETTINGS}, "digest": digest}
    checkpoint.update(held_out=held_out, learners=[])
    for learner, state in zip(learners, states, strict=True):
        saved = {part: getattr(learner, part).state_dict() for part in PARTS}
        saved.update(state=state, losses=learner.losses, seconds=learner.seconds)
        checkpoint["learners"].append(saved)
    torch.save(checkpoint, args.out / "checkpoint.tmp")
    os.replace(args.out / "checkpoint.tmp", args.out / "checkpoint.pt")  # never half of one


def load(parser, path: Path) -> dict:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if set(checkpoint["settings"]) != set(SETTINGS):
            raise KeyError
    except OSError as error:
        parser.error(f"--resume: {error}")
    except Exception:  # the unpickler raises anything on a file of another kind
        parser.error(f"--resume: not a checkpoint of this program: {path}")
    return checkpoint


def restore(learner: Peer, saved: dict, rank: int, world: int) -> None:
    for part in PARTS:
        getattr(learner, part).load_state_dict(saved[part])
    device = learner.module.head.weight.device
    learner.state = [s.chunk(world, 1)[rank].to(device) for s in saved["state"]]
    learner.losses, learner.seconds = saved["losses"], saved["seconds"]


class Lines:
    """A stream to which a progress bar writes lines, where it cannot overwrite the last one."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self.stream.write(text.strip() + "\n")

    def flush(self) -> None:
        self.stream.flush()


def progress_bar(start: int, stop: int, disable: bool) -> tqdm:
    """A bar with the time left; in a pipe or file, a line with both every five seconds."""
    live = sys.stderr.isatty()
    looks = {} if live else {"file": Lines(sys.stderr), "mininterval": 5, "ncols": 90}
    return tqdm(total=stop, initial=start, disable=disable, leave=False, **looks)


def speed(args, learner: Peer, steps: int | None = None) -> str:
    seconds = statistics.median(learner.seconds[:steps])
    return f"{1e3 * seconds:.1f} ms/step, {args.batch * args.length / seconds:,.0f} characters/s"


def report(args, learners: list[Peer]) -> None:
    """Say in sentences who is faster, and by how much the losses differ."""
    ours, *others = learners
    for other in others:
        both = len(other.losses)  # only these steps of ours were taken in turn with the other's
        ratio = statistics.median(other.seconds) / statistics.median(ours.seconds[:both])
        faster = "above 1: fused_rnn is faster" if ratio > 1 else "not above 1: fused_rnn is slower"
        print(
            f"\nBoth trained the same model for {both} steps, in turn. Medians:\n"
            f"  {ours.name}: {speed(args, ours, both)}\n  {other.name}: {speed(args, other)}\n"
            f"{other.name} needs {ratio:.2f} times the time of {ours.name} ({faster} here)."
        )
        first = min(both, 50)  # training is chaotic: later, rounding grows exponentially
        apart = [abs(a - b) for a, b in zip(ours.losses[:first], other.losses, strict=False)]
        print(
            f"In the first {first} steps their losses differ by at most {max(apart):.1g} bits per "
            "character.\n"
        )


def plot(args, learners: list[Peer], held_out) -> None:
    """The curves and, where there are two models, how long each takes for a step."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "font.size": 10})
    shape = {"ncols": 2, "width_ratios": (4, 1)} if len(learners) > 1 else {}
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained", squeeze=False, **shape)
    curve, colors = axes[0, 0], ("#4c9be8", "#b3261e")
    count, common = len(learners[0].losses), len(learners[-1].losses)
    panels = [(curve, count)]
    if common < count / 2:  # the steps of both, enlarged
        panels.append((curve.inset_axes((0.28, 0.4, 0.36, 0.45)), common))
        panels[1][0].set_title(f"the first {common} steps", fontsize=9)
    for panel, last in panels:
        looks = ({"lw": 3.5 if len(learners) > 1 else 2}, {"lw": 1.3, "ls": (0, (3, 2))})
        for learner, color, look in zip(learners, colors, looks, strict=False):
            bits = smooth(learner.losses, last / 100)[:last]
            label = f"training, {learner.name}" if len(learners) > 1 else "training (smoothed)"
            panel.plot(range(1, len(bits) + 1), bits, color=color, label=label, **look)
        panel.grid(alpha=0.25)
    curve.plot(*zip(*held_out, strict=True), "o-", color="#222222", ms=5, lw=1, label="held out")
    final = held_out[-1]
    curve.annotate(f"{final[1]:.2f}", final, (7, -3), textcoords="offset points")
    curve.set(xlabel="training step", ylabel="bits per character", xlim=(0, 1.06 * count))
    curve.set_title(f"Character model: {args.layers} × {args.hidden} units of {args.cell}")
    curve.legend(frameon=False)
    if len(learners) > 1:
        ms = [1e3 * statistics.median(learner.seconds[:common]) for learner in learners]
        bars = axes[0, 1].bar([learner.name for learner in learners], ms, 0.6, color=colors)
        axes[0, 1].bar_label(bars, fmt="%.1f", padding=2)
        axes[0, 1].set(title="ms per step", yticks=[])
        axes[0, 1].spines["left"].set_visible(False)
    figure.savefig(args.out / "curve.png", dpi=150)
    plt.close(figure)


def smooth(values: list[float], span: float) -> list[float]:
    """Averages over about the last ``span`` values."""
    keep, total, weight, averages = span / (span + 1), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        averages.append(total / weight)
    return averages


if __name__ == "__main__":
    main()
