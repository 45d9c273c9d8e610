"""The newcomer's path takes the quickstart's code, and its page has every step."""

import pytest

from bench.reports import newcomer


@pytest.mark.parametrize("section", newcomer.STEPS)
def test_the_sections_are_those_of_the_quickstart(section):
    code = newcomer.code(section)
    assert "import fused_rnn" in code or "from fused_rnn" in code
    compile(code, section, "exec")


def test_a_step_that_fails_is_no_figure():
    with pytest.raises(RuntimeError, match="no such module|No module"):
        newcomer.timed([newcomer.sys.executable, "-c", "import nothing_of_this_name"])


def test_the_page_has_every_step():
    page = newcomer.report([("clone", 1.0, None), ("first result", 3.26, 2.0)])
    assert "| clone | 1.0 |  |" in page
    assert "| first result | 3.3 | 2.0 |" in page
    assert "| together | 4.3 |" in page
