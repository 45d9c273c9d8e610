"""Progress: whole lines in a pipe, one line in a terminal, and a time that is left."""

import io
import itertools
from unittest import mock

import pytest

from bench import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(file, seconds_a_step, total=10, every=5.0):
    ticks = itertools.count(step=seconds_a_step)
    with (
        mock.patch.object(progress.time, "monotonic", side_effect=ticks),
        progress.Progress("plans", total, file, every) as bar,
    ):
        for number in range(total):
            # str asks for the time too, when something is shown.
            bar.step(f"number {number}")
    return file.getvalue()


def test_lines_in_a_pipe():
    lines = shown(io.StringIO(), 30).splitlines()
    assert lines[0].startswith("plans: 1 of 10, ")
    assert lines[0].endswith(" to go number 0")
    assert lines[-1].startswith("plans: 10 of 10, ")
    assert "to go" not in lines[-1]
    assert "\r" not in "".join(lines)


def test_only_every_few_seconds_and_at_the_end():
    lines = shown(io.StringIO(), 0.001).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("plans: 10 of 10")


def test_one_line_in_a_terminal():
    text = shown(Terminal(), 30)
    assert text.count("\n") == 1
    assert text.count("\r") == 10
    assert "[##......................] plans: 1 of 10" in text


def test_over_yields_all_and_counts_when_they_are_done(capsys):
    assert list(progress.over("abc", "letters")) == ["a", "b", "c"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("letters: 3 of 3")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0 s"), (59.4, "59 s"), (185, "3:05"), (3723, "1:02:03")]
)
def test_times_for_people(seconds, said):
    assert progress.clock(seconds) == said
