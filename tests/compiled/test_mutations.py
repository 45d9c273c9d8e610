"""Leaving out a synchronization of the real kernels is noticed, or is shown to be redundant."""

import pytest
import torch

from bench.reports import mutations


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "explicit", "least"),
    (("resident", False, 50), ("resident", True, 4), ("grid", False, 50), ("grid", True, 12)),
)
def test_every_mutant_is_caught_or_redundant(strategy, explicit, least):
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    case = next(c for c in mutations.CASES if c[1] == strategy and (c[3] is None) == explicit)
    kinds, verdicts, rows = mutations.examine(case)
    assert kinds.total() == verdicts.total() > least
    caught = sum(n for how, n in verdicts.items() if "race" in how)
    assert caught > 0.9 * kinds.total()
    assert "not caught" not in verdicts, rows
    ordered = [n for kind, n in kinds.items() if "acquire" in kind or "release" in kind]
    assert bool(ordered) == (strategy == "grid" and not explicit)
    # Values that programs poll for themselves need no order, but strong accesses.
    others = {kind.partition("` ")[2] for kind in kinds} & {"made weak", "not repeated"}
    polls = {"made weak", "not repeated"} if explicit else {"not repeated"}
    assert others == (polls if strategy == "grid" else set())
