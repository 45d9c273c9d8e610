"""The matrix products alone, timed beside the workloads whose layers torch.nn lacks.

    python -m bench.reports.workload_floor            # writes bench/results/workload_floor.md
    python -m bench.reports.workload_floor --print    # prints it

A model that calls the library's products cannot be faster than them. For each case of
``bench.workloads`` that torch.nn has no layer for, the first provider, ``fused_rnn`` and the
products alone take turns in one process: how many times as fast as the first provider would a model
be that did nothing else?
"""

from __future__ import annotations

import argparse
import functools
import re
import statistics
import sys
import timeit
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..progress import Progress
from ..race import environment
from ..race.report import figure
from ..race.timing import Sampler, in_turns, ratios
from ..workloads.rows import geometric_mean
from ..workloads.run import LEAST_ROUNDS, MOST_ROUNDS
from ..workloads.worker import Runner
from ..workloads.workload import FUSED, NAMES, Case, Layer, load

RESULTS = Path(__file__).parents[1] / "results" / "workload_floor.md"
CPU = torch.device("cpu")
BY_STEPS, BY_EPISODES = "by steps", "by episodes"
LARGE, SIDE = "a large product", 1024  # of square matrices, for the rate that the library reaches


class Gates(NamedTuple):
    """How many gates have a product of x, and how many one of h."""

    x: int
    h: int


# By workload and case: the cell of a case's layer is not always that of the model. The forecaster
# is given the products of x, and the EA-LSTM has its input gate before the first step.
GATES = {
    ("ppo", "torchrl, LSTM"): Gates(4, 4),
    ("ppo", "rsl_rl, LSTM"): Gates(4, 4),
    ("ppo", "rsl_rl, GRU"): Gates(3, 3),
    ("forecaster", "B 1"): Gates(0, 4),
    ("forecaster", "B 32"): Gates(0, 4),
    ("forecaster", "B 256"): Gates(0, 4),
    ("dreamer", "T 64"): Gates(3, 3),
    ("dreamer", "T 512"): Gates(3, 3),
    ("hydrology", "EA-LSTM"): Gates(3, 3),
    ("gated_taggers", "LiGRU"): Gates(2, 2),
    ("gated_taggers", "highway LSTM"): Gates(6, 5),
    ("gated_taggers", "variational LSTM"): Gates(4, 4),
}


def cases() -> Iterator[tuple[str, Case]]:
    """The cases that torch.nn lacks, with the names of their workloads."""
    for name in NAMES:
        for case in load(name).cases:
            if not case.in_torch:
                yield name, case


class Products:
    """The products of a layer, in preallocated tensors.

    They are independent of each other here, but run in the order that a recurrence forces: no two
    steps at once.

    Args:
        rows: of each product of h. The first step has none, since the state is zero.

    Attributes:
        flops: operations, by mode.
    """

    def __init__(self, layer: Layer, gates: Gates, rows: Sequence[int]):
        heads, size, both = layer.heads, layer.H // layer.heads, layer.T * layer.B
        once = 2 * layer.H * (both * layer.I * gates.x + sum(rows) * size * gates.h)
        self.flops = {"inference": once, "training": 3 * once}
        self._forward, self._backward = [], []
        after = []
        if gates.x:
            x, dpre = torch.randn(both, layer.I), torch.randn(both, gates.x * layer.H)
            weight = _layouts(torch.randn(layer.I, gates.x * layer.H))
            self._forward.append(_fastest((x, own) for own in weight))
            after.append(_fastest(((dpre.mT, x), (x.mT, dpre))))
            after.append(_fastest((dpre, own.mT) for own in weight))
        h, dpre = torch.randn(heads, sum(rows), size), torch.randn(heads, sum(rows), gates.h * size)
        kernel = _layouts(torch.randn(heads, size, gates.h * size))
        steps = {
            count: (
                _fastest((h[:, :count].contiguous(), own) for own in kernel),
                _fastest((dpre[:, :count].contiguous(), own.mT) for own in kernel),
            )
            for count in set(rows)
        }
        self._forward += [steps[count][0] for count in rows]
        self._backward += [steps[count][1] for count in reversed(rows)]
        after.append(_fastest(((h.mT, dpre), (dpre.mT, h))))
        self._backward += after

    def inference(self) -> None:
        """The product of all x, then that of h in each step."""
        for product in self._forward:
            product()

    def training(self) -> None:
        """Also that of the gates' gradients in each step, then the gradients of W, x and R."""
        self.inference()
        for product in self._backward:
            product()


