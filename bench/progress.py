"""Progress of a long command and the time left: a bar, or lines where stderr is a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

EVERY = 5.0  # seconds between two lines in a pipe
WIDTH = 24
Item = TypeVar("Item")


class Progress:
    """Steps of a job whose number is known; a context manager that ends the bar.

    A terminal gets one line that is drawn again, any other file a whole line every few seconds.

    Args:
        what: the job, in a word or two.
        total: its steps.
        file: default: stderr, so that results on stdout stay clean.
        every: seconds between two lines where ``file`` is no terminal.
    """

    def __init__(self, what: str, total: int, file: TextIO | None = None, every: float = EVERY):
        self.what, self.total, self.done = what, total, 0
        self._file = sys.stderr if file is None else file
        self._bar = self._file.isatty()
        self._every, self._begin, self._shown = (0.1 if self._bar else every), time.monotonic(), 0.0

    def step(self, note: str = "", count: int = 1) -> None:
        """Count steps as done; ``note`` says which was the last."""
        self.done += count
        now = time.monotonic()
        if now - self._shown >= self._every or self.done >= self.total:
            self._shown = now
            self._show(f"{self} {note}".rstrip())

    def __str__(self):
        spent = time.monotonic() - self._begin
        told = f"{self.what}: {self.done} of {self.total}, {clock(spent)}"
        if 0 < self.done < self.total:
            told += f", {clock(spent / self.done * (self.total - self.done))} to go"
        if not self._bar:
            return told
        full = WIDTH * self.done // max(self.total, 1)
        return f"[{'#' * full}{'.' * (WIDTH - full)}] {told}"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            print(file=self._file, flush=True)

    def _show(self, line):
        # Clear the rest of the line: the one before may have been longer.
        begin, end = ("\r", "\x1b[K") if self._bar else ("", "\n")
        print(f"{begin}{line}", end=end, file=self._file, flush=True)


def over(items: Iterable[Item], what: str) -> Iterator[Item]:
    """The items, with the progress of a loop over them."""
    items = list(items)
    with Progress(what, len(items)) as shown:
        for item in items:
            yield item
            shown.step()


def clock(seconds: float) -> str:
    """A time for people: 42 s, 3:05, 1:02:03."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
