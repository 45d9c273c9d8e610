"""Write the page and the plot of the results of variants.py.

python examples/variants_report.py bench/results/variants    # again, from results.json
"""

from __future__ import annotations

import argparse
import statistics
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import torch

sys.path.append(str(Path(__file__).parents[1]))  # for bench
import variants
from char_lm_peers import progress_bar as progress_bar
from variants import TASKS

from bench.race import environment

COLORS = {"lstm": "#b3261e", "peephole_lstm": "#e07a1f", "gru": "#1f6fc0", "rnn_tanh": "#2e8b57"}
GREFF = "[Greff et al. 2015](https://arxiv.org/abs/1503.04069)"
JOZEFOWICZ = "[Jozefowicz et al. 2015](https://proceedings.mlr.press/v37/jozefowicz15.html)"


@dataclass(frozen=True)
class Claim:
    """What a paper found: how some cells compare with another, by the relations that agree."""

    paper: str
    words: str
    cells: tuple[str, ...]
    other: str
    agrees: tuple[str, ...]


OF_GREFF = ("cifg_lstm", "np_lstm", "fgr_lstm", "nig_lstm", "nfg_lstm", "nog_lstm", "niaf_lstm")
OF_GREFF += ("noaf_lstm",)
RELATIONS = ("better", "same", "worse")
NOT_BETTER, NOT_WORSE = ("same", "worse"), ("same", "better")
CLAIMS = (
    Claim(GREFF, "No variant is better.", OF_GREFF, "peephole_lstm", NOT_BETTER),
    Claim(
        GREFF,
        "Coupled gates and no peepholes do not hurt.",
        ("cifg_lstm", "np_lstm"),
        "peephole_lstm",
        NOT_WORSE,
    ),
    Claim(
        GREFF,
        "It hurts most to remove the forget gate or the output activation.",
        ("nfg_lstm", "noaf_lstm"),
        "peephole_lstm",
        ("worse",),
    ),
    Claim(
        GREFF,
        "It hurts, but for music, to remove the input gate, output gate or input activation.",
        ("nig_lstm", "nog_lstm", "niaf_lstm"),
        "peephole_lstm",
        ("worse",),
    ),
    Claim(
        GREFF, "Full gate recurrence changes nothing.", ("fgr_lstm",), "peephole_lstm", ("same",)
    ),
    Claim(
        JOZEFOWICZ,
        "A forget bias of 1 makes the LSTM better.",
        ("lstm_forget_bias_1",),
        "lstm",
        ("better",),
    ),
    Claim(
        JOZEFOWICZ,
        "With it the LSTM is as good as the GRU.",
        ("lstm_forget_bias_1",),
        "gru",
        NOT_WORSE,
    ),
    Claim(
        JOZEFOWICZ, "The GRU is better than the LSTM, but for text.", ("gru",), "lstm", ("better",)
    ),
    Claim(
        JOZEFOWICZ,
        "Their best finds are as good as the GRU.",
        ("mut1", "mut2", "mut3"),
        "gru",
        NOT_WORSE,
    ),
    Claim(JOZEFOWICZ, "The output gate matters least.", ("nog_lstm",), "peephole_lstm", NOT_WORSE),
    Claim(JOZEFOWICZ, "The RNN is worse than the gated cells.", ("rnn_tanh",), "gru", ("worse",)),
)


@dataclass
class Entry:
    """The scores of a cell on a problem at the rate that was chosen."""

    rate: float
    units: int
    parameters: int
    scores: list[float] = field(default_factory=list)
    diverged: int = 0

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores) if self.scores else float("inf")

    def __str__(self) -> str:
        lost = f", {self.diverged} diverged" if self.diverged else ""
        if not self.scores:
            return lost.removeprefix(", ")
        return f"{self.mean:.3g} ({min(self.scores):.3g} to {max(self.scores):.3g}{lost})"


