"""Draw the data flow of a cell as SVG, from its graph of expressions.

``python docs/_ext/drawings.py build/drawings`` writes a file per built-in cell; the site's build
does the same. Time flows from left to right: the input and the old states, the gates' sums of
products, pointwise operations, the new states. The same cell gives the same bytes.
"""

from __future__ import annotations

import sys
from html import escape
from itertools import pairwise
from pathlib import Path

from algebra import Algebra, Node
from layers import arrange

from fused_rnn import cells
from fused_rnn.cells import Cell

GAP, ROW, MARGIN = 42, 42, 20
SIGNS = {
    "add": "+",
    "sub": "−",
    "mul": "⊙",
    "div": "÷",
    "neg": "−",
    "sigmoid": "σ",
    "relu": "max(0, ·)",
    "reciprocal": "1 / ·",
    "rsqrt": "1 / √·",
    "maximum": "max",
    "minimum": "min",
    "remainder": "mod",
    "greater": ">",
    "less": "<",
    "equal": "=",
    "where": "choose",
}
FOLDED = ("param", "number", "t")
COLORS = {"x": "#dbeafe", "state": "#dcfce7", "stream": "#dbeafe", "gate": "#fef3c7"}
INK, GREY, PALE = "#1f2933", "#52606d", "#f1f5f9"


def draw(cell: Cell) -> str:
    """The data flow of one step of ``cell`` as the text of an SVG."""
    boxes, edges = _boxes(Algebra(cell))
    places = arrange(list(boxes), edges)
    centers, width = _columns(boxes, places)
    height = max(place.row for place in places.values()) * ROW + 26 + 2 * MARGIN
    size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
        f"<title>Data flow of one step of {escape(cell.name)}</title>",
        '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"'
        f' orient="auto"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>',
        f'<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="white"/>',
    ]

    def point(place):
        return centers[int(place.column)], MARGIN + 13 + place.row * ROW

    for start, end in edges:
        bends = [point(place) for place in places[start].bends[end]]
        (left, top), (right, bottom) = point(places[start]), point(places[end])
        left, right = left + _width(boxes[start][0]) / 2, right - _width(boxes[end][0]) / 2 - 1
        out.append(_edge([(left, top), *bends, (right, bottom)]))
    out += [_box(*point(places[key]), *boxes[key]) for key in boxes]
    return "\n".join([*out, "</svg>", ""])


def _columns(boxes, places) -> tuple[list[float], float]:
    """The middle of each column, as wide as its widest box, and the width of all."""
    widths = [0.0] * (1 + max(int(place.column) for place in places.values()))
    for key, (text, _) in boxes.items():
        column = int(places[key].column)
        widths[column] = max(widths[column], _width(text))
    left, centers = float(MARGIN), []
    for width in widths:
        centers.append(left + width / 2)
        left += width + GAP
    return centers, left - GAP + MARGIN


def _boxes(algebra: Algebra) -> tuple[dict, list]:
    """Per box its text and colour, and the pairs that an arrow joins.

    Learned vectors and numbers are written into the operations that take them. A state's new value
    is a box of its own at the end.
    """
    cell, boxes, edges = algebra.cell, {}, []
    if any(node.kind == "gate" and node.name in cell.x_gates for node in algebra.nodes):
        boxes["x"] = ("x(t)", COLORS["x"])
    for node in algebra.nodes:
        if node.kind in FOLDED:
            continue
        boxes[node] = (_label(cell, node), COLORS.get(node.kind, PALE))
        if node.kind == "gate" and node.name in cell.x_gates:
            edges.append(("x", node))
        edges += [(i, node) for i in dict.fromkeys(node.inputs) if i.kind not in FOLDED]
    for name, node in algebra.states.items():
        boxes[name, "new"] = (f"{name}(t)", COLORS["state"])
        if node.kind not in FOLDED:
            edges.append((node, (name, "new")))
    return boxes, edges


def _label(cell: Cell, node: Node) -> str:
    if node.kind == "gate":
        x = "x" if node.name in cell.raw_gates else "W x" * (node.name in cell.x_gates)
        return f"{node.name}: {' + '.join(filter(None, [x, 'R ·' * bool(node.inputs)]))}"
    if node.kind in ("state", "stream"):
        return f"{node.name}(t−1)" if node.kind == "state" else f"{node.name}(t)"
    sign = SIGNS.get(node.kind, node.kind)
    folded = [i.name or "t" if i.kind in FOLDED else "" for i in node.inputs]
    if not any(folded):
        return "·²" if node.kind == "mul" and len(set(node.inputs)) == 1 else sign
    if node.kind == "where":
        return sign + "".join(f", {name}" for name in folded if name)
    return f" {sign} ".join(folded).strip() if len(folded) > 1 else f"{sign} {folded[0]}"


def _width(text: str) -> float:
    return max(30, 7.6 * len(text) + 14)


def _box(x: float, y: float, text: str, color: str) -> str:
    width = _width(text)
    return (
        f'<rect x="{x - width / 2:.1f}" y="{y - 13:.1f}" width="{width:.1f}" height="26" rx="9"'
        f' fill="{color}" stroke="{INK}"/><text x="{x:.1f}" y="{y + 4.5:.1f}" text-anchor="middle"'
        f' fill="{INK}">{escape(text)}</text>'
    )


def _edge(points: list[tuple[float, float]]) -> str:
    path = "M{:.1f} {:.1f}".format(*points[0])
    for (left, top), (right, bottom) in pairwise(points):
        middle = (left + right) / 2
        path += f"C{middle:.1f} {top:.1f} {middle:.1f} {bottom:.1f} {right:.1f} {bottom:.1f}"
    return f'<path d="{path}" fill="none" stroke="{GREY}" marker-end="url(#a)"/>'


def write_all(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in cells.names():
        (folder / f"{name}.svg").write_text(draw(cells.get(name)), encoding="utf-8")


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
