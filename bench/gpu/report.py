"""The report of a session with a GPU, for a person who was not there."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from ..race.environment import in_words
from .stages import Done

LINES = 30  # of a log, the last ones


def page(facts: Mapping, done: Sequence[Done], dry: bool) -> str:
    """The text of report.md."""
    passed = sum(d.status == "passed" for d in done)
    lines = ["# A session with a GPU" if not dry else "# A dry run of a session with a GPU", ""]
    if dry:
        lines += [
            "**There was no GPU.** Each stage ran tiny sizes in Triton's interpreter, by compiling",
            "or on the CPU, to show that it runs and what it leaves behind. No figure in this",
            "folder says anything about speed.",
            "",
        ]
    lines += [
        in_words(dict(facts)),
        "",
        f"{passed} of {len(done)} stages passed, in {sum(d.seconds for d in done):.0f} s.",
        "",
        "| stage | what it shows | result | seconds |",
        "| --- | --- | --- | --: |",
    ]
    for d in done:
        result = d.status if d.status == "passed" else f"**{d.status}**"
        lines.append(f"| {d.stage.name} | {d.stage.what} | {result} | {d.seconds:.0f} |")
    for d in done:
        title = d.stage.name[0].upper() + d.stage.name[1:]
        lines += ["", f"## {title}", "", *textwrap.wrap(f"`{d.command}`", 100), ""]
        lines.append(f"Result: {d.status}. [All that it printed]({d.stage.name}/log.txt).")
        if d.status == "out of time":
            lines.append(f"It was ended after {d.stage.seconds} s; what it had written is here.")
        if d.files:
            lines += ["", "Files:", "", *(f"- [{name}]({name})" for name in d.files)]
        end = [line.rstrip()[:160] for line in d.log.splitlines() if line.strip()][-LINES:]
        lines += ["", "```text", *end, "```"]
    return "\n".join(lines) + "\n"
