"""The results as a JSON file, which runs of single workloads add to, and as a page."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..race.report import figure, short
from ..race.rows import unique
from .rows import Row, geometric_mean, ours
from .workload import FUSED, NAMES, load


@dataclass(frozen=True)
class Result:
    """What a run of one workload found, and where."""

    environment: dict
    seconds: int
    rows: list[Row]


def read(path: Path) -> dict[str, Result]:
    """The results by the names of the workloads; none where there is no file."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text())["workloads"]
    return {
        name: Result(own["environment"], own["seconds"], [Row(**row) for row in own["rows"]])
        for name, own in content.items()
    }


def write(stem: Path, results: Mapping[str, Result]) -> None:
    """Write the JSON file and the page."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    entries = []
    for name in _in_order(results):
        own = results[name]
        # A row per line, so that a diff of two runs is readable.
        rows = ",\n".join(
            json.dumps({key: short(value) for key, value in asdict(row).items()})
            for row in own.rows
        )
        facts = json.dumps(own.environment)
        entries.append(
            f'"{name}": {{"environment": {facts},\n"seconds": {own.seconds}, "rows": [\n{rows}\n]}}'
        )
    joined = ",\n".join(entries)
    Path(f"{stem}.json").write_text(f'{{"workloads": {{\n{joined}\n}}}}\n')
    Path(f"{stem}.md").write_text("\n".join(_page(stem, results)) + "\n")


def summary(name: str, rows: Sequence[Row]) -> list[str]:
    """Lines for a terminal: this package beside the side that users have."""
    lines = []
    for row in ours(rows):
        lines.append(
            f"{name}, {row.case}, {row.mode}, {row.threads} thread{'s' * (row.threads > 1)}: "
            f"{figure(row.median_ms)} ms, {row.ratio:.2f} times as fast as {row.baseline}"
        )
    return lines


def _page(stem, results):
    rows = [row for name in _in_order(results) for row in results[name].rows]
    # Tiny sizes have none.
    exists = Path(f"{stem}.png").exists()
    picture = [f"![How many times as fast]({stem.name}.png)", ""] if exists else []
    lines = [
        "# Workloads",
        "",
        "Written by `python -m bench.workloads`. What people run recurrent layers for: each model",
        "as its project builds it, on synthetic data of its shapes, beside what its users run",
        "today. [docs/benchmarks.md](../../docs/benchmarks.md) says how it is measured.",
        "",
        *_means(rows),
        "",
        *picture,
        "`fused_rnn` is the model with its layers converted, or with the loop replaced by one",
        "call, on the default backend. A ratio is over the first provider of the case: the median",
        "of the rounds' ratios. Every figure has passed the gate: outputs and all gradients agree",
        "with the first provider's model in float64.",
    ]
    for name in _in_order(results):
        lines += ["", *_section(name, results[name])]
    return lines


def _means(rows):
    own = ours(rows)
    if not own:
        return ["No figure of this package."]
    lines = []
    for words, kept in (("torch.nn lacks", False), ("torch.nn has", True)):
        ratios = [row.ratio for row in own if row.in_torch is kept]
        if ratios:
            lines.append(
                f"- {len(ratios)} rows of what {words}: the geometric mean is "
                f"{geometric_mean(ratios):.2f}×, from {min(ratios):.2f}× to {max(ratios):.2f}×."
            )
    slower = [row for row in own if row.ratio_q3 < 1]
    if not slower:
        return [*lines, "- No row is slower in three of four rounds."]
    lines.append(f"- Slower in three of four rounds: {len(slower)} of {len(own)} rows:")
    for row in slower:
        threads = f"{row.threads} thread{'s' * (row.threads > 1)}"
        lines.append(f"  - {row.case}, {row.mode}, {threads}: {row.ratio:.2f}×")
    return lines


def _section(name, result):
    workload, facts = load(name), result.environment
    told = [facts["device_name"], f"{facts['cores']} cores", f"float32, torch {facts['torch']}"]
    told += [f"{peer} {version}" for peer, version in facts.get("peers", {}).items()]
    told += [
        f"load {facts['load']} before",
        f"commit {facts['commit']}",
        facts["date"],
        f"{result.seconds} s in all",
    ]
    lines = [f"## {workload.title[0].upper()}{workload.title[1:]}", ""]
    lines += textwrap.wrap(f"{workload.source}. {', '.join(told)}.", 100, break_on_hyphens=False)
    sizes = {row.case: row for row in result.rows}
    for case, row in sizes.items():
        scaled = f" ({row.scale})" if row.scale else ""
        lines += ["", *textwrap.wrap(f"{case}: {row.sizes}{scaled}", 100, break_on_hyphens=False)]
    latency = all(row.mode == "latency" for row in result.rows)
    timed = [row for row in result.rows if row.status == "timed"]
    on_gpu = any(row.floor_ms is not None for row in timed)
    head = ["case", "mode", "threads", "provider"]
    head += ["p50 µs", "p99 µs"] if latency else ["ms", "µs a step"]
    head += ["peak MB", "times as fast"]
    head += ["GB/s", "of the floor", "predicted ms"] if on_gpu else []
    lines += ["", f"| {' | '.join(head)} |", f"|{' --- |' * 4}{' --: |' * (len(head) - 4)}"]
    for row in timed:
        entries = [row.case, row.mode, str(row.threads), row.provider]
        if latency:
            entries += [figure(row.p50_us), figure(row.p99_us)]
        else:
            spread = (row.q3_ms - row.q1_ms) / 2 / row.median_ms
            entries += [f"{figure(row.median_ms)} ±{spread * 100:.0f}%", figure(row.step_us)]
        entries.append("" if row.peak_mb is None else f"{row.peak_mb:.0f}")
        times = f"{row.ratio:.2f}×"
        entries.append("" if row.provider == row.baseline else times)
        if on_gpu:
            predicted = "" if row.predicted_ms is None else figure(row.predicted_ms)
            entries += [f"{row.gbytes:.0f}", f"{row.median_ms / row.floor_ms:.1f}×", predicted]
        if row.provider == FUSED:
            entries = [f"**{entry}**" if entry else "" for entry in entries]
        lines.append(f"| {' | '.join(entries)} |")
    out = unique((r.provider, r.status, r.reason) for r in result.rows if r.status != "timed")
    if out:
        lines += ["", "Left out:", ""]
        lines += [f"- {provider}: {status}: {reason}" for provider, status, reason in out]
    return lines


def _in_order(results):
    return [name for name in NAMES if name in results]
