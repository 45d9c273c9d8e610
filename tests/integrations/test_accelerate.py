"""accelerate: prepare, backward, and the state that it saves."""

import copy

import pytest
import torch
from torch import nn

import fused_rnn
from tests.support.twins import assert_same_weights

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")


@pytest.fixture(autouse=True)
def _anew():
    """What accelerate keeps of the first ``Accelerator`` of a process."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 6, 2, dropout=0.0), nn.Linear(6, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][-1])


def _train(model, batches, **options):
    accelerator = accelerate.Accelerator(cpu=True, **options)
    model, optimizer = accelerator.prepare(model, torch.optim.Adam(model.parameters(), lr=0.01))
    for x in batches:
        with accelerator.accumulate(model):
            loss = (model(x) - x.sum((0, 2))[:, None]).square().mean()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return accelerator, model


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}], ids=["each", "two"])
def test_training_and_saved_state(options, tmp_path):
    theirs, batches = Model(), torch.randn(4, 5, 2, 3)
    ours = fused_rnn.convert(copy.deepcopy(theirs))
    _, theirs = _train(theirs, batches, **options)
    accelerator, ours = _train(ours, batches, **options)
    assert_same_weights(ours, theirs)
    accelerator.save_state(str(tmp_path))
    want = copy.deepcopy(accelerator.unwrap_model(ours))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.zero_()
    accelerator.load_state(str(tmp_path))
    assert_same_weights(accelerator.unwrap_model(ours), want, atol=0)


def test_bfloat16():
    _, model = _train(fused_rnn.convert(Model()), torch.randn(2, 5, 2, 3), mixed_precision="bf16")
    assert all(p.isfinite().all() for p in model.parameters())
