"""The ratios as a picture: a line per case, a mark per mode and number of threads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..race.plot import GRID, INK, SOFT
from .page import Result
from .rows import ours
from .workload import NAMES, load

COLOURS = {"inference": "#4c9be8", "training": "#0b6e4f", "latency": "#e0a11f"}
LABELS = {"inference": "forward", "training": "forward and backward", "latency": "one step"}
LINE = 0.3  # inches


def draw(path: Path, results: Mapping[str, Result]) -> None:
    """Write the picture, unless there is no figure to show."""
    lines = []  # (title of the workload or "", case, its rows)
    for name in NAMES:
        own = ours(results[name].rows) if name in results else []
        cases = list(dict.fromkeys(row.case for row in own))
        for case in cases:
            title = load(name).title if case == cases[0] else ""
            lines.append((title, case, [row for row in own if row.case == case]))
    if not lines:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    height = 1.5 + LINE * len(lines)
    figure = Figure(figsize=(9.2, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    figure.subplots_adjust(left=0.4, right=0.97, top=1 - 0.85 / height, bottom=0.5 / height)
    panel.axvline(1, color=INK, linewidth=1)
    for place, (title, _, rows) in enumerate(lines):
        if title and place:
            panel.axhline(place - 0.5, color=GRID, linewidth=0.8)
        panel.text(-0.655, place, title, transform=panel.get_yaxis_transform(), fontsize=8.5,
                   color=INK, va="center", weight="bold")  # fmt: skip
        for row in rows:
            filled = row.threads > 1
            colour = COLOURS[row.mode]
            y = place + (0.16 if row.mode == "training" else -0.16 if row.mode != "latency" else 0)
            panel.plot([row.ratio_q1, row.ratio_q3], [y, y], color=colour, linewidth=1, zorder=2)
            panel.plot(row.ratio, y, "o", markersize=6, color=colour, zorder=3,
                       markerfacecolor=colour if filled else "white")  # fmt: skip
    panel.set_ylim(len(lines) - 0.5, -0.5)
    panel.set_yticks(range(len(lines)), [case for _, case, _ in lines])
    panel.set_xscale("log", base=2)
    every = [row for _, _, rows in lines for row in rows]
    low = min(1.0, *(row.ratio_q1 for row in every)) if every else 1.0
    high = max(2.0, *(row.ratio_q3 for row in every))
    panel.set_xlim(low / 1.15, high * 1.15)
    panel.xaxis.set_major_locator(FixedLocator([2.0**e for e in range(-4, 8)]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    panel.tick_params(axis="both", labelsize=8.5, labelcolor=SOFT, length=0)
    panel.grid(axis="x", color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    for side in panel.spines.values():
        side.set_visible(False)
    _words(figure, panel, height, results, every)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _words(figure, panel, height, results, every):
    facts = next(iter(results.values())).environment
    figure.text(0.015, 1 - 0.18 / height, "How many times as fast as what users run today",
                fontsize=13, color=INK, weight="bold", va="top")  # fmt: skip
    kind = "" if "cuda" in facts else ", CPU"
    figure.text(0.015, 1 - 0.5 / height, f"{facts['device_name']}{kind}, torch {facts['torch']}; "
                "right of 1× is faster; lines: quartiles of the rounds",
                fontsize=8.5, color=SOFT, va="top")  # fmt: skip
    for mode in dict.fromkeys(row.mode for row in every):
        panel.plot([], [], "o", color=COLOURS[mode], label=LABELS[mode])
    if len({row.threads for row in every}) > 1:
        panel.plot([], [], "o", color=SOFT, markerfacecolor="white", label="1 thread")
        panel.plot([], [], "o", color=SOFT, label="2 threads")
    figure.legend(loc="lower left", bbox_to_anchor=(0.38, 0), ncols=5, frameon=False,
                  fontsize=8.5, labelcolor=INK, handletextpad=0.2, columnspacing=1.2)  # fmt: skip