def _layouts(matrix: Tensor) -> tuple[Tensor, Tensor]:
    return matrix, matrix.mT.contiguous().mT


def _fastest(pairs) -> Callable[[], Tensor]:
    """The product of a pair of matrices, or of stacks of them; of equal pairs the fastest."""
    calls = []
    for a, b in pairs:
        if a.dim() == 3 and len(a) == 1:  # one head
            a, b = a[0], b[0]
        multiply = torch.mm if a.dim() == 2 else torch.bmm
        out = torch.empty(*a.shape[:-1], b.shape[-1])
        calls.append(functools.partial(multiply, a, b, out=out))
    return min(calls, key=lambda call: min(timeit.repeat(call, number=1, repeat=5)))


def orders(case: Case, layer: Layer, inputs: Sequence[Tensor]) -> dict[str, list[int]]:
    """The rows of each product of h, in each order in which the case can be computed.

    Where episodes end inside the rows, they can also be rows of their own, the longest first.
    """
    found = {BY_STEPS: [layer.B] * (layer.T - 1)}
    for reset in inputs:
        if reset.dtype == torch.bool:
            first = reset.clone()
            first[0] = True
            starts = first.t().flatten().nonzero().squeeze(1)
            lengths = torch.diff(starts, append=starts.new_tensor([first.numel()]))
            found[BY_EPISODES] = [int((lengths > t).sum()) for t in range(1, lengths.max())]
    return found


class Row(NamedTuple):
    """Milliseconds of a call, and how many times as fast as the first provider.

    Attributes:
        order: of the products, see ``orders``: the faster one.
        ratio: of ``fused_rnn``.
        bound: of the products alone.
        limit: of their operations at the rate of a large product.
    """

    workload: str
    case: str
    mode: str
    threads: int
    provider: str
    order: str
    first_ms: float
    fused_ms: float
    products_ms: float
    ratio: float
    bound: float
    limit: float


def measure(
    name: str, case: Case, threads: int, seconds: float, tiny: bool = False
) -> Iterator[Row]:
    """The rows of a case, one per mode."""
    sides = {side: Runner(name, side, "cpu", threads, tiny) for side in (case.baseline, FUSED)}
    for runner in sides.values():
        runner.open(case.name)
    (layer,) = case.layers(case.sizes("cpu", tiny))
    gates = GATES[name, case.name]
    rows = orders(case, layer, sides[FUSED].inputs)
    products = {order: Products(layer, gates, rows[order]) for order in rows}
    large = torch.randn(SIDE, SIDE)
    multiply = functools.partial(torch.mm, large, large, out=torch.empty_like(large))
    for mode in case.modes:
        for runner in sides.values():
            runner.prepare(mode)
        samplers = {side: runner.samplers[mode] for side, runner in sides.items()}
        samplers |= {order: Sampler(getattr(own, mode), CPU) for order, own in products.items()}
        samplers[LARGE] = Sampler(multiply, CPU)
        turn = sum(sampler.once * sampler.number for sampler in samplers.values())
        rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds * 1e3 / turn)))
        samples = in_turns(samplers, rounds)
        ms = {side: statistics.median(own) for side, own in samples.items()}
        order = min(products, key=ms.__getitem__)
        ratio, bound, limit = (
            statistics.median(ratios(samples, case.baseline, side))
            for side in (FUSED, order, LARGE)
        )
        limit *= 2 * SIDE**3 / min(own.flops[mode] for own in products.values())
        times = (ms[case.baseline], ms[FUSED], ms[order])
        yield Row(name, case.name, mode, threads, case.baseline, order, *times, ratio, bound, limit)


