"""ONNX Runtime runs the exported file of a converted model, and of cells that torch.nn lacks."""

import pytest
import torch
from torch import nn

import fused_rnn

runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")


class Tagger(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.rnn, self.head = layer, nn.LazyLinear(3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "layer",
    [
        nn.LSTM(4, 6, 2, bidirectional=True, batch_first=True),
        nn.GRU(4, 6, batch_first=True),
        fused_rnn.PeepholeLSTM(4, 6, batch_first=True),
        fused_rnn.Recurrent("mgu", 4, 6, batch_first=True),
    ],
    ids=["LSTM", "GRU", "PeepholeLSTM", "mgu"],
)
def test_other_sizes_than_exported(layer, tmp_path):
    x, file = torch.randn(2, 5, 4), str(tmp_path / "model.onnx")
    model = Tagger(layer).eval()
    model(x)
    if type(layer).__module__.startswith("torch"):
        fused_rnn.convert(model)
    sizes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("steps")},)
    torch.onnx.export(model, (x,), file, dynamo=True, dynamic_shapes=sizes, verbose=False)
    session = runtime.InferenceSession(file)
    for shape in ((2, 5, 4), (3, 9, 4)):
        x = torch.randn(shape)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(got), model(x).detach(), atol=1e-5, rtol=1e-4, check_stride=False
        )
