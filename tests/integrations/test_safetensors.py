"""safetensors: a file of torch.nn's model loads into the converted one, and the reverse."""

import copy

import pytest
import torch
from torch import nn

import fused_rnn
from tests.support.twins import assert_same_weights

st = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")


@pytest.mark.parametrize(
    "layer",
    [nn.LSTM(3, 6, 2, bidirectional=True, proj_size=4), nn.GRU(3, 6), nn.RNN(3, 6, bias=False)],
    ids=["LSTM", "GRU", "RNN"],
)
@pytest.mark.parametrize("to_ours", [True, False], ids=["to ours", "to torch.nn"])
def test_files(layer, to_ours, tmp_path):
    theirs = nn.Sequential(layer)
    ours = fused_rnn.convert(copy.deepcopy(theirs))
    source, target = (theirs, ours) if to_ours else (ours, theirs)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    st.save_model(source, str(tmp_path / "model.safetensors"))
    st.load_model(target, str(tmp_path / "model.safetensors"))
    assert_same_weights(target, source, atol=0)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0], atol=1e-5, rtol=1e-5)


def test_a_cell_of_the_package(tmp_path):
    layers = [fused_rnn.PeepholeLSTM(3, 6), fused_rnn.PeepholeLSTM(3, 6)]
    st.save_file(layers[0].state_dict(), str(tmp_path / "peephole.safetensors"))
    layers[1].load_state_dict(st.load_file(str(tmp_path / "peephole.safetensors")))
    x = torch.randn(5, 2, 3)
    assert torch.equal(layers[1](x)[0], layers[0](x)[0])