def report(rows: Sequence[Row], facts: dict, seconds: float) -> str:
    """The page of results."""
    ratio, bound, limit = zip(*((row.ratio, row.bound, row.limit) for row in rows), strict=True)
    beaten = sum(row.fused_ms < row.products_ms for row in rows)
    episodes = sum(row.order == BY_EPISODES for row in rows)
    lines = [
        "# Workloads: the matrix products alone",
        "",
        "Written by `python -m bench.reports.workload_floor`. The rows of",
        "[the workloads](workloads.md) that torch.nn lacks, in float32: how many times as fast as",
        "the first provider would a model be that computed the products of its layer and did",
        f"nothing else? Geometric means of {len(rows)} rows:",
        "",
        f"- `fused_rnn`: {_told(ratio)}",
        f"- Products alone: {_told(bound)}",
        f"- Products alone, or `fused_rnn` where it is faster ({beaten} rows):",
        f"  {_told(tuple(map(max, ratio, bound)))}",
        f"- At the rate of a large product: {_told(limit)}",
        "",
        "**Products alone** are `torch.mm` and `torch.bmm` into preallocated tensors: that of x",
        "with all steps at once, then one of h for each step after the first, one after the other,",
        "with heads and blocks as a batch. Training adds the product with the transposed matrix in",
        "each step, and afterwards the gradients of both matrices and of x. Of two layouts of a",
        "matrix each product has the faster. The EA-LSTM's product of the basins, once per",
        "sequence, is left out. Where episodes end inside a batch, they are also timed as rows of",
        f"their own, and the faster order counts: this one in {episodes} of {len(rows)} rows.",
        "",
        "This is a floor for implementations that call the library's products. A product written",
        "for one recurrence can be faster: it can pack the matrix once for all steps, keep it in",
        "the caches of the cores, or give each thread rows of its own. For these there is **the",
        "rate of a large product**: the same operations as fast as the library multiplies matrices",
        f"of {SIDE} × {SIDE}. Small products, one after the other, hardly come near it.",
        "",
        "All sides take turns in one process; a figure is a median of rounds, a ratio that of the",
        "rounds' ratios. On the page of the workloads each side has its own process, so that its",
        f"milliseconds differ. A row's rounds take {seconds:g} s, but {LEAST_ROUNDS} rounds at",
        "least. Results are compared there, not here.",
        "",
        environment.in_words(facts),
        "",
        "| workload | case | mode | threads | first provider | its ms | fused_rnn, ms "
        "| products, ms | fused_rnn | products alone | at the rate of a large product |",
        f"|{' --- |' * 5}{' --: |' * 6}",
    ]
    for row in rows:
        times = (figure(ms) for ms in (row.first_ms, row.fused_ms, row.products_ms))
        title = load(row.workload).title
        words = (title, row.case, row.mode, str(row.threads), row.provider, *times)
        times_as_fast = (f"{value:.2f}×" for value in (row.ratio, row.bound, row.limit))
        lines.append(f"| {' | '.join((*words, *times_as_fast))} |")
    return "\n".join([*lines, ""])


def _told(values):
    few = sum(value < 3 for value in values)
    return (
        f"{geometric_mean(values):.2f}×, from {min(values):.2f}× to {max(values):.2f}×; "
        f"less than 3× in {few} of {len(values)}."
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a row's rounds; default: 3")
    parser.add_argument("--print", action="store_true", help="print, and write nothing")
    options = parser.parse_args(argv)
    facts = environment.facts(CPU)
    facts.pop("threads")  # a column of the table
    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    facts["products of"] = blas[1] if blas else "unknown"
    rows, given = [], list(cases())
    total = sum(len(case.modes) for _, case in given) * len(options.threads)
    with Progress("rows", total) as progress:
        for threads in options.threads:
            for name, case in given:
                for row in measure(name, case, threads, options.seconds):
                    rows.append(row)
                    progress.step(f"{name}, {row.case}, {row.mode}, threads: {threads}")
    places = [(name, case.name) for name, case in given]
    rows.sort(key=lambda row: places.index((row.workload, row.case)))
    page = report(rows, facts, options.seconds)
    if options.print:
        print(page)
    else:
        RESULTS.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
