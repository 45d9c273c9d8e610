"""Leaving out a synchronization of the real kernels is noticed, or is shown to be redundant."""

import pytest
import torch

from bench import mutations


@pytest.mark.slow
def test_every_mutant_is_caught_or_redundant():
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    kinds, verdicts, rows = mutations.examine(mutations.CASES[0])
    assert kinds.total() == verdicts.total() > 50
    caught = sum(n for how, n in verdicts.items() if "race" in how)
    assert caught > 0.9 * kinds.total()
    assert "not caught" not in verdicts, rows
