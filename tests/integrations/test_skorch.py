"""skorch: fit, the losses of each epoch, parameters by name, pickles."""

import pickle

import numpy as np
import pytest
import torch
from torch import nn

import fused_rnn

skorch = pytest.importorskip("skorch", reason="skorch is not installed")


class Classifier(nn.Module):
    def __init__(self, layer=nn.GRU, hidden=6):
        super().__init__()
        self.rnn, self.head = layer(3, hidden, batch_first=True), nn.Linear(hidden, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


def _net(layer, **options):
    torch.manual_seed(0)
    return skorch.NeuralNetClassifier(
        Classifier,
        module__layer=layer,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=0.02,
        max_epochs=3,
        batch_size=8,
        iterator_train__shuffle=False,
        verbose=0,
        **options,
    )


def test_fit_and_pickle():
    x = np.random.default_rng(0).standard_normal((24, 5, 3)).astype(np.float32)
    y = (x.sum((1, 2)) > 0).astype(np.int64)
    theirs, ours = (_net(layer).fit(x, y) for layer in (nn.GRU, fused_rnn.GRU))
    losses = [net.history[:, "train_loss"] for net in (ours, theirs)]
    np.testing.assert_allclose(*losses, atol=1e-5)
    assert losses[0][-1] < losses[0][0]
    again = pickle.loads(pickle.dumps(ours))
    np.testing.assert_array_equal(again.predict_proba(x), ours.predict_proba(x))
    other = skorch.NeuralNetClassifier(Classifier, module__layer=fused_rnn.GRU).initialize()
    other.module_.load_state_dict(ours.module_.state_dict())
    np.testing.assert_array_equal(other.predict(x), ours.predict(x))
    assert ours.set_params(module__hidden=4).fit(x, y).module_.rnn.hidden_size == 4
