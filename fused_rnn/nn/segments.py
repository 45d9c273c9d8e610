"""Per-row lengths and resets, as masks.

One mechanism serves every backend: a derived cell does the same math, with masks as further
streams. So the reference loop, the whole-sequence operations and the fused kernels run it
unchanged. Nothing is sorted and nothing waits for the device.

- Lengths: a row keeps its states at steps beyond its length. So the finals are those of its own
  last step, and the backward direction, which meets these steps first, starts at its last step.
- Resets: after the last step before a reset the states become the initial ones. The step's own
  result is an additional state, which no gate reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import context
from ..cells import Cell, derived


class Segments:
    """The masks of lengths and resets, for each step of each row.

    Args:
        steps: T.
        directions: D.
        lengths: (B,), integers; None for T. Below 0 is 0, above T is T.
        reset: (T, B), bool; None for nowhere.

    Attributes:
        valid: (T, B), whether a step is within its row, or None without lengths.
        ends: (T, B, D), whether the states restart after the step, or None without resets.
        at_start: (B,), whether a reset stands at the first step of a row, or None without resets.
        order: (B,), int64, the rows' numbers in the batch as it was given; None for 0 to B - 1.
        descending: the lengths, on the CPU, where they are known to descend from T to 1 or more and
            nothing restarts; otherwise None.
    """

    def __init__(self, steps: int, directions: int, lengths: Tensor | None, reset: Tensor | None):
        self.valid: Tensor | None = None
        self.ends: Tensor | None = None
        self.at_start: Tensor | None = None
        self.descending: Tensor | None = None
        self.order: Tensor | None = None
        like = lengths if reset is None else reset
        assert like is not None
        self.time = torch.arange(steps, device=like.device)[:, None]
        self.directions = directions
        if lengths is not None:
            self.valid = self.time < lengths
        if reset is not None:
            inside = reset if self.valid is None else reset & self.valid
            self.at_start = inside[0]
            first = torch.zeros_like(inside[:1])
            # A reset at t lies between t - 1 and t: forward restarts after t - 1, backward after
            # t. No tensor has T - 1 steps, since torch.export would ask whether that is 1.
            since = inside & (self.time > 0)
            ends = (torch.cat([inside, first])[1:], since)
            self.ends = torch.stack(ends[:directions], 2)

    def starts(self) -> Tensor:
        """(T, B, D): whether the step is the first of its row, direction and segment."""
        last = self.time == self.time.shape[0] - 1
        if self.valid is not None:
            last = self.valid & torch.cat([~self.valid, torch.ones_like(self.valid[:1])])[1:]
        sides = [self.time == 0, last][: self.directions]
        if self.ends is not None:
            none = torch.zeros_like(self.ends[:1, :, 0])
            shifted = torch.cat([none, self.ends[:, :, 0]])[:-1]
            sides[0] = sides[0] | shifted
            if self.directions == 2:
                sides[1] = sides[1] | torch.cat([self.ends[:, :, 1], none])[1:]
        return torch.stack(torch.broadcast_tensors(*sides), 2)

    def clock(self) -> Tensor:
        """(T, B, D): the number of steps before, in the same row, direction and segment."""
        starts, time = self.starts(), self.time[:, :, None]
        since = _running_max(torch.where(starts, time, 0))
        forward = (time - since)[:, :, :1]
        if self.directions == 1:
            return forward
        end = self.time.shape[0] - 1
        since = _running_max(torch.where(starts.flip(0), time, 0))
        return torch.cat([forward, (end - since).flip(0)[:, :, 1:] - time], 2).clamp(min=0)

    def carried_by(
        self,
        cell: Cell,
        states: list[Tensor],
        like: Tensor,
        zeros: bool,
        all_states: bool,
        at_resets: list[Tensor] | None = None,
    ) -> tuple[Cell, list[Tensor], list[Tensor], int]:
        """The derived cell that runs instead of ``cell``, with its states and further streams.

        Args:
            states: one (D, B, H) per state, before the first steps of rows and segments.
            like: (T, B, ...), of the dtype of the streams.
            zeros: whether the states are known to be zeros.
            all_states: whether the sequences of all states are wanted, or of the first only.
            at_resets: per state (T, D, B, H), those that a reset at a step sets; None for
                ``states``.

        Returns:
            The cell, its states, its streams after those of ``cell``, and the number of its states
            that come before those of ``cell``. The wanted sequences are the first ones in any case.
        """
        shape = (*like.shape[:2], *states[0].shape[::2])

        def spread(mask):
            return mask.to(like.dtype).unsqueeze(-1).expand(shape)

        masked, restarts = self.valid is not None, self.ends is not None
        shown = (len(cell.states) if all_states else 1) if restarts else 0
        anew = restarts and (1 if zeros and at_resets is None else 2)
        key = derived.key_of(cell.key, masked, anew, shown)
        streams = [] if self.valid is None else [spread(self.valid.unsqueeze(-1))]
        if self.ends is not None:
            streams.append(spread(self.ends))
            if at_resets is not None:
                streams += [self._coming(given.transpose(1, 2)) for given in at_resets]
                states = list(map(self._first, states, at_resets))
            elif not zeros:
                streams += [s.transpose(0, 1).unsqueeze(0).expand(shape) for s in states]
        if cell.reads_time:
            clock = self.clock()
            streams += [spread(clock % derived.CLOCK), spread(clock // derived.CLOCK)]
        states = [torch.zeros_like(state) for state in states[:shown]] + states
        return cell.derived[key], states, streams, shown

    def _coming(self, given):
        """The states (T, B, D, H) that each step begins with, by the step that goes before it."""
        forward = torch.cat([given[1:], given[:1]])  # the last one restarts nothing
        if self.directions == 1:
            return forward
        # The backward direction restarts after the step of the reset.
        return torch.stack([forward[:, :, 0], given[:, :, 1]], 2)

    def _first(self, state, given):
        """``state`` (D, B, H), but in the forward direction that of a reset at the first step."""
        assert self.at_start is not None
        first = torch.where(self.at_start[:, None], given[0, 0], state[0])
        return torch.cat([first.unsqueeze(0), state[1:]])

    def hide(self, sequence: Tensor) -> Tensor:
        """Set (T, B, ...) to zero beyond the lengths."""
        if self.valid is None:
            return sequence
        mask = self.valid.view(*self.valid.shape, *[1] * (sequence.dim() - 2))
        return torch.where(mask, sequence, torch.zeros_like(sequence))


def _running_max(sequence: Tensor) -> Tensor:
    """The largest value up to each step of (T, ...); ONNX has no operator for it."""
    if not context.exported_by():
        return sequence.cummax(0).values
    from torch._higher_order_ops.scan import scan_op

    def body(largest, now):
        largest = torch.maximum(largest, now)
        return [largest, largest.clone()]

    return scan_op(body, [sequence[0].clone()], [sequence.clone()], ())[1]
