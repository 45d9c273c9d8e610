"""captum: attributions through a converted model are those through torch.nn's."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.tolerances import assert_equal_in_float64
from tests.support.twins import twins

attr = pytest.importorskip("captum.attr", reason="captum is not installed")

METHODS = {
    "IntegratedGradients": {"n_steps": 8},
    "Saliency": {},
    "InputXGradient": {},
    "GradientShap": {"n_samples": 2, "stdevs": 0.0},
    "FeatureAblation": {},
}


class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(3, 6, batch_first=True, bidirectional=True), nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0].mean(1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU], ids=["LSTM", "GRU"])
@pytest.mark.parametrize("method", METHODS)
def test_attributions(method, kind):
    x, found = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True), []
    more = {"baselines": torch.zeros_like(x)} if method == "GradientShap" else {}
    for model in twins(Model(kind)):
        np.random.seed(0)  # what GradientShap draws with  # noqa: NPY002
        options = METHODS[method] | more
        found.append({"x": getattr(attr, method)(model).attribute(x, target=1, **options)})
    assert_equal_in_float64(found[1], found[0])


@pytest.mark.filterwarnings("ignore")
def test_activations_of_the_layer():
    """By hooks on our layer, whose output is a tuple."""
    x, found = torch.randn(2, 5, 3, dtype=torch.float64), []
    for model in twins(Model(nn.GRU)):
        output, h = attr.LayerActivation(model, model.rnn).attribute(x)
        found.append({"output": output.detach(), "h": h.detach()})
    assert_equal_in_float64(found[1], found[0])
