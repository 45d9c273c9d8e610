"""Train a character language model with any recurrent cell.

    python examples/char_lm.py                              # an LSTM, about a minute on two cores
    python examples/char_lm.py --cell gru_reset_before --text FILE

The model is embedding → fused_rnn.Recurrent → linear. The text is read as B parallel streams: each
step trains on the next T characters of all of them and hands its states on to the next step
(truncated backpropagation through time). --dtype bfloat16 and float16 run the recurrent layers
under torch.autocast, keep the parameters in float32 and, for float16, scale the loss.

char_lm_peers.py adds a comparison with PyTorch's layers, checkpoints, processes and a plot.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path

# Idle threads give their core away: on a busy machine that is ten times as fast.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from torch.nn import functional

import fused_rnn
from fused_rnn import cells


def main(argv: list[str] | None = None) -> None:
    args = make_parser(__doc__).parse_args(argv)
    text = read_text(args.text)
    vocabulary = sorted(set(text))
    streams, held_out = make_streams(args, text, vocabulary)
    learner = make_learner(args, make_recurrent(args), len(vocabulary))

    losses, began = [], time.perf_counter()
    for step in range(args.steps):
        x, y, fresh = window(streams, args.length, step)
        if fresh:
            learner.state = learner.module.initial_state(args.batch)
        losses.append(train_step(learner, x, y, learning_rate(args, step)).item())
        if (step + 1) % max(1, args.steps // 10) == 0:
            spent = time.perf_counter() - began
            left = spent / (step + 1) * (args.steps - step - 1)
            print(
                f"step {step + 1}/{args.steps}, {spent:.0f} s, {left:.0f} s to go: "
                f"{statistics.mean(losses[-args.steps // 10 :]):.3f} bits per character in "
                f"training, {bits_per_character(learner.module, held_out):.3f} held out"
            )
    if args.sample:
        print(f"\n{sample(learner.module, vocabulary, args.sample, args.seed)}")


def make_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    names = ", ".join(cells.names())
    add("--cell", default="lstm", metavar="NAME", help=f"{names}, peephole_lstm_io, ...")
    add("--layers", type=int, default=1, help="recurrent layers (default %(default)s)")
    add("--hidden", type=int, default=256, help="their units (default %(default)s)")
    add("--embedding", type=int, default=64, help="values per character (default %(default)s)")
    add("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "float64"))
    add("--backend", default="auto", metavar="NAME", help="see fused_rnn.use_backend")
    add("--compile", action="store_true", help="torch.compile the model")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="default: cuda if there is one, else cpu")
    add("--text", metavar="FILE", help="in UTF-8 (default: the help topics of Python itself)")
    add("--steps", type=int, default=1500, help="the whole schedule (default %(default)s)")
    add("--batch", type=int, default=24, help="B, of all processes (default %(default)s)")
    add("--length", type=int, default=24, help="T, of a step (default %(default)s)")
    add("--lr", type=float, default=0.01, help="highest learning rate (default %(default)s)")
    add("--seed", type=int, default=0, help="of first weights and sample (default %(default)s)")
    add("--sample", type=int, default=400, help="characters to generate (default %(default)s)")
    return parser


def read_text(path: str | None) -> str:
    if path is None:
        from pydoc_data import topics

        return "\n".join(topics.topics.values())
    return Path(path).read_text("utf-8")


def make_streams(args, text: str, vocabulary: list[str]) -> tuple[Tensor, Tensor]:
    """Nine tenths of the text, to train on, (N, B); and the rest, at most 100,000 characters."""
    number = {character: i for i, character in enumerate(vocabulary)}
    codes = torch.tensor([number[character] for character in text], device=args.device)
    end = len(codes) * 9 // 10
    if end <= args.batch * args.length:
        raise ValueError(
            f"text: {len(codes)} characters are too few, --batch {args.batch} and --length "
            f"{args.length} take {args.batch * args.length * 10 // 9 + 2}"
        )
    held = codes[end : end + 100_000]
    return fold(codes[:end], args.batch), fold(held, max(1, min(32, len(held) // 100)))


def fold(codes: Tensor, rows: int) -> Tensor:
    """One sequence as parallel streams (N, rows); each ends with the first of the next."""
    length = (len(codes) - 1) // rows
    return torch.stack([codes[r * length : (r + 1) * length + 1] for r in range(rows)], 1)


def window(streams: Tensor, length: int, step: int) -> tuple[Tensor, Tensor, bool]:
    """Characters (T, B), those that follow them, and whether the streams begin (again) here."""
    begin = step % ((len(streams) - 1) // length) * length
    x, y = streams[begin : begin + length], streams[begin + 1 : begin + length + 1]
    return x, y, begin == 0


class CharModel(nn.Module):
    """Embedding, recurrent layers (in ``dtype``) and linear."""

    def __init__(self, characters, embedding, recurrent, states, dtype):
        super().__init__()
        self.embedding = nn.Embedding(characters, embedding)
        self.recurrent = recurrent
        self.head = nn.Linear(recurrent.hidden_size, characters)
        self.states, self.dtype = states, dtype

    def initial_state(self, rows: int) -> list[Tensor]:
        shape = (self.recurrent.num_layers, rows, self.recurrent.hidden_size)
        return [self.head.weight.new_zeros(shape) for _ in range(self.states)]

    def forward(self, characters: Tensor, state: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        x = self.embedding(characters)
        hx = state[0] if len(state) == 1 else tuple(state)
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype.itemsize == 2):
            output, hn = self.recurrent(x, hx)
        hn = [hn] if isinstance(hn, Tensor) else hn
        return self.head(output.to(x.dtype)), [s.to(x.dtype) for s in hn]


@dataclass
class Learner:
    """A model in training."""

    module: CharModel
    model: nn.Module  # what a step calls: the module, maybe compiled and data-parallel
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    state: list[Tensor] = field(default_factory=list)  # after the last step


def make_recurrent(args) -> fused_rnn.Recurrent:
    torch.manual_seed(args.seed)
    size = (args.embedding, args.hidden, args.layers)
    recurrent = fused_rnn.Recurrent(args.cell, *size, backend=args.backend)
    for name, parameter in recurrent.named_parameters():
        if name.startswith("weight_hh"):  # orthogonal, gate by gate: the first steps learn faster
            for block in parameter.detach().split(args.hidden):
                nn.init.orthogonal_(block)
    return recurrent


def make_learner(args, recurrent: nn.Module, characters: int, like=None) -> Learner:
    """A model around recurrent layers; with the weights of the module ``like``, if given."""
    dtype, states = getattr(torch, args.dtype), len(cells.get(args.cell).states)
    module = CharModel(characters, args.embedding, recurrent, states, dtype)
    if like is not None:
        module.load_state_dict(like.state_dict())
    module.to(args.device, torch.promote_types(dtype, torch.float32))
    model = torch.compile(module) if args.compile and like is None else module
    optimizer = torch.optim.Adam(module.parameters(), betas=(0.9, 0.99))
    scaler = torch.amp.GradScaler(args.device.split(":")[0], enabled=dtype == torch.float16)
    return Learner(module, model, optimizer, scaler)


def learning_rate(args, step: int) -> float:
    """Up in the first 25th of the steps, then down along a cosine to almost nothing."""
    warm = max(1, args.steps // 25)
    if step < warm:
        return args.lr * (step + 1) / warm
    return args.lr * (0.505 + 0.495 * math.cos(math.pi * (step - warm) / (args.steps - warm)))


def train_step(learner: Learner, x: Tensor, y: Tensor, rate: float) -> Tensor:
    """One step of Adam; returns the loss in bits per character."""
    for group in learner.optimizer.param_groups:
        group["lr"] = rate
    logits, state = learner.model(x, learner.state)
    loss = functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    learner.optimizer.zero_grad()
    learner.scaler.scale(loss).backward()
    learner.scaler.unscale_(learner.optimizer)
    nn.utils.clip_grad_norm_(learner.module.parameters(), 1.0)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.state = [s.detach() for s in state]
    return loss.detach() / math.log(2)


@torch.no_grad()
def bits_per_character(module: CharModel, streams: Tensor) -> float:
    state, total = module.initial_state(streams.shape[1]), 0.0
    for x, y in zip(streams[:-1].split(256), streams[1:].split(256), strict=True):
        logits, state = module(x, state)
        total += functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum").item()
    return total / streams[1:].numel() / math.log(2)


@torch.no_grad()
def sample(module: CharModel, vocabulary: list[str], count: int, seed: int) -> str:
    generator = torch.Generator().manual_seed(seed)
    code = vocabulary.index("\n") if "\n" in vocabulary else 0
    state, text = module.initial_state(1), ""
    for _ in range(count):
        logits, state = module(torch.tensor([[code]], device=state[0].device), state)
        weights = torch.softmax(logits[0, 0].double().cpu() / 0.7, 0)  # sharper than learned
        code = torch.multinomial(weights, 1, generator=generator).item()
        text += vocabulary[code]
    return text


if __name__ == "__main__":
    main()