def collect(results: dict) -> dict[str, dict[str, Entry]]:
    """By problem and cell the scores of all seeds; of several lengths of training, the longest."""
    groups: dict[tuple, dict] = {}
    for key, run in results["runs"].items():
        name, title, rate, seed, steps = key.split(" ")
        groups.setdefault((name, title), {})[int(steps), float(rate), int(seed)] = run
    found: dict[str, dict[str, Entry]] = {title: {} for title in TASKS}
    for (name, title), runs in groups.items():
        longest = max(steps for steps, _, _ in runs)
        first = {r: run for (steps, r, seed), run in runs.items() if (steps, seed) == (longest, 0)}
        rate = variants.choose_rate(first)
        entry = Entry(rate, first[rate]["units"], first[rate]["parameters"])
        for (steps, of, _), run in runs.items():
            if (steps, of) == (longest, rate):
                if run["score"] is None:
                    entry.diverged += 1
                else:
                    entry.scores.append(run["score"])
        found[title][name] = entry
    return {title: entries for title, entries in found.items() if entries}


def compare(one: Entry, other: Entry) -> str:
    """ "better" where every seed of one is better than every seed of the other, and so on."""
    if min(len(e.scores) + e.diverged for e in (one, other)) < 3:
        return "too few seeds"
    ours, theirs = (e.scores + [float("inf")] * e.diverged for e in (one, other))
    if max(ours) < min(theirs):
        return "better"
    return "worse" if min(ours) > max(theirs) else "same"


def claims(paper: str, found: dict[str, dict[str, Entry]]) -> list[str]:
    """A section in Markdown: what a paper found, each pair of cells, each problem."""
    rows, agreed, compared = [], 0, 0
    for claim in CLAIMS:
        for name in claim.cells if claim.paper == paper else ():
            told = []
            for entries in found.values():
                both = [entries[n] for n in (name, claim.other) if n in entries]
                relation = compare(*both) if len(both) == 2 else "not run"
                if relation in RELATIONS:
                    agrees = relation in claim.agrees
                    agreed, compared = agreed + agrees, compared + 1
                    relation += ", agrees" if agrees else ", **does not agree**"
                told.append(relation)
            pair = f"`{name}` to `{claim.other}`"
            rows.append(f"| {claim.words} | {pair} | {' | '.join(told)} |")
    return [
        f"### {paper}",
        "",
        f"{agreed} of {compared} comparisons agree.",
        "",
        f"| what they found | compared | {' | '.join(found)} |",
        f"| --- | --- |{' --- |' * len(found)}",
        *rows,
        "",
    ]


def write(out: Path, results: dict) -> Path:
    """Write README.md and variants.png; returns the path of the page."""
    found = collect(results)
    draw(out / "variants.png", found)
    page = out / "README.md"
    page.write_text("\n".join(text(results, found)) + "\n", "utf-8")
    return page


def text(results: dict, found: dict[str, dict[str, Entry]]) -> list[str]:
    runs, starts = results["runs"].values(), [s for s in results["starts"] if s.get("runs")]
    machines = dict.fromkeys(map(_machine, starts))
    minutes = sum(run["seconds"] for run in runs) / 60
    waited = sum(start["minutes"] for start in starts)
    places: dict[str, list[int]] = {}
    for entries in found.values():
        for place, name in enumerate(sorted(entries, key=lambda name: entries[name].mean)):
            places.setdefault(name, []).append(place + 1)
    lines = [
        "# Every cell on three small problems",
        "",
        *_wrapped(
            "Written by `python examples/variants.py --out bench/results/variants`. The scale is "
            "**small**: models of thousands of parameters and hundreds of updates, as below. It "
            "shows how quickly cells begin to learn, not what they reach in the end."
        ),
        "",
        *machines,
        f"{len(runs)} runs on one thread each: {minutes:.0f} minutes of a core in all, "
        f"{waited:.0f} minutes by the clock.",
        "",
        "![Scores of every cell](variants.png)",
        "",
        "## The problems",
        "",
        "| problem | score, less is better | without learning | parameters of a model | updates |",
        "| --- | --- | --: | --: | --: |",
    ]
    steps = {}
    for key in results["runs"]:
        _, title, _, _, taken = key.split(" ")
        steps[title] = max(int(taken), steps.get(title, 0))
    for title in found:
        task = TASKS[title]
        chance = "" if task.chance is None else f"{task.chance:.3g}"
        lines.append(
            f"| {title} | {task.unit} | {chance} | {task.parameters:,} | {steps[title]:,} |"
        )
    every = [entry for entries in found.values() for entry in entries.values()]
    rates = " or ".join(f"{rate:g}" for rate in sorted({entry.rate for entry in every}))
    seeds = {len(entry.scores) + entry.diverged for entry in every}
    seeds = " to ".join(map(str, sorted({min(seeds), max(seeds)})))
    lines += [
        "",
        *_wrapped(
            "`examples/variants.py` has the sizes. Each model has one recurrent layer, with as "
            "many units as bring the whole model nearest to the number of parameters. The weights "
            f"begin as those of `Recurrent` do. Adam with a rate of {rates}: the one with which "
            "the first seed does best on data that are not scored. `lstm_forget_bias_1` is the "
            "LSTM whose forget gate has a bias of 1 at first."
        ),
        "",
        "## The scores",
        "",
        *_wrapped(
            f"Mean and range over the seeds ({seeds} of them), and in brackets the units. The "
            "cells are in the order of their mean place."
        ),
        "",
        f"| cell | {' | '.join(found)} |",
        f"| --- |{' --- |' * len(found)}",
    ]  # fmt: skip
    for name in sorted(places, key=lambda name: statistics.mean(places[name])):
        of = [entries.get(name) for entries in found.values()]
        told = [f"{entry} [{entry.units}]" if entry else "" for entry in of]
        lines.append(f"| `{name}` | {' | '.join(told)} |")
    lines += [
        "",
        "## Beside two papers",
        "",
        *_wrapped(
            "A cell is *better* than another where each of its seeds does better than each of the "
            "other's, *worse* where each does worse, and else the *same*. With three seeds of each "
            "one of ten comparisons of equal cells would not say *same*. The papers trained "
            "larger models to the end and searched their settings: what does not agree here does "
            "not refute them."
        ),
        "",
        *claims(GREFF, found),
        *claims(JOZEFOWICZ, found),
    ]
    return lines[:-1]


