"""What "auto" runs a layer with on the CPU where torch.nn has its cell: torch.nn's own kernels, or
the C++ loop.

Which is faster differs from one processor to the next, by factors. So both are timed, at the first
use of a kind of layer, on a problem of their own of some tens of milliseconds; what was found is
remembered in this process, and on disk for this processor. ``FUSED_RNN_MEASURE=0`` switches that
off. Where nothing was timed, ``plan/cpu.json`` decides, and where it was of another processor it
takes the loop only by a large margin.
"""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import torch

from .. import cells, machine, once
from ..plan import cpu
from . import contract

# How many times as fast the loop has to be: timed here; and in a table of another processor, on
# which it may be that much slower.
MARGIN, MARGIN_ELSEWHERE = 1.05, 2.0
# How far the row of a table may be, in factors of two of T, B and H together, to be taken for the
# size itself.
NEAR = 1.0

# A timed call is to take no longer than this by a rough estimate, unless it has fewer than
# LEAST_STEPS.
_SECONDS, _LEAST_STEPS, _MOST_STEPS = 30e-3, 8, 1024
_PRODUCTS_PER_SECOND, _BYTES_PER_SECOND = 4e10, 1.5e10


class Kind(NamedTuple):
    """A kind of layers, all of which run alike.

    Args:
        mode: "inference" (nothing is kept for a backward) or "training" (forward and backward).
        T, B, I: rounded to powers of two, T to what is timed.
        P: the size of a projection, 0 for none.
        packed: whether the input is a PackedSequence.
        threads: PyTorch's.
    """

    cell: str
    dtype: str
    mode: str
    T: int
    B: int
    I: int  # noqa: E741 - the name of this dim in the whole project
    H: int
    directions: int
    P: int
    packed: bool
    threads: int


class Finding(NamedTuple):
    """
    Args:
        aten: whether torch.nn's kernels run.
        source: "timed", in this process or an earlier one; "table"; "nothing", where it has no row
            for the cell and dtype; or "alone", where the loop cannot serve.
        kind: what was asked for.
        ratio: time of torch.nn's kernels by that of the loop, or None.
        row: of the table, or None.
        here: whether the table is of this processor.
        distance: of the row, see ``NEAR``.
        reason: why the loop cannot serve.
    """

    aten: bool
    source: str
    kind: Kind
    ratio: float | None = None
    row: cpu.Row | None = None
    here: bool = False
    distance: float = 0.0
    reason: str | None = None

    def __str__(self):
        if self.source == "alone":
            return f'backend "cpp" cannot serve: {self.reason}'
        if self.source == "nothing":
            return f"nothing was timed, and {cpu.FILE.name} has nothing for {self.kind.dtype}"
        took = f"torch.nn took {self.ratio:.2f} times as long as the C++ loop"
        if self.source == "timed":
            threads = f"{self.kind.threads} thread{'s' * (self.kind.threads > 1)}"
            layer = f"{_words(self.kind)} I={self.kind.I}, {threads}"
            return f"timed on this processor: {layer}: {took}"
        where = cpu.table()[0].get("cpu", "another machine")
        words = f"nearest measured: {_words(self.row)} on {where}: {took}"
        if self.distance:
            words += f", {self.distance:.1f} factors of two away"
        if not self.here:
            words += (
                "; measured on another processor or number of threads, so that the loop runs only "
                f"above {MARGIN_ELSEWHERE:g}"
            )
        return words


def _words(of) -> str:
    return f"{of.cell} {of.dtype} {of.mode} T={of.T} B={of.B} H={of.H}"


def kind_of(
    cell: str,
    dtype: torch.dtype,
    training: bool,
    T: int,
    B: int,
    H: int,
    *,
    I: int | None = None,  # noqa: E741
    directions: int = 1,
    P: int = 0,
    packed: bool = False,
) -> Kind:
    """The kind of a layer. I: default H."""
    sizes = (T, B, H if I is None else I, H)
    return _kind(cell, dtype, training, sizes, directions, P, packed, torch.get_num_threads())


