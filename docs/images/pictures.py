"""Draws the pictures of docs/how-it-works.md: ``python docs/images/pictures.py``."""

from html import escape
from pathlib import Path

INK, GREY, LINE = "#1f2933", "#52606d", "#cbd2d9"
BLUE, GREEN, AMBER, PALE, RED = "#dbeafe", "#dcfce7", "#fef3c7", "#f1f5f9", "#b91c1c"


class Picture:
    """An SVG that grows by boxes, lines and texts."""

    def __init__(self, width: int, height: int, title: str):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="a" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
            f' markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker>'
            "</defs>",
            f'<rect width="{width}" height="{height}" rx="8" fill="white"/>',
        ]

    def text(self, x, y, text, size=12, color=INK, anchor="start", weight="normal"):
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" fill="{color}" text-anchor="{anchor}"'
            f' font-weight="{weight}">{escape(text)}</text>'
        )

    def box(self, x, y, width, height, color, text="", size=11):
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{color}"'
            f' stroke="{INK}" stroke-width="0.8"/>'
        )
        for i, line in enumerate(text.split("\n") if text else []):
            middle = y + height / 2 + 4 + (i - text.count("\n") / 2) * (size + 3)
            self.text(x + width / 2, middle, line, size, INK, "middle")

    def line(self, x, y, to_x, to_y, color=GREY, arrow=False, dash=""):
        end = ' marker-end="url(#a)"' if arrow else ""
        dash = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{to_y}" stroke="{color}"{dash}{end}/>'
        )

    def __str__(self):
        return "\n".join([*self.parts, "</svg>", ""])


def strategies() -> Picture:
    picture = Picture(980, 640, "What programs do in the course of a call, by strategy")
    left, step = 310, 125

    def head(y, name, *notes):
        picture.text(20, y + 18, name, 14, weight="bold")
        for i, note in enumerate(notes):
            picture.text(20, y + 36 + 15 * i, note, 11, GREY)

    def programs(y, count, width, color, first="", gap=0.0):
        """Rows of steps; ``gap`` is what lies between two steps of a program."""
        for row in range(count):
            picture.text(left - 8, y + 17 + 24 * row, f"program {row}", 10, GREY, "end")
            for t in range(4):
                label = f"{first}step {t}" if row == 0 else ""
                picture.box(left + 64 + t * step, y + 24 * row + 3, width - gap, 18, color, label)

    picture.text(left + 64, 24, "time →", 12, GREY)
    picture.line(left + 64, 32, 950, 32, LINE)

    y = 44
    head(y, "resident", "one launch, nobody waits;", "the weights stay on one", "multiprocessor")
    picture.box(left, y + 3, 60, 18, AMBER, "weights")
    picture.box(left, y + 27, 60, 18, AMBER, "weights")
    programs(y, 2, step, GREEN)
    picture.text(left + 64, y + 66, "each program: a tile of batch rows with all units", 11, GREY)

    y = 138
    head(y, "grid", "one launch; a barrier after", "each part of a step")
    for row in range(3):
        picture.box(left, y + 3 + 24 * row, 60, 18, AMBER, "its slice")
    programs(y, 3, step, GREEN, gap=16)
    for t in range(4):
        x = left + 64 + t * step + step - 8
        picture.line(x, y, x, y + 74, RED)
    picture.text(
        left + 64, y + 90, "each program: a slice of the units; red: the barrier", 11, GREY
    )

    y = 250
    head(y, "stream", "as grid, but weights that do", "not fit are read at each step")
    for row in range(3):
        for t in range(4):
            x = left + 64 + t * step
            picture.box(x, y + 3 + 24 * row, 34, 18, AMBER, "read" if row == 0 else "")
            picture.box(x + 34, y + 3 + 24 * row, step - 50, 18, GREEN, f"step {t}" * (row == 0))
            picture.line(x + step - 8, y, x + step - 8, y + 74, RED)
        picture.text(left - 8, y + 17 + 24 * row, f"program {row}", 10, GREY, "end")

    y = 350
    head(y, "step", "a launch for each part of", "a step; its end is the barrier")
    for t in range(4):
        x = left + 64 + t * step
        picture.box(x, y, 22, 76, PALE, "L")
        for row in range(3):
            picture.box(x + 24, y + 3 + 24 * row, step - 32, 18, GREEN, f"step {t}" * (row == 0))
    picture.text(left + 64, y + 92, "L: a launch, which takes longer than a barrier", 11, GREY)

    y = 466
    head(y, "scan", "cells without products: rows and", "units need nothing of each other")
    programs(y, 2, step, BLUE)

    y = 540
    head(y, "parallel_scan", "cells that are linear in their", "states: pieces of the time at once")
    for row in range(3):
        steps = f"piece {row}: its map A s + b"
        picture.box(left + 64, y + 3 + 24 * row, 168, 18, BLUE, steps)
        picture.box(left + 336, y + 3 + 24 * row, 168, 18, BLUE, f"piece {row}, from its state")
        picture.text(left - 8, y + 17 + 24 * row, f"program {row}", 10, GREY, "end")
    picture.box(left + 244, y + 3, 80, 66, PALE, "compose\nthe maps")
    return picture


