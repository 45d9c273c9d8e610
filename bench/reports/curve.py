"""A curve of a race over sizes: microseconds per step by hidden units.

SIZES=100x8x16,100x8x32,100x8x64,100x8x128,100x8x256,100x8x512
python -m bench --cells peephole_lstm --providers nn.LSTM,auto --sizes $SIZES --out FOLDER
python -m bench.reports.curve FOLDER/cpu.json     # writes FOLDER/curve.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..race import report
from ..race.plot import COLOURS, GRID, INK, SOFT
from ..race.rows import Row, unique

LABELS = {
    "eager": "an eager loop",
    "nn.LSTM": "torch.nn.LSTM, without peepholes",
    "torch": "torch.nn",
    "auto": "fused_rnn",
}
EAGER = "#b5475c"


def draw(path: Path, facts: dict, rows: list[Row]) -> None:
    """Write the picture of one cell's rows: a panel per mode, a line per provider."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    rows = [row for row in rows if row.status == "timed"]
    modes, names = unique(r.mode for r in rows), unique(r.provider for r in rows)
    first = rows[0]
    figure = Figure(figsize=(8.4, 3.5), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    figure.subplots_adjust(left=0.09, right=0.98, top=0.74, bottom=0.15, wspace=0.06)
    for panel, mode in zip(panels, modes, strict=True):
        for name in names:
            own = sorted(
                (r for r in rows if (r.mode, r.provider) == (mode, name)), key=lambda r: r.H
            )
            colour = COLOURS.get(name, EAGER)
            x, scale = [r.H for r in own], [1e3 / r.T for r in own]
            low, middle, high = (
                [getattr(r, field) * s for r, s in zip(own, scale, strict=True)]
                for field in ("q1_ms", "median_ms", "q3_ms")
            )
            panel.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            panel.plot(x, middle, "o-", color=colour, markersize=4, label=LABELS.get(name, name))
        panel.set_title(report.MODES[mode], fontsize=9.5, color=INK, loc="left")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log", base=10)
        panel.xaxis.set_major_locator(FixedLocator(sorted({r.H for r in rows})))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.tick_params(labelsize=8.5, labelcolor=SOFT, length=0, which="both")
        panel.grid(color=GRID, linewidth=0.8)
        panel.set_xlabel("hidden units", fontsize=9, color=SOFT)
        for side in panel.spines.values():
            side.set_visible(False)
    panels[0].set_ylabel("µs per step", fontsize=9, color=SOFT)
    threads = facts["threads"]
    figure.text(0.015, 0.96, f"A layer of {first.cell}: microseconds per step", fontsize=12.5,
                color=INK, weight="bold", va="top")  # fmt: skip
    figure.text(0.015, 0.885, f"{facts['device_name']}, {threads} thread{'s' * (threads > 1)}, "
                f"{first.dtype}, torch {facts['torch']}; T {first.T}, B {first.B}; lower is faster",
                fontsize=8.5, color=SOFT, va="top")  # fmt: skip
    panels[0].legend(fontsize=8.5, frameon=False, labelcolor=INK)
    figure.savefig(path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="the JSON file of a race of one cell")
    file = parser.parse_args(argv).file
    facts, _, rows = report.read(file)
    cells = unique(row.cell for row in rows)
    if len(cells) > 1:
        parser.error(f"file: expected a race of one cell, got {', '.join(cells)}")
    draw(file.parent / "curve.png", facts, rows)


if __name__ == "__main__":
    main()
