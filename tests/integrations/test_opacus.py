"""opacus: gradients per sample by the recipe of docs/other-tools.md, and a private step."""

import copy

import pytest
import torch
from torch import nn

import fused_rnn

opacus = pytest.importorskip("opacus", reason="opacus is not installed")

T, B, INPUT, H = 5, 3, 4, 6


class Output(fused_rnn.LSTM):
    """One tensor out, which is what opacus differentiates per sample."""

    def forward(self, x):
        return super().forward(x)[0]


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(INPUT, H, batch_first=True), nn.Linear(H, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[:, -1])


def test_gradients_per_sample():
    model = fused_rnn.convert(Classifier(), rules={nn.LSTM: Output})
    alone, x = copy.deepcopy(model), torch.randn(B, T, INPUT)
    private = opacus.GradSampleModule(model, loss_reduction="sum")
    private(x).square().sum().backward()
    for i in range(B):
        loss = alone(x[i : i + 1]).square().sum()
        want = torch.autograd.grad(loss, list(alone.parameters()))
        for parameter, grad in zip(model.parameters(), want, strict=True):
            torch.testing.assert_close(parameter.grad_sample[i], grad)


@pytest.mark.filterwarnings("ignore")
def test_a_private_step():
    model = fused_rnn.convert(Classifier(), rules={nn.LSTM: Output})
    before = copy.deepcopy(model.state_dict())
    data = torch.utils.data.TensorDataset(torch.randn(8, T, INPUT), torch.randint(2, (8,)))
    private, optimizer, batches = opacus.PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=torch.utils.data.DataLoader(data, batch_size=4),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(private(x), y).backward()
        optimizer.step()
    assert all(not torch.equal(before[n], value) for n, value in model.state_dict().items())
