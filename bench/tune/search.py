"""Search the rows of a table of plans by examining compiled kernels, without a GPU or Triton.

Every row of a small space (``SPACE``) is initially assumed valid for every size that fits. The
launches that ``plan`` then chooses for the layers of a grid, by the model of
``fused_rnn/plan/cost.py``, are compiled and examined. A kernel with faults narrows its row: to
fewer hidden units, units of a program or values of these: the limit that excludes the fewest
layers. Then ``plan`` chooses again. The search ends when all launches that it chooses for the grid,
of every strategy, are free of faults. Rows that it never chooses are left out. If programs own more
units in larger layers, a row is limited to the most units that were examined.

So only a few of all combinations are ever compiled. Not examined are sizes between those of the
grid and beyond the largest, two directions, and cells outside the grid.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from fused_rnn import cells, plan
from fused_rnn.plan.chips import STRATEGIES, Chip, Launch, Row

from ..machine_code.grid import BATCHES, CELLS, DTYPES, HIDDEN, products_of, torch_dtype
from ..progress import Progress


def _rows(itemsize, strategies, *blocks) -> list[Row]:
    """Rows of a space.

    Args:
        blocks: each (block_b, block_h, block_k, the values of num_warps to try), and where they
            differ backward_k and exact_warps; see ``Launch``.
    """

    def row(strategy, block_b, block_h, block_k, warps, backward_k=None, exact_warps=None):
        options = {"backward_k": backward_k, "exact_warps": exact_warps}
        return Row(itemsize, Launch(strategy, block_b, block_h, block_k, warps, **options))

    return [
        row(strategy, block_b, block_h, block_k, warps, *others)
        for strategy in strategies
        for block_b, block_h, block_k, all_warps, *others in blocks
        for warps in all_warps
    ]


def _explicit(itemsize) -> list[Row]:
    """The rows of the kernels with explicit layouts."""
    launches = [Launch("resident", 8, u, u, u // 16, explicit=True) for u in (16, 32, 64, 128, 256)]
    launches += [
        Launch("grid", rows, units, 64, warps, backward_warps=8, explicit=True)
        for rows, units, warps in itertools.product((16, 32), (8, 16), (4, 8))
        if (rows, warps) != (32, 4)
    ]
    two = {"backward_h": 16, "backward_warps": 8, "per_multiprocessor": 2}
    launches.append(Launch("grid", 16, 8, 64, 4, explicit=True, **two))
    return [Row(itemsize, launch) for launch in launches]


# The searched rows. Among rows that the model cannot distinguish, earlier ones are preferred.
SPACE = (
    *_explicit(2),
    *_explicit(4),
    *_rows(2, ["resident"], (16, 32, 32, (4, 2)), (16, 64, 64, (4, 8)), (16, 128, 128, (8, 4))),
    *_rows(2, ["grid"], (16, 16, 128, (2,), 128), (16, 16, 128, (2, 4), 256)),
    *_rows(2, ["grid"], (16, 32, 128, (4, 2), 256), (16, 32, 128, (4,), 128)),
    *_rows(2, ["grid"], (16, 16, 64, (2,), 128), (16, 16, 64, (4,), 256)),
    *_rows(2, ["grid"], (32, 16, 128, (4, 2), 256), (32, 16, 128, (4,), 128)),
    *_rows(2, ["grid"], (32, 32, 128, (8, 4), 256)),
    *_rows(2, ["stream", "step"], (16, 16, 64, (2,)), (16, 32, 64, (4,)), (32, 32, 64, (4, 8))),
    *_rows(2, ["stream", "step"], (64, 16, 64, (8, 4)), (64, 32, 64, (8,))),
    *_rows(4, ["resident"], (16, 32, 32, (8, 4), None, 16), (16, 16, 16, (4,))),
    *_rows(4, ["grid"], (16, 16, 64, (4, 2), 128, 8), (16, 16, 32, (4,), 128, 8)),
    *_rows(4, ["grid"], (16, 32, 64, (8,), 128)),
    *_rows(4, ["stream", "step"], (32, 32, 32, (8, 4)), (16, 32, 32, (4, 8))),
    *_rows(8, ["resident"], (16, 32, 32, (8, 4))),
    *_rows(8, ["grid"], (16, 16, 32, (4, 8))),
    *_rows(8, ["stream", "step"], (16, 32, 16, (4, 8))),
)


class Probe(NamedTuple):
    """A forward and a backward to compile, for any number of concurrent batch tiles."""

    cell: str
    dtype: str
    H: int
    launch: Launch

    def __str__(self):
        la = self.launch
        blocks = f"{la.block_b}x{la.own}·{la.block_h}/{la.block_k}, {la.num_warps} warps"
        return f"{self.cell} {self.dtype} H {self.H} {la.strategy} {blocks}"


@dataclass(frozen=True)
class Grid:
    """The layers that plans are made for."""

    cells: tuple[str, ...] = CELLS
    dtypes: tuple[str, ...] = tuple(itertools.chain(*DTYPES.values()))
    hidden: tuple[int, ...] = HIDDEN
    batches: tuple[int, ...] = BATCHES

    @property
    def itemsizes(self) -> tuple[int, ...]:
        """The sizes of an element, in bytes, of the dtypes."""
        return tuple(size for size, names in DTYPES.items() if set(names) & set(self.dtypes))

    def layers(self, itemsize: int | None = None):
        """Yield (cell, dtype, H)."""
        return (
            layer
            for layer in itertools.product(self.cells, self.dtypes, self.hidden)
            if itemsize is None or layer[1] in DTYPES[itemsize]
        )


@dataclass(frozen=True)
class Found:
    """
    Args:
        table: the table with the rows found for the requested chips.
        unseen: by chip, the probes that ``plan`` chooses but that were not examined.
        faults: by chip, the examined probes with faults, and their descriptions.
    """

    table: dict[str, Chip]
    unseen: dict[str, tuple[Probe, ...]]
    faults: dict[str, dict[Probe, tuple[str, ...]]]


# The faults of a probe by chip; chips that are missing were not examined.
Examine = Callable[[Probe, list[str]], dict[str, Iterable[str]]]


def search(
    table: dict[str, Chip],
    names: Iterable[str],
    examine: Examine,
    grid: Grid = Grid(),
    space: Iterable[Row] | None = SPACE,
) -> Found:
    """Search rows for the chips of these names. Rows of other element sizes stay.

    The result depends only on the arguments and on the results of ``examine``.

    Args:
        space: the rows to choose from. None checks each chip's own rows, and narrows those that
            have faults.
    """
    seen: dict[str, dict[Probe, tuple[str, ...]]] = {name: {} for name in names}
    unseen: dict[str, set[Probe]] = {name: set() for name in seen}
    chips, chosen = {}, {}
    for turn in itertools.count(1):
        for name, known in seen.items():
            begin = table[name].rows if space is None else space
            rows = _narrowed(table[name], begin, grid, known)
            if name not in chips or chips[name].rows != rows:
                chips[name] = dataclasses.replace(table[name], rows=rows)
                chosen[name] = _choices(chips[name], grid)
        wanted = defaultdict(list)
        for name, probes in chosen.items():
            for probe in probes:
                if probe not in seen[name] and probe not in unseen[name]:
                    wanted[probe].append(name)
        if not wanted:
            break
        # Small kernels first, since they compile in the least time.
        with Progress(f"launches, round {turn}", len(wanted)) as progress:
            for probe, lacking in sorted(wanted.items(), key=lambda item: item[0].H):
                answers = examine(probe, lacking)
                for name in lacking:
                    if name in answers:
                        seen[name][probe] = tuple(answers[name])
                    else:
                        unseen[name].add(probe)
                progress.step(f"{probe} on {' '.join(lacking)}")
    result = dict(table)
    for name, chip in chips.items():
        rows = chip.rows if space is None else _bounded(chip.rows, chosen[name])
        result[name] = _with(table[name], rows, grid)
    return Found(
        result,
        {name: tuple(p for p in chosen[name] if p in unseen[name]) for name in seen},
        {name: {p: words for p, words in found.items() if words} for name, found in seen.items()},
    )


def limited(row: Row, probes: dict[tuple[int, int, int], bool | None]) -> Row | None:
    """A row with limits that exclude all faults, and as few other launches as possible.

    Args:
        probes: whether all compiled kernels are free of faults, or None if none was compiled, by
            (hidden units, units of a program, values of these), for every launch that fits.

    Returns:
        None if nothing is left.
    """
    if False not in probes.values():
        return row
    if not any(verdict is not False for verdict in probes.values()):
        return None
    good = [spot for spot, verdict in probes.items() if verdict is not False]
    bad = [spot for spot, verdict in probes.items() if verdict is False]
    bounds = [[math.inf, *sorted(set(sizes), reverse=True)] for sizes in zip(*good, strict=True)]
    best, limits = None, None
    for tried in itertools.product(*bounds):
        if any(_within(spot, tried) for spot in bad):
            continue
        kept = [spot for spot in good if _within(spot, tried)]
        score = (sum(bool(probes[spot]) for spot in kept), len(kept), tried.count(math.inf))
        if kept and (best is None or score > best):
            best, limits = score, tried
    if limits is None:
        return None
    names = ("hidden", "units", "values")
    found = {name: x for name, x in zip(names, limits, strict=True) if x != math.inf}
    return dataclasses.replace(row, **found)


def _within(spot, limits) -> bool:
    return all(size <= limit for size, limit in zip(spot, limits, strict=True))


def _narrowed(chip: Chip, space, grid: Grid, seen) -> tuple[Row, ...]:
    """The rows of the space, limited according to the examined probes."""
    by_row = defaultdict(dict)
    for probe, faults in seen.items():
        by_row[_blocks(probe.launch, probe.dtype)][probe] = not faults
    rows = []
    for row in space:
        if row.itemsize not in grid.itemsizes:
            continue
        found = by_row[_blocks(row)]
        if False in found.values():
            row = limited(row, _spots(chip, row, grid, found))
        if row is not None:
            rows.append(row)
    return tuple(rows)


def _spots(chip, row, grid, found) -> dict[tuple[int, int, int], bool | None]:
    """The launches of a row that fit in the grid, as ``probes`` of ``limited``."""
    spots = {}
    for name, dtype, H in grid.layers(row.itemsize):
        cell = cells.get(name)
        with products_of(dtype):
            launch, _ = plan.fitting(cell, row, H, 1, chip)
        if launch is None:
            continue
        units = launch.own * launch.block_h
        spot = (H, units, plan.values(cell) * units)
        verdict = found.get(Probe(name, dtype, H, dataclasses.replace(launch, tiles=1)))
        verdicts = (spots.get(spot), verdict)
        spots[spot] = False if False in verdicts else (True in verdicts) or None
    return spots


def _choices(chip: Chip, grid: Grid) -> list[Probe]:
    """The launches that ``plan`` takes for the grid's layers, the quickest of each strategy."""
    probes = {}
    for (name, dtype, H), B, strategy in itertools.product(grid.layers(), grid.batches, STRATEGIES):
        size = (B, H, 1, torch_dtype(dtype))
        with products_of(dtype):
            launch, _ = plan.quickest(cells.get(name), strategy, *size, chip)
        if launch is not None:
            probes[Probe(name, dtype, H, dataclasses.replace(launch, tiles=1))] = None
    return list(probes)


