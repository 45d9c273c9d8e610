"""Draws the picture of the README: ``python docs/images/how_it_works.py``."""

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, GREY = "#1f2933", "#52606d"
BLUE, GREEN, AMBER, PALE = "#dbeafe", "#dcfce7", "#fef3c7", "#f1f5f9"


def box(axes, left, bottom, width, height, title, text, color, family="DejaVu Sans"):
    style = "round,pad=0,rounding_size=0.1"
    patch = FancyBboxPatch((left, bottom), width, height, boxstyle=style, fc=color, ec=INK, lw=1.1)
    axes.add_patch(patch)
    x, top = left + 0.17, bottom + height - 0.17
    axes.text(x, top, title, va="top", weight="bold", size=12, color=INK)
    axes.text(x, top - 0.36, text, va="top", size=9.5, color=INK, family=family, linespacing=1.45)


def arrow(axes, start, end, label="", bend="arc3"):
    style = FancyArrowPatch(
        start,
        end,
        arrowstyle="-|>",
        mutation_scale=14,
        lw=1.3,
        color=GREY,
        shrinkA=3,
        shrinkB=3,
        connectionstyle=bend,
    )
    axes.add_patch(style)
    if label:
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axes.text(x, y + 0.1, label, ha="center", size=10, color=GREY, style="italic")


def draw():
    figure, axes = plt.subplots(figsize=(12, 6.2), facecolor="white")
    axes.set(xlim=(0, 12), ylim=(0, 6.2))
    axes.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    mono = "DejaVu Sans Mono"

    def note(x, y, text):
        axes.text(x, y, text, size=10, color=GREY, style="italic", va="center")

    note(0.2, 6.0, "once for each cell")
    cell = (
        "def ugrnn(pre, state):\n"
        "    n, u = pre\n"
        "    (h,) = state\n"
        "    u = sigmoid(u)\n"
        "    return u*h + (1-u)*tanh(n)"
    )
    box(axes, 0.2, 3.95, 3.15, 1.85, "The cell, in PyTorch", cell, BLUE, mono)
    graphs = "pointwise operations\n– of the function\n– of its vector-Jacobian\n   product"
    box(axes, 4.6, 3.95, 2.6, 1.85, "Two graphs", graphs, PALE)
    triton = "@triton.jit\ndef step(pre, state, ...): ...\n\n@triton.jit\ndef step_vjp(...): ..."
    box(axes, 8.4, 3.95, 3.4, 1.85, "Printed Triton", triton, PALE, mono)
    arrow(axes, (3.35, 4.87), (4.6, 4.87), "record")
    arrow(axes, (7.2, 4.87), (8.4, 4.87), "print")

    axes.plot((0.2, 11.8), (3.4, 3.4), color="#cbd2d9", lw=1, ls=(0, (4, 3)))
    note(0.2, 3.2, "at each call")
    note(8.85, 3.66, "compile-time arguments")
    arrow(axes, (8.7, 3.95), (8.7, 2.95))

    box(axes, 0.2, 1.7, 2.9, 1.25, "GEMM", "x · Wᵀ + b over all T·B\nrows, before the loop", AMBER)
    loop = "for t in 0 ... T-1:\n    pre = x + R·h;  h, ... = step(pre, ...)"
    box(axes, 4.0, 1.7, 4.95, 1.25, "One forward kernel", loop, GREEN, mono)
    box(axes, 9.8, 1.7, 2.0, 1.25, "Saved", "pre and the states,\nnothing else", PALE)
    arrow(axes, (3.1, 2.32), (4.0, 2.32))
    arrow(axes, (8.95, 2.32), (9.8, 2.32))

    loop = "for t in T-1 ... 0:\n    dh = dy + Rᵀ·dpre;  dpre, ... = step_vjp(dh, ...)"
    box(axes, 4.0, 0.2, 4.95, 1.25, "One backward kernel", loop, GREEN, mono)
    text = "dx, dW, dR, db over all T·B\nrows, after the loop"
    box(axes, 0.2, 0.2, 2.9, 1.25, "GEMMs", text, AMBER)
    arrow(axes, (10.8, 1.7), (8.95, 0.82), bend="angle,angleA=-90,angleB=0,rad=0")
    arrow(axes, (4.0, 0.82), (3.1, 0.82))
    return figure


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "fused_rnn"
    folder = Path(__file__).parent
    figure = draw()
    figure.savefig(folder / "how-it-works.svg", metadata={"Date": None})
    figure.savefig(folder / "how-it-works.png", dpi=150)
