"""Streaming: one step of one sequence at a time, where the latency of a call is what counts.

- Voice activity: the LSTM of Silero VAD, 128 units of 128 features.
- The prediction network of an RNN transducer: 640 units, as in NVIDIA NeMo's Parakeet models.
- Trading: stacks of LSTMs in the sizes of the benchmark STAC-ML and of Myrtle.ai's Vollo, which
  answer each new tick.

The side that users have today is torch.nn's cells, called layer by layer; torch.nn's layer with a
sequence of one step, and the model in ONNX Runtime, are two more.
"""

from __future__ import annotations

import io
import warnings

import torch
from torch import Tensor, nn

import fused_rnn

from .workload import FUSED, Case, Layer, Provider, Workload, as_built, normal


class Cells(nn.Module):
    """A stack of torch.nn's cells; x (B, I), h and c (L, B, H)."""

    def __init__(self, sizes):
        super().__init__()
        widths = [sizes["I"]] + [sizes["H"]] * (sizes["layers"] - 1)
        self.cells = nn.ModuleList(nn.LSTMCell(width, sizes["H"]) for width in widths)

    def forward(self, x, h, c):
        hs, cs = [], []
        for cell, h_layer, c_layer in zip(self.cells, h.unbind(), c.unbind(), strict=True):
            x, c_layer = cell(x, (h_layer, c_layer))
            hs.append(x)
            cs.append(c_layer)
        return torch.stack(hs), torch.stack(cs)


class Stack(nn.Module):
    """One layer module of that depth, called with one step."""

    def __init__(self, model, sizes, kind):
        super().__init__()
        self.rnn = kind(sizes["I"], sizes["H"], sizes["layers"])
        self.rnn.to(model.cells[0].weight_ih)
        weights = {
            f"{name}_l{layer}": value
            for layer, cell in enumerate(model.cells)
            for name, value in cell.state_dict().items()
        }
        self.rnn.load_state_dict(weights)

    def forward(self, x, h, c):
        return self.rnn(x.unsqueeze(0), (h, c))[1]


class OnnxRuntime(nn.Module):
    """The stack as a graph of ONNX's operator LSTM."""

    def __init__(self, model, sizes):
        super().__init__()
        import onnxruntime

        file, given = io.BytesIO(), _inputs(sizes, torch.Generator())
        names = {"input_names": ["x", "h", "c"], "output_names": ["hn", "cn"]}
        stack = Stack(model, sizes, nn.LSTM).cpu().eval()
        with warnings.catch_warnings():  # of other batch sizes, which are not asked for
            warnings.simplefilter("ignore")
            torch.onnx.export(stack, given, file, dynamo=False, **names)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = onnxruntime.InferenceSession(
            file.getvalue(), options, providers=["CPUExecutionProvider"]
        )

    def forward(self, x: Tensor, h: Tensor, c: Tensor):
        given = {"x": x.numpy(), "h": h.numpy(), "c": c.numpy()}
        return tuple(map(torch.from_numpy, self._session.run(None, given)))


def _inputs(sizes, generator):
    state = sizes["layers"], sizes["B"], sizes["H"]
    x = normal(generator, sizes["B"], sizes["I"])
    return x, normal(generator, *state), normal(generator, *state)


def _case(name, layers, features, units):
    return Case(
        name,
        {"T": 1, "B": 1, "I": features, "H": units, "layers": layers},
        Cells,
        _inputs,
        {
            "torch.nn cells": Provider(as_built),
            "torch.nn layer": Provider(lambda model, sizes: Stack(model, sizes, nn.LSTM)),
            "ONNX Runtime": Provider(OnnxRuntime, ("onnx", "onnxruntime"), only_on="cpu"),
            FUSED: Provider(lambda model, sizes: fused_rnn.convert(model)),
            "fused_rnn layer": Provider(lambda model, sizes: Stack(model, sizes, fused_rnn.LSTM)),
        },
        lambda sizes: [
            Layer("lstm", 1, sizes["B"], sizes["H"] if layer else sizes["I"], sizes["H"])
            for layer in range(sizes["layers"])
        ],
        tiny={"I": 6, "H": 8, "layers": min(layers, 2)},
        modes=("latency",),
    )


WORKLOAD = Workload(
    "streaming, one step",
    "Silero VAD; Parakeet's prediction network; STAC-ML and Vollo",
    (
        _case("VAD, 128 → 128", 1, 128, 128),
        _case("RNN-T, 640", 1, 640, 640),
        _case("trading, 2 × 128", 2, 128, 128),
        _case("trading, 3 × 256", 3, 256, 256),
        _case("trading, 3 × 480", 3, 480, 480),
        _case("trading, 6 × 320", 6, 320, 320),
    ),
)