def _bounded(rows, probes: list[Probe]) -> list[Row]:
    """The chosen rows. "resident" and "stream", whose programs own more units in larger layers, are
    limited to the most units that they are chosen for."""
    found = defaultdict(list)
    for probe in probes:
        found[_blocks(probe.launch, probe.dtype)].append(probe)
    bounded = []
    for row in rows:
        mine = found.get(_blocks(row))
        if mine and row.blocks.strategy in ("resident", "stream"):
            units = {probe: probe.launch.own * probe.launch.block_h for probe in mine}
            values = max(plan.values(cells.get(probe.cell)) * units[probe] for probe in mine)
            row = dataclasses.replace(row, units=max(units.values()), values=values)
        if mine:
            bounded.append(row)
    return bounded


def _with(chip: Chip, rows: list[Row], grid: Grid) -> Chip:
    """The chip with these rows for the element sizes of the grid."""
    merged = []
    for size in dict.fromkeys([*(r.itemsize for r in chip.rows), *(r.itemsize for r in rows)]):
        source = rows if size in grid.itemsizes else chip.rows
        merged += [row for row in source if row.itemsize == size]
        if source is rows:  # whose search is of cells with products
            others = [r for r in chip.rows if r.blocks.strategy not in STRATEGIES]
            merged += [r for r in others if r.itemsize == size and r not in merged]
    return dataclasses.replace(chip, rows=tuple(merged))


def _blocks(of: Row | Launch, dtype: str = "") -> tuple:
    """What identifies a row of the space, of a row or of a launch in a dtype."""
    launch, itemsize = (of, torch_dtype(dtype).itemsize) if dtype else (of.blocks, of.itemsize)
    blocks = (launch.block_b, launch.block_h, launch.block_k, launch.backward_k)
    blocks += (launch.per_multiprocessor,)
    return itemsize, launch.strategy, *blocks, launch.num_warps
