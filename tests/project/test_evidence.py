"""docs/engines.md is what the tests' table says, and that holds every built-in cell."""

from pathlib import Path

from fused_rnn import cells, plan
from tests.support import evidence
from tests.support.papers import PAPERS

PAGE = Path(__file__).parents[2] / "docs" / "engines.md"


def test_the_page_is_up_to_date():
    made = evidence.page()
    assert PAGE.read_text("utf-8") == made, "run python -m tests.support.evidence > docs/engines.md"


def test_every_cell_has_an_oracle_and_runs_in_every_strategy():
    assert set(cells.names()) == {*evidence.CORE, *PAPERS}
    run = {(name, strategy) for name, strategy, _ in evidence.interpreted()}
    for name in evidence.LITERATURE:
        for strategy in plan.strategies(cells.get(name)):
            assert (name, strategy) in run


def test_the_sample_exists():
    assert {(name, strategy) for name, strategy, _, _ in evidence.executed()} >= evidence.SAMPLE
