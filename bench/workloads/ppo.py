"""Recurrent PPO: rollouts of many environments, in which episodes end inside the rows.

The sizes are those of torchrl's benchmark of resets, (B, T, I, H) = (256, 128, 32, 512) with 3 % of
resets, and of rsl_rl's recurrent policies: 16,384 environments, 32 steps, 256 units, LSTM or GRU.
Three ways to treat resets are in use: rsl_rl and torchrl's back end "pad" split the rows into
episodes and pad these, sb3-contrib walks over the steps in Python, and torchrl
has compiled back ends, which take part on a GPU.
"""

from __future__ import annotations

import torch
from torch import nn

import fused_rnn

from .workload import FUSED, Case, Layer, Provider, Workload, as_built, normal

RESETS = 0.03


class Padded(nn.Module):
    """Episodes as rows of their own, as rsl_rl's ``split_and_pad_trajectories`` makes them.

    x (T, B, I) and ``reset`` (T, B), true at the first step of an episode.
    """

    def __init__(self, sizes, kind=nn.LSTM):
        super().__init__()
        self.rnn = kind(sizes["I"], sizes["H"])

    def forward(self, x, reset):
        T, B, _ = x.shape
        first = reset.clone()
        first[0] = True
        first = first.t().reshape(-1)  # rows one after the other
        starts = first.nonzero().squeeze(1)
        lengths = torch.diff(starts, append=starts.new_tensor([T * B]))
        episodes = torch.split(x.transpose(0, 1).flatten(0, 1), lengths.tolist())
        output = self.rnn(nn.utils.rnn.pad_sequence(episodes))[0]
        inside = torch.arange(len(output), device=x.device)[None] < lengths[:, None]
        return output.transpose(0, 1)[inside].view(B, T, -1).transpose(0, 1)


class Loop(Padded):
    """sb3-contrib's ``_process_sequence``: a step at a time, states times 1 - reset."""

    def forward(self, x, reset):
        h = x.new_zeros(1, x.shape[1], self.rnn.hidden_size)
        states = (h, h) if self.rnn.mode == "LSTM" else (h,)
        keep = (~reset).to(x.dtype)[:, None, :, None]
        outputs = []
        for step, kept in zip(x, keep, strict=True):
            given = tuple(kept * state for state in states)
            output, hx = self.rnn(step[None], given if len(given) > 1 else given[0])
            states = hx if isinstance(hx, tuple) else (hx,)
            outputs.append(output)
        return torch.cat(outputs)


class Fused(Padded):
    def forward(self, x, reset):
        return self.rnn(x, reset=reset)[0]


class Torchrl(nn.Module):
    """torchrl's module in recurrent mode."""

    def __init__(self, model, backend):
        super().__init__()
        from torchrl.modules import GRUModule, LSTMModule

        kind = LSTMModule if isinstance(model.rnn, nn.LSTM) else GRUModule
        rnn, states = model.rnn, ["h", "c"][: 2 if kind is LSTMModule else 1]
        module = kind(
            rnn.input_size,
            rnn.hidden_size,
            in_keys=["x", *states],
            out_keys=["output", *(("next", name) for name in states)],
            recurrent_backend=backend,
            default_recurrent_mode=True,
        ).to(rnn.weight_ih_l0)
        own = module.lstm if kind is LSTMModule else module.gru
        own.load_state_dict(rnn.state_dict())
        self.rnn, self._module = own, [module]  # parameters once, with the model's names

    def forward(self, x, reset):
        from tensordict import TensorDict

        given = {"x": x.transpose(0, 1), "is_init": reset.t().unsqueeze(-1)}
        found = self._module[0](TensorDict(given, batch_size=[x.shape[1], x.shape[0]]))
        return found["output"].transpose(0, 1)


def _other(kind):
    def make(model, sizes):
        other = kind(sizes, type(model.rnn)).to(model.rnn.weight_ih_l0)
        other.load_state_dict(model.state_dict())
        return fused_rnn.convert(other) if kind is Fused else other

    return make


def _inputs(sizes, generator):
    x = normal(generator, sizes["T"], sizes["B"], sizes["I"])
    return x, torch.rand(x.shape[:2], generator=generator) < RESETS


def _case(name, real, cpu, kind=nn.LSTM):
    needs = ("torchrl", "tensordict")
    cell = "lstm" if kind is nn.LSTM else "gru"
    return Case(
        name,
        real,
        lambda sizes: Padded(sizes, kind),
        _inputs,
        {
            "split and pad": Provider(as_built),
            "loop over steps": Provider(_other(Loop)),
            "torchrl, pad": Provider(lambda model, _: Torchrl(model, "pad"), needs),
            "torchrl, scan": Provider(
                lambda model, _: Torchrl(model, "scan"), (*needs, "hoptorch")
            ),
            "torchrl, triton": Provider(
                lambda model, _: Torchrl(model, "triton"), needs, only_on="cuda"
            ),
            FUSED: Provider(_other(Fused)),
        },
        lambda sizes: [Layer(cell, sizes["T"], sizes["B"], sizes["I"], sizes["H"])],
        cpu=cpu,
        tiny={"T": 7, "B": 3, "I": 5, "H": 8},
        in_torch=False,
    )


WORKLOAD = Workload(
    "recurrent PPO with resets",
    "torchrl's benchmark of resets; rsl_rl and sb3-contrib, recurrent policies",
    (
        _case("torchrl, LSTM", {"B": 256, "T": 128, "I": 32, "H": 512}, {"B": 8}),
        _case("rsl_rl, LSTM", {"B": 16384, "T": 32, "I": 48, "H": 256}, {"B": 64}),
        _case("rsl_rl, GRU", {"B": 16384, "T": 32, "I": 48, "H": 256}, {"B": 64}, nn.GRU),
    ),
)
