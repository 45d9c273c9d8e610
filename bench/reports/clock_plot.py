"""Where the cycles of a step go, as a picture: a row of panels per chip, a panel per kernel."""

from __future__ import annotations

from pathlib import Path

from bench.race.plot import GRID, INK, SOFT

# What a warp spends its cycles on: label, colour, and the names in ``Cycles.spent``.
PARTS = (
    ("own instructions", "#0b6e4f", ("issue", "busy issue")),
    ("fixed latencies", "#7fb8a0", ("latency", "operands", "uniform", "busy uniform")),
    ("arithmetic", "#e0a11f", ("fp32", "busy fp32", "busy integer", "busy fp16", "busy fp64")),
    ("special functions", "#e07a1f", ("special", "busy special")),
    ("tensor cores", "#7b5ea7", ("tensor", "busy tensor")),
    ("shared memory", "#4c9be8", ("shared", "shuffle", "busy shared", "busy global")),
    ("loads from L2", "#b5475c", ("load",)),
    ("barrier of the program", "#8a94a3", ("barrier",)),
    ("other programs", "#1f2933", ("grid", "fence", "atomic", "store")),
)
TITLES = {"forward": "forward, for training", "inference": "inference", "backward": "backward"}


def shares(entry: dict) -> list[float]:
    """The cycles of each of ``PARTS``; whatever is in none of them counts as fixed latency."""
    named = {name for _, _, names in PARTS for name in names}
    spent = dict(entry["spent"])
    rest = sum(n for name, n in spent.items() if name not in named)
    spent["latency"] = spent.get("latency", 0.0) + rest
    return [sum(spent.get(name, 0.0) for name in names) for _, _, names in PARTS]


def draw(path: Path, entries: list[dict]) -> None:
    """Write the picture of the entries of clock.json; parts of one step follow each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    strategies = list(dict.fromkeys(e["strategy"] for e in entries))
    kinds = [kind for kind in TITLES if any(e["kind"] == kind for e in entries)]
    bars = {s: list(dict.fromkeys(map(_bar, _of(entries, strategy=s)))) for s in strategies}
    inches = [0.55 + 0.17 * len(bars[s]) for s in strategies]
    height = 1.1 + sum(inches)
    figure = Figure(figsize=(12, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)
    bottom = 0.1 + sum(inches)
    for strategy, inch in zip(strategies, inches, strict=True):
        bottom -= inch
        for k, kind in enumerate(kinds):
            width, low, high = 0.825 / len(kinds), bottom + 0.4, bottom + inch - 0.1
            place = (0.165 + k * width, low / height, width - 0.015, (high - low) / height)
            panel = figure.add_axes(place)
            found = _of(entries, strategy=strategy, kind=kind)
            _panel(panel, found, bars[strategy], named=k == 0)
            panel.set_title(f"{strategy}: {TITLES[kind]}", fontsize=9, color=INK, loc="left", pad=3)
    figure.text(
        0.01, 1 - 0.12 / height, "Where the cycles of a step go, by the clock: a model",
        fontsize=12, color=INK, weight="bold", va="top",
    )  # fmt: skip
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(0.005, 1 - 0.32 / height), ncols=9,
        frameon=False, fontsize=8, labelcolor=INK, handlelength=1, columnspacing=1.1,
    )  # fmt: skip
    figure.savefig(path)


def _of(entries, **names):
    return [e for e in entries if all(e[name] == value for name, value in names.items())]


def _bar(entry) -> str:
    layouts = "" if entry["layouts"] == "explicit" else " (Triton)"
    return f"{entry['cell']} {entry['hidden']}, {entry['capability'] / 10}{layouts}"


def _panel(panel, entries, bars, named):
    """A bar per cell, size and chip: the kernels of a step after each other."""
    left = [0.0] * len(bars)
    for entry in entries:
        place = bars.index(_bar(entry))
        for (_, colour, _), cycles in zip(PARTS, shares(entry), strict=True):
            panel.barh(place, cycles, 0.75, left=left[place], color=colour, zorder=2)
            left[place] += cycles
    for label, colour, _ in PARTS:
        panel.barh(0, 0, color=colour, label=label)
    panel.set_yticks(range(len(bars)), bars if named else [""] * len(bars))
    panel.set_ylim(len(bars) - 0.4, -0.6)
    panel.set_xlim(0, 1.03 * max(left, default=1))
    panel.tick_params(axis="y", labelsize=7.5, labelcolor=INK, length=0)
    panel.tick_params(axis="x", labelsize=7.5, labelcolor=SOFT, length=0)
    panel.locator_params(axis="x", nbins=5)
    panel.grid(axis="x", color=GRID, linewidth=0.8)
    panel.set_axisbelow(True)
    for side in panel.spines.values():
        side.set_visible(False)
