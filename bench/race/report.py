"""Rows as a table for a terminal, as CSV and JSON, and as a page with every machine's results."""

from __future__ import annotations

import csv
import json
import math
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .rows import COLUMNS, Row, unique

LEGEND = (
    "Milliseconds per call, median of the rounds ± half the distance of the quartiles, and the "
    "speed-up over the eager loop: the median of the rounds' ratios. Sizes are T×B×H where I = H, "
    "else T×B×I×H."
)
MODES = {
    "inference": "Inference (forward, nothing kept)",
    "training": "Training (forward and backward)",
}
WIDTH = 22


def widths(rows: list[Row]) -> dict[str, int]:
    """The columns of a table with these first rows; a skipped provider gets a narrow one."""
    timed = {r.provider for r in rows if r.status == "timed"}
    return {r.provider: WIDTH if r.provider in timed else len(r.provider) + 3 for r in rows}


def heading(cell: str, dtype: str, columns: dict[str, int]) -> str:
    names = "".join(f"{name:>{width}}" for name, width in columns.items())
    return f"\n{f'{cell} ({dtype})':<26}{names}"


def line(rows: list[Row], columns: dict[str, int]) -> str:
    """The providers of one problem in one mode, side by side."""
    first = rows[0]
    entries = "".join(f"{_entry(r):>{columns[r.provider]}}" for r in rows)
    return f"{first.size:<15}{first.mode:<11}{entries}"


def notes(rows: list[Row]) -> list[str]:
    """The distinct reasons why providers were not timed."""
    found = {}
    for row in rows:
        if row.status != "timed":
            what = "not timed" if row.status == "checked" else row.status.upper()
            found.setdefault(f"{what}: {row.reason}", []).append(row.provider)
    return [f"  {', '.join(unique(names))}: {why}" for why, names in found.items()]


def write(stem: Path, environment: dict, settings: dict, rows: list[Row]) -> None:
    """Write the CSV and the JSON file."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{stem}.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*COLUMNS, *environment))
        for row in rows:
            values = (getattr(row, name) for name in COLUMNS)
            writer.writerow([short(value) for value in (*values, *environment.values())])
    content = {
        "environment": environment,
        "settings": settings,
        "rows": [{k: short(v) for k, v in asdict(row).items()} for row in rows],
    }
    # A row per line, so that a diff of two runs is readable.
    lines = ",\n".join(json.dumps(row) for row in content.pop("rows"))
    head = json.dumps(content, indent=1)[:-2]
    Path(f"{stem}.json").write_text(f'{head},\n "rows": [\n{lines}\n]}}\n')


def read(path: Path) -> tuple[dict, dict, list[Row]]:
    content = json.loads(path.read_text())
    return content["environment"], content["settings"], [Row(**row) for row in content["rows"]]


def write_page(folder: Path) -> None:
    """Write README.md of a folder of results: a section for each JSON file in it."""
    lines = ["# Results", "", "Written by `python -m bench`."]
    lines += ["[docs/benchmarks.md](../../docs/benchmarks.md) says what the figures are."]
    for path in sorted(folder.glob("*.json")):
        if _is_race(path):
            lines += ["", *_section(path)]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def _is_race(path):
    """Whether ``write`` made it: other reports keep their files in the same folder."""
    content = json.loads(path.read_text())
    return isinstance(content, dict) and content.keys() >= {"environment", "settings", "rows"}


def _section(path):
    environment, settings, rows = read(path)
    threads = environment["threads"]
    facts = [f"{environment['cores']} cores, {threads} thread{'s' * (threads > 1)}"]
    facts += [f"{k} {environment[k]}" for k in ("cuda", "cudnn") if k in environment]
    facts += [environment["system"]]
    facts += [f"{k} {environment[k]}" for k in ("python", "torch", "triton", "numpy", "fused_rnn")]
    facts += [f"commit {environment['commit']}", environment["date"]]
    facts += [f"load before the run {environment['load']}"]
    lines = [
        f"## {environment['device_name']}, {settings['dtype']}",
        "",
        *textwrap.wrap(f"{', '.join(facts)}; {settings['rounds']} rounds.", 100),
    ]
    if path.with_suffix(".png").exists():
        lines += ["", f"![Speed-up over the eager loop]({path.stem}.png)"]
    timed = [r for r in rows if r.status == "timed"]
    providers = unique(r.provider for r in timed)
    for mode in unique(r.mode for r in timed):
        lines += ["", f"### {MODES[mode]}", "", f"| cell | T×B×H | {' | '.join(providers)} |"]
        lines += ["| --- | --- |" + " --: |" * len(providers)]
        for cell, size in unique((r.cell, r.size) for r in timed if r.mode == mode):
            found = {r.provider: r for r in timed if (r.cell, r.size, r.mode) == (cell, size, mode)}
            entries = [_markdown(found.get(name)) for name in providers]
            lines.append(f"| {cell} | {size.replace('x', '×')} | {' | '.join(entries)} |")
    lines += _against_torch(timed)
    bad = [r for r in rows if r.status in ("wrong", "failed")]
    if bad:
        lines += ["", "No figure:", ""]
        lines += unique(f"- {r.provider}, {r.cell}, {r.size}: {r.status}: {r.reason}" for r in bad)
    return lines


def _against_torch(rows):
    """A table of the speed-ups of "auto" over the eager loop and torch.nn's layers."""
    rows = [r for r in rows if r.provider == "auto" and (r.over_lstm or r.over_gru)]
    if not rows:
        return []
    modes = unique(r.mode for r in rows)
    names = [f"{mode}: {other}" for mode in modes for other in ("eager", "nn.LSTM", "nn.GRU")]
    lines = ["", '### "auto" over the eager loop and over torch.nn\'s layers of that size', ""]
    lines += [f"| cell | T×B×H | {' | '.join(names)} |", "| --- | --- |" + " --: |" * len(names)]
    for cell, size in unique((r.cell, r.size) for r in rows):
        entries = []
        for mode in modes:
            found = [r for r in rows if (r.cell, r.size, r.mode) == (cell, size, mode)]
            for r in found:
                entries += [r.speedup, r.over_lstm, r.over_gru]
        texts = ["" if e is None else f"{e:.2f}×" for e in entries]
        lines.append(f"| {cell} | {size.replace('x', '×')} | {' | '.join(texts)} |")
    return lines


def _entry(row):
    if row.status != "timed":
        return {"skipped": "–", "checked": "right"}.get(row.status, row.status.upper())
    spread = f"±{row.half_spread * 100:.0f}%"
    return f"{figure(row.median_ms)} {spread:>4} {row.speedup:5.2f}×"


def _markdown(row):
    if row is None:
        return ""
    if row.speedup == 1 and row.provider == "eager":
        return f"{figure(row.median_ms)} ±{row.half_spread * 100:.0f}%"
    return f"{figure(row.median_ms)} ±{row.half_spread * 100:.0f}% ({row.speedup:.2f}×)"


def figure(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def short(value: Any) -> Any:
    """Floats rounded to five digits, since more are noise; None for those that JSON lacks."""
    if isinstance(value, (tuple, list)):
        return [short(v) for v in value]
    if not isinstance(value, float):
        return value
    return float(f"{value:.5g}") if math.isfinite(value) else None
