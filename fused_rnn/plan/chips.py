"""The tables of plans in ``chips.json``: their meaning, reading and writing.

Each row has blocks whose kernels compiled for a chip without spills. Of the rows that fit a
problem, ``plan`` takes the one with the least time by the model of ``cost.py``.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

FILE = Path(__file__).with_name("chips.json")
# Of cells with recurrent products, and of those without.
STRATEGIES = ("resident", "grid", "stream", "step")
SCAN = "scan"
# Of those that are linear in their states.
PARALLEL = "parallel_scan"
ALL = (*STRATEGIES, SCAN, PARALLEL)

# The name of the chip that represents Triton's interpreter.
INTERPRETER = "interpreter"


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched.

    Args:
        strategy: what a program owns, where its weights are, and how programs wait for each other:

            - "resident": a batch tile with all hidden units; the weights stay on the chip for the
              whole sequence, and no program waits;
            - "grid": a batch tile with a slice of the units, whose weights stay on the chip; all
              slices are resident at once and wait for each other after each stage of each step;
            - "stream": as "grid", but the weights are read at each step, from the L2 cache where
              they fit there;
            - "step": as "stream", but a launch takes one part of one step; its end is the barrier;
            - "scan": a few rows and units of a cell without recurrent products, so that no program
              needs what another one computes;
            - "parallel_scan": the same for one piece of the steps, see ``cut``, of a cell that is
              linear in its states; kernels before it find the state that each piece begins with.
        block_b: rows of a batch tile.
        block_h: hidden units of a chunk.
        block_k: block of the inner dimension of a product that is read block by block.
        backward_k: the same in the backward, whose inner dimension spans all gates; None: block_k.
        exact_warps: num_warps for exact float32 products, which use no tensor cores but more
            registers per warp; None: num_warps.
        pieces: maximum number of pieces that the steps are cut into; None: the steps stay whole.
        backward_h: block_h for the backward; None: block_h.
        backward_warps: num_warps for the backward; None: num_warps.
        per_multiprocessor: maximum number of programs of a forward that share a multiprocessor,
            where programs wait for each other; None: 1. The backward has one on each.
        explicit: by the kernels with explicit layouts, whose weights are in registers.
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
    pieces: int | None = None
    backward_h: int | None = None
    backward_warps: int | None = None
    per_multiprocessor: int | None = None
    explicit: bool = False

    def cut(self, T: int) -> tuple[int, int]:
        """The number of pieces of T steps, and the steps of each but the last.

        A piece has at least half of √T steps: shorter ones would save little time, and take more
        memory for what is kept of each.
        """
        if self.pieces is None:
            return 1, T
        length = max(-(-T // self.pieces), math.isqrt(T) // 2, 1)
        return -(-T // length), length

    def backward(self) -> Launch:
        """The launch of the backward, with its own numbers in the place of the forward's."""
        return replace(
            self,
            block_h=self.backward_h or self.block_h,
            block_k=self.backward_k or self.block_k,
            num_warps=self.backward_warps or self.num_warps,
            backward_h=None,
            backward_k=None,
            backward_warps=None,
            per_multiprocessor=None,
        )

    def programs(self, hidden: int) -> int:
        """How many programs share a batch tile of a layer."""
        return -(-hidden // (self.block_h * self.own))

    @property
    def keeps_weights(self) -> bool:
        """Whether the weights stay on the chip for the whole sequence."""
        return self.strategy in ("resident", "grid")

    @property
    def alone(self) -> bool:
        """Whether a program has all that its products need."""
        return self.strategy in ("resident", SCAN, PARALLEL)

    @property
    def waits(self) -> bool:
        """Whether its programs wait for each other, so that all must be resident at once."""
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
        if self.blocks.strategy not in ALL:
            raise ValueError(f"strategy: expected one of {ALL}, got {self.blocks.strategy!r}")
        for name, value in {"itemsize": self.itemsize, **_plain(self)}.items():
            if name not in ("strategy", "explicit") and not (isinstance(value, int) and value > 0):
                raise ValueError(f"{name}: expected a number greater than zero, got {value!r}")

    def launch(self, own: int = 1, tiles: int = 1) -> Launch:
        """The blocks as a launch, of at most ``self.tiles`` batch tiles at once."""
        most = tiles if self.tiles is None else min(tiles, self.tiles)
        return replace(self.blocks, own=own, tiles=most)


@dataclass(frozen=True, eq=False)  # compared by identity: fast to look up in a cache
class Chip:
    """The properties of a GPU that plans depend on.

    Args:
        name: compute capability as "90" for 9.0, or INTERPRETER.
        gpu: a GPU of this capability, whose figures these are.
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
    """The chips by name, in the order of their capabilities."""
    return read(FILE)


@functools.cache
def chip(capability: tuple[int, int], multiprocessors: int | None = None) -> Chip:
    """The chip of a compute capability, or the newest older chip in the table.

    Args:
        multiprocessors: of the GPU in use; None: of the one that the table names.
    """
    known = {divmod(int(name), 10): c for name, c in chips().items() if name != INTERPRETER}
    older = [known[c] for c in known if c <= tuple(capability)]
    if not older:
        return Chip("none", "none", 0, multiprocessors or 1, known[min(known)].rows)
    return replace(older[-1], multiprocessors=multiprocessors or older[-1].multiprocessors)


def read(file: Path) -> dict[str, Chip]:
    """Read the chips from a table file."""
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
    """Write a table file, one row per line; the same table gives the same bytes."""
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
    return {k: v for k, v in entry.items() if v is not None and v is not False}