def _wrapped(words: str) -> list[str]:
    return textwrap.wrap(words, 100, break_long_words=False, break_on_hyphens=False)


def _machine(start: dict) -> str:
    about = {name: value for name, value in start.items() if name not in ("minutes", "runs")}
    return environment.in_words(about)


def draw(path: Path, found: dict[str, dict[str, Entry]]) -> None:
    """A panel per problem: the cells from best to worst, each seed a dot and the mean a line."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = max(map(len, found.values()))
    size = (4.6 * len(found), 1.6 + 0.19 * rows)
    figure, axes = plt.subplots(1, len(found), figsize=size, layout="constrained", squeeze=False)
    for axis, (title, entries) in zip(axes[0], found.items(), strict=True):
        task = TASKS[title]
        names = sorted(entries, key=lambda name: entries[name].mean)
        worst = max((e.mean for e in entries.values() if e.scores), default=1.0)
        limit = worst if task.chance is None else 1.6 * task.chance
        for y, name in enumerate(names):
            entry, color = entries[name], COLORS.get(name, "#555555")
            scores = [min(score, limit) for score in entry.scores] or [limit]
            axis.plot(scores, [y] * len(scores), "-", color=color, lw=1, alpha=0.5)
            axis.plot(scores, [y] * len(scores), "o", color=color, ms=3.5, alpha=0.6, mew=0)
            axis.plot(min(entry.mean, limit), y, "|", color=color, ms=9, mew=2)
        if task.chance is not None:
            axis.axvline(task.chance, color="#888888", lw=1, ls=(0, (4, 3)), zorder=0)
        if title != "copying":  # their scores are far apart
            axis.set_xscale("log")
            axis.xaxis.set_minor_formatter("")
        if title == "characters":  # all within a power of ten
            axis.set_xticks((3, 5, 10), ("3", "5", "10"))
        axis.set(ylim=(len(names) - 0.4, -0.6), xlabel=task.unit, title=title)
        axis.set_yticks(range(len(names)), names, fontsize=7.5)
        for label in axis.get_yticklabels():
            if label.get_text() in COLORS:
                label.set(color=COLORS[label.get_text()], weight="bold")
        axis.grid(axis="y", alpha=0.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        "Every cell on three small problems, less is better "
        "(dots: seeds, ticks: means, dashed: without learning)",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)


def facts() -> dict:
    """What the figures depend on besides the code."""
    found = environment.facts(torch.device("cpu"))
    names = ("cpu", "cores", "python", "torch", "fused_rnn", "commit", "date", "load")
    return {name: found[name] for name in names}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    print(write(out, variants.load(out)))
