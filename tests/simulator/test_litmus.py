"""The rules of the PTX memory model, each by a program that relies on it and one that breaks it.

A racy program has to be reported in one schedule at least, a correct one in none.
"""

import pytest

from tests.support.litmus import races
from tests.support.litmus_programs import PAIRS


def programs(which):
    for name, pair in PAIRS.items():
        program = pair[which]
        threads, options = program if isinstance(program[1], dict) else (program, {})
        yield pytest.param(threads, options, id=name)


@pytest.mark.parametrize(("threads", "options"), list(programs(0)))
def test_ordered(threads, options):
    assert races(threads, **options) == [""] * 6


@pytest.mark.parametrize(("threads", "options"), list(programs(1)))
def test_racy(threads, options):
    assert any("race" in found for found in races(threads, **options))