@functools.lru_cache(maxsize=4096)
def _kind(cell, dtype, training, sizes, directions, P, packed, threads):
    T, B, I, H = sizes  # noqa: E741
    B, I = _rounded(B), _rounded(I)  # noqa: E741
    weights = directions * 4 * H * (I + (P or H))
    seconds = max(B * weights / _PRODUCTS_PER_SECOND, 4 * weights / _BYTES_PER_SECOND)
    most = min(max(_rounded(_SECONDS / max(seconds, 1e-6)), _LEAST_STEPS), _MOST_STEPS)
    mode = "training" if training else "inference"
    name = str(dtype).removeprefix("torch.")
    T = min(_rounded(T), most)
    return Kind(cell, name, mode, T, B, I, H, directions, P, packed, threads)


def _rounded(number) -> int:
    """The nearest power of two, by its ratio."""
    whole = max(1, int(number))
    low = 1 << (whole.bit_length() - 1)
    return 2 * low if whole * whole > 2 * low * low else low


# None for a kind that was not timed and that the disk does not have, which is read once.
_known: dict[Kind, Finding | None] = {}


def timer(kind: Kind) -> tuple[float, float]:
    """The seconds of torch.nn's kernels and of the C++ loop for a layer; ``nn`` sets it, which has
    the layers."""
    raise NotImplementedError


def settle(kind: Kind, T: int, B: int, H: int, may_time: bool) -> Finding:
    """What runs a layer.

    Args:
        T, B, H: its sizes as they are, for the table.
        may_time: False where nothing else may run now, as while a graph is recorded.
    """
    found = _known.get(kind)
    if found is not None:
        return found
    dtype = getattr(torch, kind.dtype)
    reason = contract.why_not("cpp", cells.get(kind.cell), torch.device("cpu"), dtype)
    if reason is not None:
        return Finding(True, "alone", kind, reason=reason)
    by_table = of_table(kind, T, B, H)
    if by_table.here and by_table.distance <= NEAR:
        return by_table
    may_time = may_time and enabled()
    if kind in _known and not may_time:
        return by_table
    with once.making():
        found = _known.get(kind)
        if found is None:
            seconds = _recalled(kind)
            if seconds is None and not may_time:
                _known[kind] = None
                return by_table
            if seconds is None:
                seconds = timer(kind)
                machine.remember(_key(kind), {"seconds": list(seconds)}, "cpu")
            ratio = seconds[0] / seconds[1]
            found = _known[kind] = Finding(ratio < MARGIN, "timed", kind, ratio)
    return found


def enabled() -> bool:
    """Whether anything may be timed."""
    return os.environ.get("FUSED_RNN_MEASURE", "1") != "0"


def of_table(kind: Kind, T: int, B: int, H: int) -> Finding:
    """What the table has to say."""
    row = cpu.nearest(kind.cell, kind.dtype, kind.mode, T, B, H)
    if row is None:
        return Finding(True, "nothing", kind)
    environment = cpu.table()[0]
    here = environment.get("processor") == machine.processor()
    here = here and environment.get("threads") == kind.threads
    # What the table does not tell apart is as if it were of another processor.
    here = here and kind.directions == 1 and not kind.P and not kind.packed
    distance = cpu.distance(row, T, B, H)
    margin = MARGIN if here and distance <= NEAR else MARGIN_ELSEWHERE
    ratio = row.aten_over_cpp
    return Finding(ratio < margin, "table", kind, ratio, row, here, distance)


def _key(kind):
    return {
        "what": "torch.nn's kernels and the C++ loop",
        "processor": machine.processor(),
        "kernels": machine.loop_digest(),
        **machine.versions(),
        **kind._asdict(),
    }


def _recalled(kind) -> tuple[float, float] | None:
    try:
        known = machine.recall(_key(kind), "cpu") or {}
        aten, loop = known["seconds"]
        return (aten, loop) if aten > 0 and loop > 0 else None
    except (ValueError, TypeError, KeyError):  # none, or not of this package
        return None
