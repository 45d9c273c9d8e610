"""Train a recurrent model in several processes: DDP, FSDP2, and stateful batches.

    torchrun --standalone --nproc-per-node=2 examples/distributed.py ddp
    torchrun --standalone --nproc-per-node=2 examples/distributed.py fsdp
    torchrun --standalone --nproc-per-node=2 examples/distributed.py stateful

The model follows a leaky sum of its input, y = 0.9 y_ + x, that starts again where an episode
begins. ddp and fsdp train on sequences of 20 steps from zero states. stateful has streams that
never end: each process keeps the states of its own rows from one window of 20 steps to the next
(truncated backpropagation through time), and resets begin episodes inside a window.

The processes use gloo and the CPU, or NCCL and a GPU each where there are GPUs. That was run with
two processes on a CPU only.
"""

from __future__ import annotations

import argparse
import gc
import os

import torch
import torch.distributed as dist

# Its functions take the group that exists when it is imported for a default. DDP imports it later:
# then the group, and its threads, would live until the interpreter has shut down.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fused_rnn

ROWS, STEPS = 16, 20


class Follower(nn.Module):
    """A peephole LSTM with a linear head. Takes and returns the states, for windows of a stream."""

    def __init__(self):
        super().__init__()
        self.rnn = fused_rnn.PeepholeLSTM(1, 32)
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor, states=None, reset: Tensor | None = None):
        output, states = self.rnn(x, states, reset=reset)
        return self.head(output), states


class Streams:
    """Windows of endless streams, which begin an episode with a probability of 2 % per step."""

    def __init__(self, rows: int, seed: int, device: torch.device):
        self.generator = torch.Generator().manual_seed(seed)
        self.sum, self.device = torch.zeros(rows, 1), device

    def window(self) -> tuple[Tensor, Tensor, Tensor]:
        """x and y (T, B, 1), and where episodes begin (T, B)."""
        rows = len(self.sum)
        x = torch.randn(STEPS, rows, 1, generator=self.generator) / 2
        reset = torch.rand(STEPS, rows, generator=self.generator) < 0.02
        y = []
        for now, begins in zip(x, reset, strict=True):
            self.sum = torch.where(begins.unsqueeze(-1), 0.0, 0.9 * self.sum) + now
            y.append(self.sum)
        return x.to(self.device), torch.stack(y).to(self.device), reset.to(self.device)

    def restart(self) -> None:
        self.sum = torch.zeros_like(self.sum)


def wrap(kind: str, model: Follower, mesh: DeviceMesh) -> nn.Module:
    """The model as the processes train it."""
    if kind == "fsdp":
        fully_shard(model.rnn, mesh=mesh)  # each layer gathers its parameters when it runs
        return fully_shard(model, mesh=mesh)
    return DistributedDataParallel(model)


def train(kind: str, steps: int, device: torch.device, mesh: DeviceMesh) -> list[float]:
    """Train; returns the losses, which are means over all processes."""
    torch.manual_seed(0)  # the same parameters everywhere
    model = wrap(kind, Follower().to(device), mesh)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    streams = Streams(ROWS, 100 + dist.get_rank(), device)  # other rows in each process
    states, losses = None, []
    for _ in range(steps):
        if kind != "stateful":
            streams.restart()
            states = None
        x, y, reset = streams.window()
        predicted, states = model(x, states, reset)
        loss = (predicted - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        states = tuple(state.detach() for state in states)  # the next window begins here
        mean = loss.detach()
        dist.all_reduce(mean)
        losses.append(mean.item() / dist.get_world_size())
    return losses


def forget_group(mesh: DeviceMesh) -> None:
    """Drop what still uses the group. Its threads may abort an interpreter that they outlive.

    PyTorch remembers how operations on DTensors were sharded, and so FSDP's mesh, which keeps the
    group. It has no public function that forgets either.
    """
    getattr(mesh, "_pg_registry", {}).clear()
    gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=["ddp", "fsdp", "stateful"])
    parser.add_argument("--steps", type=int, default=150)
    args = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    dist.init_process_group("nccl" if on_gpu else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    mesh = dist.init_device_mesh(device.type, (dist.get_world_size(),))
    losses = train(args.kind, args.steps, device, mesh)
    forget_group(mesh)
    if dist.get_rank() == 0:
        last = sum(losses[-10:]) / len(losses[-10:])
        print(f"{args.kind}: loss {losses[0]:.3f} at first, {last:.3f} at last", flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
