"""The speed-up over the eager loop as a picture: a row of panels per mode, a panel per cell."""

from __future__ import annotations

from pathlib import Path

from .report import MODES
from .rows import Row, unique

INK, SOFT, GRID = "#1f2933", "#6b7785", "#e4e8ed"
# Colour-blind readers can tell these apart. Other providers take the next colour of ``REST``.
COLOURS = {
    "torch": "#8a94a3",
    "nn.LSTM": "#b9c0ca",
    "nn.GRU": "#d8dce2",
    "cpp": "#e0a11f",
    "sequence": "#4c9be8",
    "auto": "#0b6e4f",
    "triton": "#e07a1f",
}
REST = ("#b5475c", "#7b5ea7", "#c2a33a", "#3a9fa5")
LABELS = {
    "torch": "torch.nn",
    "nn.LSTM": "torch.nn.LSTM of that size",
    "nn.GRU": "torch.nn.GRU of that size",
    **{name: f'fused_rnn, "{name}"' for name in ("auto", "cpp", "sequence")},
}


def draw(path: Path, environment: dict, settings: dict, rows: list[Row]) -> None:
    """Write the picture, unless there is no figure to show."""
    rows = [r for r in rows if r.status == "timed"]
    shown = [name for name in unique(r.provider for r in rows) if name != "eager"]
    if not shown:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells, modes = unique(r.cell for r in rows), unique(r.mode for r in rows)
    sizes = unique(r.size for r in rows)
    rest = iter(REST * len(shown))
    colours = {name: COLOURS.get(name) or next(rest) for name in shown}

    width = max(6.5, 0.9 + len(cells) * (1.15 + 0.3 * len(sizes)))
    figure = Figure(figsize=(width, 1.35 + 2.75 * len(modes)), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(modes), len(cells), sharex=True, sharey="row", squeeze=False)
    for line, mode in zip(panels, modes, strict=True):
        for panel, cell in zip(line, cells, strict=True):
            found = [r for r in rows if (r.cell, r.mode) == (cell, mode)]
            _panel(panel, found, sizes, colours)
            panel.set_title(cell if mode == modes[0] else "", fontsize=10, color=INK, pad=8)
        _scale(line[0], [r for r in rows if r.mode == mode and r.provider != "eager"])
        line[0].set_ylabel(MODES[mode].partition(" (")[0], fontsize=10, color=INK)
    figure.align_ylabels()
    _words(figure, panels[0][0], environment, settings)
    figure.savefig(path)


def _panel(panel, rows, sizes, colours):
    """Each provider's ratio as a bar that starts at 1: up is faster, down is slower."""
    present = [name for name in colours if any(r.provider == name for r in rows)]
    step = 0.8 / max(len(present), 1)
    panel.axhline(1, color=INK, linewidth=1, zorder=3)
    for i, name in enumerate(present):
        own = [r for r in rows if r.provider == name]
        x = [sizes.index(r.size) + (i - (len(present) - 1) / 2) * step for r in own]
        y = [r.speedup for r in own]
        panel.bar(
            x, [v - 1 for v in y], step * 0.86, bottom=1, color=colours[name], label=name, zorder=2
        )
        spread = [[r.speedup - r.speedup_q1 for r in own], [r.speedup_q3 - r.speedup for r in own]]
        panel.errorbar(x, y, spread, fmt="none", ecolor=INK, elinewidth=0.8, zorder=4)
    panel.set_yscale("log", base=2)
    panel.set_xticks(range(len(sizes)), [s.replace("x", "×") for s in sizes])
    panel.set_xlim(-0.6, len(sizes) - 0.4)
    panel.tick_params(axis="x", labelsize=7.5, labelcolor=SOFT, length=0, rotation=35)
    panel.tick_params(axis="y", labelsize=8.5, labelcolor=SOFT, length=0)
    for label in panel.get_xticklabels():
        label.set_horizontalalignment("right")
        label.set_rotation_mode("anchor")
    panel.grid(axis="y", color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    for side in panel.spines.values():
        side.set_visible(False)


def _scale(panel, rows):
    """Ticks at powers of two, or between them where the ratios are close to each other."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low = min(1.0, *(r.speedup_q1 for r in rows))
    high = max(1.0, *(r.speedup_q3 for r in rows))
    close = high / low < 8
    ticks = [2.0**e for e in range(-6, 12)]
    ticks = sorted([*ticks, *(1.5 * t for t in ticks)] if close else ticks)
    panel.set_ylim(low / 1.12, high * 1.12)
    panel.yaxis.set_major_locator(FixedLocator(ticks))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))


def _words(figure, panel, environment, settings):
    _, top = figure.get_size_inches()
    left = 0.12
    figure.subplots_adjust(
        left=0.75 / figure.get_figwidth(),
        right=1 - 0.12 / figure.get_figwidth(),
        top=1 - 1.05 / top,
        bottom=0.78 / top,
        wspace=0.06,
        hspace=0.1,
    )
    left /= figure.get_figwidth()
    figure.text(
        left,
        1 - 0.2 / top,
        "Speed-up over the eager loop",
        fontsize=13,
        color=INK,
        weight="bold",
        va="top",
    )
    threads = environment["threads"]
    cores = f", {threads} thread{'s' * (threads > 1)}" if settings["device"] == "cpu" else ""
    figure.text(
        left,
        1 - 0.5 / top,
        f"{environment['device_name']}{cores}, {settings['dtype']}, torch {environment['torch']}; "
        "above 1× is faster; whiskers: quartiles of the rounds",
        fontsize=8.5,
        color=SOFT,
        va="top",
    )
    figure.text(left, 0.12 / top, "T×B×H, I = H", fontsize=8, color=SOFT)
    handles = {
        label: handle
        for axis in figure.axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        [LABELS.get(name, f'fused_rnn, "{name}"') for name in handles],
        loc="upper right",
        bbox_to_anchor=(1 - 0.1 / figure.get_figwidth(), 1 - 0.1 / top),
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=1,
        handleheight=1,
        columnspacing=1.2,
    )