def layouts() -> Picture:
    picture = Picture(980, 400, "Where values lie in the kernels with explicit layouts")

    picture.text(20, 28, "resident: a program owns all units", 14, weight="bold")
    picture.text(20, 48, "gates = R · hᵀ, units along M, batch rows along N", 11, GREY)
    for warp in range(4):
        y = 66 + 44 * warp
        picture.box(20, y, 150, 38, AMBER, f"warp {warp}: R of 16 units,\nevery gate, in registers")
        picture.box(196, y, 110, 38, GREEN, "16 units × 8 rows\nof each gate")
        picture.line(172, y + 19, 194, y + 19, arrow=True)
        picture.line(308, y + 19, 338, y + 19, arrow=True)
    picture.box(340, 66, 90, 170, BLUE, "h in shared\nmemory, two\nplaces in\nturns")
    picture.line(385, 238, 385, 262)
    picture.line(385, 262, 95, 262)
    picture.line(95, 262, 95, 240, arrow=True)
    picture.text(240, 278, "one barrier a step, then all warps read h(t)", 11, GREY, "middle")

    picture.text(20, 318, "one thread of a warp", 12, weight="bold")
    picture.box(20, 330, 92, 24, GREEN, "unit 2m")
    picture.box(20, 356, 92, 24, GREEN, "unit 2m + 1")
    picture.box(116, 330, 92, 24, PALE, "rows 2n, 2n + 1")
    picture.box(116, 356, 92, 24, PALE, "rows 2n, 2n + 1")
    picture.text(220, 346, "rows of R are permuted when loaded:", 11, GREY)
    picture.text(220, 361, "a thread has neighbouring units, 4 bytes", 11, GREY)
    picture.text(220, 376, "of bfloat16; eight threads, a sector", 11, GREY)

    picture.line(470, 20, 470, 385, LINE)
    picture.text(490, 28, "grid: a program owns a slice of the units", 14, weight="bold")
    picture.text(490, 48, "8 or 16 units; the warps split the inner dimension", 11, GREY)
    picture.box(
        490,
        66,
        120,
        170,
        BLUE,
        "h of all units\nin the L2 cache,\nas fragments:\nin the order of\nan operand",
    )
    for warp in range(4):
        y = 66 + 44 * warp
        picture.line(612, y + 19, 638, y + 19, arrow=True)
        picture.box(640, y, 110, 38, AMBER, f"warp {warp}: its part\nof R, registers")
        picture.line(752, y + 19, 778, y + 19, arrow=True)
    picture.box(780, 66, 84, 170, PALE, "partial\nsums meet\nin shared\nmemory")
    picture.line(866, 151, 888, 151, arrow=True)
    picture.box(890, 66, 70, 170, GREEN, "step of\nthe slice,\npointwise")
    picture.line(925, 238, 925, 262)
    picture.line(925, 262, 550, 262)
    picture.line(550, 262, 550, 240, arrow=True)
    picture.text(
        690, 278, "store its slice of h(t), arrive at the barrier, wait", 11, GREY, "middle"
    )
    picture.text(490, 330, "What only a backward or the caller reads (states, gates) is", 11, GREY)
    picture.text(
        490, 346, "stored after the arrival. The loads of x(t+1) are issued before", 11, GREY
    )
    picture.text(490, 362, "the wait. Every load of h takes whole sectors of 32 bytes.", 11, GREY)
    return picture


if __name__ == "__main__":
    for draw in (strategies, layouts):
        path = Path(__file__).with_name(f"{draw.__name__}.svg")
        path.write_text(str(draw()), encoding="utf-8")
