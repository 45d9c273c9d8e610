"""The forward of a layer in time, as text and as a picture: by the model of ``cost.py``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..cells import Cell
from . import cost
from .chips import PARALLEL, Chip, Launch
from .plans import _chip, describe, plan

WIDTH = 48  # characters of the longest bar

MEANINGS = {
    "loop": "addresses, barriers within a program",
    "products": "by the recurrent weights",
    "layouts": "values that change threads through shared memory",
    "activations": "the cell's pointwise part",
    "waits": "until all programs have finished this part of the step",
    "reads": "what the other programs computed, from the L2 cache",
    "weights": "read again from the L2 cache",
    "memory": "the rest of the time to load the input parts and to store what is kept",
    "launches": "the rest of the time in which Python starts this step's kernels",
    "programs": "others run first, since the GPU cannot run all at once",
}


@dataclass(frozen=True)
class Timeline:
    """What the forward of one layer in training does in time, as the plan has it.

    The times are those of ``cost.py``, with one GPU's constants: estimates, not measurements.

    Attributes:
        cell, T, B, H, directions, dtype: the problem.
        gpu: the name of the GPU.
        launch: of the forward.
        programs: how many run it.
        parts: microseconds of one step by part, of one program.
        step: microseconds of a step, of all programs.
        bound: what a step waits for where it takes longer than its parts; or "".
        input_product: microseconds of the gates' input parts, for all steps, before the walk.
    """

    cell: str
    T: int
    B: int
    H: int
    directions: int
    dtype: torch.dtype
    gpu: str
    launch: Launch
    programs: int
    parts: dict[str, float]
    step: float
    bound: str
    input_product: float

    @property
    def time(self) -> float:
        """Microseconds of the whole forward."""
        return self.input_product + self.T * self.step

    def __str__(self):
        return "\n".join(self._lines())

    def svg(self) -> str:
        """The picture, as the text of an SVG file."""
        from .timeline_svg import picture

        return picture(self)

    @property
    def title(self) -> str:
        both = ", 2 directions" if self.directions == 2 else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.cell}, T={self.T} B={self.B} H={self.H}{both}, {dtype}, {self.gpu}"

    def rows(self) -> list[tuple[str, float, str]]:
        """Name, microseconds and meaning of the parts of a step."""
        found = [(name, time, MEANINGS[name]) for name, time in self.parts.items() if time]
        if self.bound:
            found.append((self.bound, self.step - sum(self.parts.values()), MEANINGS[self.bound]))
        return found

    def _lines(self) -> Iterator[str]:
        yield self.title
        yield "a model's estimates of the forward in training, not measurements"
        yield ""
        yield from _bars(
            [
                ("input product", self.input_product, "all steps at once"),
                ("walk", self.T * self.step, f"{self.T} steps of {show(self.step)}"),
            ]
        )
        yield ""
        programs = f"{self.programs} program" + "s" * (self.programs > 1)
        yield f"{describe(self.launch)}; {programs}"
        if self.launch.strategy == PARALLEL:
            pieces, length = self.launch.cut(self.T)
            yield f"{pieces} pieces of {length} steps side by side, walked twice, joined between"
        yield "one step of one program:"
        yield from _bars(self.rows())


def timeline(
    cell: Cell,
    T: int,
    B: int,
    I: int,  # noqa: E741 - the name of this dim in the whole project
    H: int,
    dtype: torch.dtype,
    device: torch.device | tuple[int, int],
    D: int = 1,
) -> Timeline:
    """The forward of a layer in time, as it is planned on ``device``.

    Args:
        I: features of the input.
        device: a CUDA device, or a compute capability such as (9, 0).
        D: directions.

    Raises:
        RuntimeError: no plan for the problem.
    """
    launch = plan(cell, T, B, H, dtype, device, D).forward
    chip: Chip = _chip(device)
    parts = cost.step_parts(cell, launch, H, dtype.itemsize)
    given = (B, H, D, dtype.itemsize, chip.multiprocessors)
    given = (B, H, D, dtype.itemsize, chip.multiprocessors)
    bounds = cost.step_bounds(cell, launch, *given, steps=T)
    bound = max(bounds, key=lambda name: bounds[name])
    step = bounds[bound]
    if step <= sum(parts.values()) * (1 + 1e-9):  # all programs at once, and nothing else is slower
        bound = ""
    product = 2 * T * B * D * H * len(cell.x_gates) * I
    moved = T * B * (I + D * H * len(cell.x_gates)) * dtype.itemsize
    speed = cost.TENSOR * chip.multiprocessors / cost.SLOWER[dtype.itemsize]
    tiles = -(-B // launch.block_b)
    pieces = launch.cut(T)[0]
    return Timeline(
        cell.name, T, B, H, D, dtype, chip.gpu, launch, tiles * launch.programs(H) * D * pieces,
        parts, step, bound, max(product / speed, moved / cost.MEMORY),
    )  # fmt: skip


def _bars(rows):
    """Name, a bar, the time and a remark of each."""
    longest = max(time for _, time, _ in rows)
    for name, time, remark in rows:
        bar = "#" * max(1, round(WIDTH * time / longest)) if time > 0 else ""
        yield f"  {name:<14} {show(time):>9}  {bar:<{WIDTH}}  {remark}"


def show(microseconds: float) -> str:
    if microseconds <= 0:
        return "0 us"
    unit, scale = ("ms", 1e3) if microseconds >= 1e3 else ("us", 1.0)
    value = microseconds / scale
    digits = max(0, 1 - math.floor(math.log10(value)))
    return f"{value:.{digits}f} {unit}"
