"""The table of features names tests that exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "features.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("\n## ")[0]  # what follows is about other projects
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in TABLE.splitlines()
    if line.startswith("| ")
][2:]


def _named(text):
    return re.findall(r"`([\w/]+\.py)::(\w+)`", text)


def test_the_table_was_found():
    assert len(ROWS) > 30
    assert all(len(row) == 7 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_a_feature_is_shown_by(row):
    feature, mine, *_, shown = row
    assert bool(_named(shown)) != (mine in ("no", "**no**")), feature
    for file, test in _named(shown):
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
