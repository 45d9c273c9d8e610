"""A timeline as an SVG picture: the whole forward, and some steps of some programs."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from .chips import PARALLEL

if TYPE_CHECKING:
    from .timeline import Timeline

INK, SOFT, GRID = "#1f2933", "#6b7785", "#e4e8ed"
COLOURS = {
    "input product": "#7b5ea7",
    "walk": "#0b6e4f",
    "loop": "#b9c0ca",
    "products": "#0b6e4f",
    "layouts": "#7fb8a0",
    "activations": "#4c9be8",
    "waits": "#e07a1f",
    "reads": "#e0a11f",
    "weights": "#b5475c",
    "memory": "#8a94a3",
    "launches": "#8a94a3",
    "programs": "#d8dce2",
}
WIDTH, LEFT, RIGHT = 860, 96, 24
LANES, STEPS = 4, 3  # of the programs and steps, as many are drawn
LANE, GAP = 22, 6


def picture(timeline: Timeline) -> str:
    """The text of an SVG file."""
    from .timeline import show

    span = WIDTH - LEFT - RIGHT
    parts = [
        _text(16, 26, timeline.title, 15, INK, "bold"),
        _text(16, 45, "a model's estimates of the forward in training, not measurements", 11, SOFT),
    ]
    # The whole forward.
    y, x = 66, float(LEFT)
    parts.append(_text(16, y + 15, "forward", 11, INK))
    whole = [("input product", timeline.input_product), ("walk", timeline.T * timeline.step)]
    for name, time in whole:
        width = span * time / timeline.time
        label = f"{name}, {show(time)}"
        parts.append(_box(x, y, width, LANE, name, label))
        x += width
    parts.append(
        _text(LEFT, y + LANE + 14, f"{timeline.T} steps of {show(timeline.step)}, after the "
              f"input product of all steps: {show(timeline.time)} in all", 11, SOFT)
    )  # fmt: skip
    # Some steps of some programs.
    y += LANE + 40
    rows = timeline.rows()
    drawn = min(STEPS, timeline.T)
    length = sum(time for _, time, _ in rows)
    lanes = min(LANES, timeline.programs)
    parts.append(_text(16, y, _heading(timeline, drawn), 12, INK, "bold"))
    y += 12
    top = y
    for lane in range(lanes):
        parts.append(_text(16, y + 15, f"program {lane + 1}", 11, INK))
        x = float(LEFT)
        for _ in range(drawn):
            for name, time, _ in rows:
                width = span / drawn * time / length
                parts.append(_box(x, y, width, LANE, name, f"{name}, {show(time)}"))
                x += width
        y += LANE + GAP
    if timeline.programs > lanes:
        parts.append(_text(LEFT + 4, y + 10, f"and {timeline.programs - lanes} more", 11, SOFT))
        y += 16
    meets = "waits" in timeline.parts
    for number in range(drawn + 1):  # the ends of the steps: solid where all programs meet
        x = LEFT + span * number / drawn
        dash = "" if meets else ' stroke-dasharray="3 3"'
        parts.append(
            f'<line x1="{x:.1f}" y1="{top - 4}" x2="{x:.1f}" y2="{y - GAP + 4}" stroke="{INK}" '
            f'stroke-width="1"{dash}/>'
        )
    # What the colours mean.
    y += 22
    for name, time, meaning in rows:
        parts.append(_box(LEFT, y - 10, 12, 12, name, name))
        parts.append(_text(LEFT + 20, y, f"{name}: {show(time)} a step, {meaning}", 11, INK))
        y += 18
    height = y + 6
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}" font-family="DejaVu Sans, Helvetica, sans-serif">'
    )
    ground = f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    return "\n".join([head, ground, *parts, "</svg>", ""])


def _heading(timeline, drawn):
    strategy = timeline.launch.strategy
    shared = f"{timeline.programs} program{'s' * (timeline.programs > 1)}"
    if strategy == PARALLEL:
        pieces, _ = timeline.launch.cut(timeline.T)
        return (
            f'strategy "{strategy}": {pieces} pieces side by side, {shared}; {drawn} steps of one'
        )
    return f'strategy "{strategy}", {shared}; the first {drawn} step{"s" * (drawn > 1)}'


def _box(x, y, width, height, name, title):
    """A bar whose title a browser shows; named where there is room."""
    fill = COLOURS[name]
    found = (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.3):.1f}" height="{height}" '
        f'fill="{fill}"><title>{escape(title)}</title></rect>'
    )
    label = next((text for text in (title, name) if len(text) * 6.2 < width - 6), "")
    if label:
        ink = INK if name in ("loop", "programs", "reads", "memory", "launches") else "white"
        found += _text(x + 5, y + 15, label, 10.5, ink)
    return found


def _text(x, y, text, size, colour, weight="normal"):
    bold = ' font-weight="bold"' if weight == "bold" else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}"{bold}>'
        f"{escape(text)}</text>"
    )
