"""Lightning: the Trainer trains a converted module as it trains torch.nn's, and its checkpoints."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fused_rnn
from tests.support.twins import assert_same_weights

lightning = pytest.importorskip("lightning", reason="lightning is not installed")


class Regressor(lightning.LightningModule):
    def __init__(self, hidden: int = 6):
        super().__init__()
        self.save_hyperparameters()
        self.rnn = nn.GRU(3, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])

    def training_step(self, batch, _):
        x, y = batch
        return (self(x) - y).square().mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


def _trainer(folder, **options):
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


def _batches():
    x = torch.randn(8, 5, 3)
    return DataLoader(TensorDataset(x, x.sum((1, 2))[:, None]), batch_size=4)


@pytest.mark.filterwarnings("ignore")
def test_fit_and_checkpoint(tmp_path):
    theirs, batches = Regressor(), _batches()
    ours = fused_rnn.convert(copy.deepcopy(theirs))
    before = copy.deepcopy(ours.state_dict())
    for model in (theirs, ours):
        trainer = _trainer(tmp_path, enable_checkpointing=False)
        trainer.fit(model, batches)
    assert_same_weights(ours, theirs)
    assert any(not torch.equal(before[name], value) for name, value in ours.state_dict().items())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = fused_rnn.convert(Regressor.load_from_checkpoint(tmp_path / "last.ckpt"))
    assert_same_weights(again, ours, atol=0)


@pytest.mark.filterwarnings("ignore")
def test_bfloat16_precision(tmp_path):
    model = fused_rnn.convert(Regressor())
    _trainer(tmp_path, enable_checkpointing=False, precision="bf16-mixed").fit(model, _batches())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in model.parameters())
