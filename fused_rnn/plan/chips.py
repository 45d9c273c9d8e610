"""The tables of plans, as data: ``plans.json``, what it means, and how it is read and written.

Its rows are blocks whose kernels were seen to compile for a chip without spills; ``plan`` takes of
those that fit a problem the one with the least time by the model of ``cost.py``.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

FILE = Path(__file__).with_name("chips.json")
STRATEGIES = ("resident", "grid", "stream", "step")

# The chip that stands for Triton's interpreter.
INTERPRETER = "interpreter"


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched.

    Args:
        strategy: what a program owns, where its weights are, and how programs wait for each other:

            - "resident": a batch tile with all hidden units; the weights stay on the chip for the
              whole sequence, and nobody waits for anybody;
            - "grid": a batch tile with a slice of the units, whose weights stay on the chip; all
              slices are on the GPU at once and meet at a barrier after each stage of each step;
            - "stream": as "grid", but the weights are read at each step, from the L2 cache where
              they fit there;
            - "step": as "stream", but a launch takes one stage of one step; its end is the barrier.
        block_b: rows of a batch tile.
        block_h: hidden units of a chunk.
        block_k: of the inner dimension of a product that is read block by block.
        backward_k: the same of the backward, whose inner dimension is that of all gates together;
            None: block_k.
        exact_warps: num_warps where float32 products are exact, which take no tensor cores but more
            registers of each warp; None: num_warps.
    """

    strategy: str
    block_b: int
    block_h: int
    block_k: int
    num_warps: int
    own: int = 1
    tiles: int = 1
    backward_k: int | None = None
    exact_warps: int | None = None

    @property
    def keeps_weights(self) -> bool:
        """On the chip, for the whole sequence."""
        return self.strategy in ("resident", "grid")

    @property
    def waits(self) -> bool:
        """Whether its programs wait for each other, and so have to be on the chip all at once."""
        return self.strategy in ("grid", "stream")


@dataclass(frozen=True)
class Row:
    """A row of a table: blocks, and the largest problems that they may be used for.

    Args:
        itemsize: bytes of an element of x.
        blocks: a launch whose ``own`` and ``tiles`` depend on the problem, see ``launch``.
        tiles: maximum number of batch tiles at once; here and below, None means no limit.
        hidden: maximum number of hidden units of a layer.
        units: maximum number of hidden units of a program, padded to whole chunks.
        values: maximum of these units times the values of a unit (gates, states, params), which
            registers hold.
    """

    itemsize: int
    blocks: Launch
    tiles: int | None = None
    hidden: int | None = None
    units: int | None = None
    values: int | None = None

    def __post_init__(self):
        if self.blocks.strategy not in STRATEGIES:
            found = self.blocks.strategy
            raise ValueError(f"strategy: expected one of {STRATEGIES}, got {found!r}")
        for name, value in {"itemsize": self.itemsize, **_plain(self)}.items():
            if name != "strategy" and not (isinstance(value, int) and value > 0):
                raise ValueError(f"{name}: expected a number greater than zero, got {value!r}")

    def launch(self, own: int = 1, tiles: int = 1) -> Launch:
        """The blocks as a launch, of at most ``self.tiles`` batch tiles at once."""
        most = tiles if self.tiles is None else min(tiles, self.tiles)
        return replace(self.blocks, own=own, tiles=most)


@dataclass(frozen=True, eq=False)  # told apart by identity, which is what a cache can look up fast
class Chip:
    """A GPU, as far as a plan depends on it.

    Args:
        name: compute capability as "90" for 9.0, or INTERPRETER.
        gpu: of this capability, to plan for one that is not here.
        shared_memory: bytes that one program may use.
        multiprocessors: how many.
        rows: of the table.
    """

    name: str
    gpu: str
    shared_memory: float
    multiprocessors: int
    rows: tuple[Row, ...] = field(repr=False)

    @property
    def interpreted(self) -> bool:
        return self.name == INTERPRETER

    def of(self, strategy: str, itemsize: int) -> list[Row]:
        """The rows of a strategy for elements of this size."""
        return [r for r in self.rows if (r.blocks.strategy, r.itemsize) == (strategy, itemsize)]


@functools.cache
def chips() -> dict[str, Chip]:
    """By name, in the order of their capabilities."""
    return read(FILE)


@functools.cache
def chip(capability: tuple[int, int], multiprocessors: int | None = None) -> Chip:
    """The chip of a compute capability, or of the newest before it that the table has.

    Args:
        multiprocessors: of the GPU at hand; None: of the one that the table names.
    """
    known = {divmod(int(name), 10): c for name, c in chips().items() if name != INTERPRETER}
    older = [known[c] for c in known if c <= tuple(capability)]
    if not older:
        return Chip("none", "none", 0, multiprocessors or 1, known[min(known)].rows)
    return replace(older[-1], multiprocessors=multiprocessors or older[-1].multiprocessors)


def read(file: Path) -> dict[str, Chip]:
    """The chips of a table file."""
    found = {}
    for name, entry in json.loads(file.read_text()).items():
        rows = tuple(
            _row(int(itemsize), row)
            for itemsize, table in entry["launches"].items()
            for row in table
        )
        room = entry["shared_memory"] or math.inf
        found[name] = Chip(name, entry["gpu"], room, entry["multiprocessors"], rows)
    return found


def write(file: Path, table: dict[str, Chip]) -> None:
    """A table file, one row a line; the same table gives the same bytes."""
    parts = []
    for name, c in table.items():
        groups = []
        for itemsize in dict.fromkeys(row.itemsize for row in c.rows):
            lines = [json.dumps(_plain(row)) for row in c.rows if row.itemsize == itemsize]
            body = ",\n    ".join(lines)
            groups.append(f'   "{itemsize}": [\n    {body}\n   ]')
        head = {
            "gpu": c.gpu,
            "shared_memory": None if math.isinf(c.shared_memory) else c.shared_memory,
            "multiprocessors": c.multiprocessors,
        }
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        lines.append('  "launches": {\n' + ",\n".join(groups) + "\n  }")
        parts.append(f' "{name}": {{\n' + ",\n".join(lines) + "\n }")
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n")


_LIMITS = ("tiles", "hidden", "units", "values")


def _row(itemsize: int, entry: dict) -> Row:
    limits = {name: entry[name] for name in _LIMITS if name in entry}
    blocks = {name: value for name, value in entry.items() if name not in limits}
    return Row(itemsize, Launch(**blocks), **limits)


def _plain(row: Row) -> dict:
    """A row's entry in the file."""
    blocks = {k: v for k, v in asdict(row.blocks).items() if k not in ("own", "tiles")}
    entry = blocks | {name: getattr(row, name) for name in _LIMITS}
    return {k: v for k, v in entry.items() if v is not None}
