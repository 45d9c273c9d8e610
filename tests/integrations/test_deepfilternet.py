"""A model of DeepFilterNet's form: grouped linear layers around a GRU, with a skip, by frame."""

import pytest
import torch
from torch import Tensor, nn

import fused_rnn
from tests.support.tolerances import assert_equal_in_float64
from tests.support.twins import assert_same_weights, assert_twins_agree, twins


class GroupedLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int):
        super().__init__()
        self.groups = groups
        self.weight = nn.Parameter(torch.randn(groups, inputs // groups, outputs // groups) / 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(-1, (self.groups, -1))
        return torch.einsum("btgi,gih->btgh", parts, self.weight).flatten(2)


class SqueezedGRU(nn.Module):
    def __init__(self, inputs=8, hidden=6, outputs=8, layers=2, groups=2):
        super().__init__()
        self.linear_in = nn.Sequential(GroupedLinear(inputs, hidden, groups), nn.ReLU())
        self.gru = nn.GRU(hidden, hidden, num_layers=layers, batch_first=True)
        self.gru_skip = nn.Linear(inputs, outputs)
        self.linear_out = nn.Sequential(GroupedLinear(hidden, outputs, groups), nn.ReLU())

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, h = self.gru(self.linear_in(x), h)
        return self.linear_out(y) + self.gru_skip(x), h


class Enhancer(nn.Module):
    """An encoder and a decoder of masks for the bands, as in its ERB stage."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = SqueezedGRU(), SqueezedGRU(outputs=8)

    def forward(self, x: Tensor) -> Tensor:
        e, _ = self.encoder(x)
        return x * self.decoder(e)[0].sigmoid()


def test_parity():
    x = torch.randn(3, 7, 8, dtype=torch.float64)
    model = assert_twins_agree(Enhancer(), lambda model: model(x))
    assert type(model.encoder.gru) is fused_rnn.GRU


def test_frame_by_frame():
    """Streaming: the states carried from frame to frame give the numbers of the whole signal."""
    model, x = twins(SqueezedGRU())[1], torch.randn(3, 7, 8, dtype=torch.float64)
    with torch.no_grad():
        whole, last = model(x)
        h, frames = None, []
        for frame in x.split(1, 1):
            y, h = model(frame, h)
            frames.append(y)
    got = {"y": torch.cat(frames, 1), "h": h}
    assert_equal_in_float64(got, {"y": whole, "h": last})


def test_training_and_weights():
    pair, x = twins(Enhancer()), torch.randn(3, 7, 8, dtype=torch.float64)
    for model in pair:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            (model(x) - x / 2).square().mean().backward()
            optimizer.step()
    assert_same_weights(pair[1], pair[0], atol=1e-9)
    again = Enhancer().to(torch.float64)  # a file of a converted model fits the plain one
    again.load_state_dict(pair[1].state_dict())
    assert_equal_in_float64({"y": again(x).detach()}, {"y": pair[1](x).detach()})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_export(tmp_path):
    """A graph for PyTorch, and one for ONNX Runtime with open batch and length."""
    model, x = fused_rnn.convert(Enhancer()).eval(), torch.randn(3, 7, 8)
    sizes = ({0: torch.export.Dim("batch", min=2), 1: torch.export.Dim("frames", min=2)},)
    graph = torch.export.export(model, (x,), dynamic_shapes=sizes)
    other = torch.randn(2, 5, 8)
    torch.testing.assert_close(graph.module()(other), model(other), atol=1e-5, rtol=1e-4)
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    file = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (x,), file, dynamo=True, dynamic_shapes=sizes, verbose=False)
    session = runtime.InferenceSession(file)
    (got,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(other).detach(), atol=1e-5, rtol=1e-4)
