"""Lay out an acyclic graph in columns (Sugiyama's method), for ``drawings``.

A node stands right of all that it is computed from. An edge over several columns gets a bend in
each between. Rows are ordered by sweeps that move each node to the mean of its neighbours.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

SWEEPS = 24


@dataclass
class Place:
    """Where a node stands; ``bends`` has, by the end of an edge, the places it passes."""

    column: float
    row: float = 0.0
    bends: dict = field(default_factory=dict)


def arrange(
    nodes: Sequence[Hashable], edges: Sequence[tuple[Hashable, Hashable]]
) -> dict[Hashable, Place]:
    """Places of ``nodes``, which come in an order in which every edge leads forward."""
    places = {node: Place(column) for node, column in _columns(nodes, edges).items()}
    grid: list[list] = [[] for _ in range(1 + max(int(p.column) for p in places.values()))]
    for node in nodes:
        grid[int(places[node].column)].append(node)
    links: dict[Hashable, tuple[list, list]] = {node: ([], []) for node in nodes}
    for start, end in edges:
        chain: list = [start]
        for column in range(int(places[start].column) + 1, int(places[end].column)):
            bend = ("bend", start, end, column)
            places[bend] = Place(column)
            links[bend] = ([], [])
            grid[column].append(bend)
            chain.append(bend)
        places[start].bends[end] = [places[bend] for bend in chain[1:]]
        for left, right in zip(chain, [*chain[1:], end], strict=True):
            links[right][0].append(left)
            links[left][1].append(right)
    _order(grid, links, places)
    _spread(grid, links, places)
    return places


def _columns(nodes, edges):
    """The longest path to each node; what leads nowhere stands in the last column."""
    before: dict = {node: [] for node in nodes}
    leads = {start for start, _ in edges}
    for start, end in edges:
        before[end].append(start)
    columns: dict = {}
    for node in nodes:
        columns[node] = max((columns[b] + 1 for b in before[node]), default=0)
    last = max(columns.values())
    columns |= {node: last for node in nodes if node not in leads}
    return columns


def _order(grid, links, places):
    for column in grid:
        for row, node in enumerate(column):
            places[node].row = row
    for sweep in range(SWEEPS):
        forward = sweep % 2 == 0
        for column in grid if forward else reversed(grid):

            def key(node, side=0 if forward else 1):
                near = [places[n].row for n in links[node][side]]
                return sum(near) / len(near) if near else places[node].row

            column.sort(key=key)
            for row, node in enumerate(column):
                places[node].row = row


def _spread(grid, links, places):
    """Straighten: each node near its neighbours, in the order found, at least a row apart."""
    for _ in range(SWEEPS):
        for column in grid:
            wanted = []
            for node in column:
                near = [places[n].row for side in links[node] for n in side]
                wanted.append(sum(near) / len(near) if near else places[node].row)
            _fit(column, wanted, places)
    lowest = min(place.row for place in places.values())
    for place in places.values():
        place.row -= lowest


def _fit(column, wanted, places):
    """The rows nearest to ``wanted`` that keep the order and a distance of one.

    Neighbours that would swap are pooled, and take the mean of what they want.
    """
    groups: list[list[float]] = []  # sum of wanted - offset, count
    for i, row in enumerate(wanted):
        groups.append([row - i, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, count = groups.pop()
            groups[-1][0] += total
            groups[-1][1] += count
    i = 0
    for total, count in groups:
        for _ in range(int(count)):
            places[column[i]].row = total / count + i
            i += 1
