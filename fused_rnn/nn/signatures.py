"""What a call of a module takes and returns, for type checkers alone: never imported at run time.

A call of a module of torch.nn has no types of its own: these give it some. ``States`` is what the
cell's states are for a user: a tensor, or a tuple of one per state. ``Steps`` are a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeVar, overload

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

States = TypeVar("States")
Steps = TypeVar("Steps", Tensor, PackedSequence)
Streams = Tensor | PackedSequence | Sequence[Tensor] | Sequence[PackedSequence] | None


class LayerCall(Protocol[States]):
    """A call of a ``Recurrent``: its ``forward``, with the output that is asked for."""

    @overload
    def __call__(
        self,
        input: Steps,
        hx: States | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        return_states: Literal[False] = False,
        *,
        streams: Streams = None,
        reset_hx: States | None = None,
        key: Tensor | None = None,
    ) -> tuple[Steps, States]: ...
    @overload
    def __call__(
        self,
        input: Steps,
        hx: States | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        *,
        return_states: Literal[True],
        streams: Streams = None,
        reset_hx: States | None = None,
        key: Tensor | None = None,
    ) -> tuple[tuple[Steps, ...], States]: ...
    @overload
    def __call__(
        self,
        input: Steps,
        hx: States | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        return_states: bool = False,
        *,
        streams: Streams = None,
        reset_hx: States | None = None,
        key: Tensor | None = None,
    ) -> tuple[Any, States]: ...


class StackCall(Protocol):
    """A call of a ``Stack``, whose layers have two states."""

    def __call__(
        self,
        input: Steps,
        hx: tuple[Tensor, Tensor] | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Steps, tuple[Tensor, Tensor]]: ...


class StepCall(Protocol[States]):
    """A call of a ``RecurrentCell``: a step from states to states."""

    def __call__(
        self,
        input: Tensor,
        hx: States | None = None,
        streams: Tensor | Sequence[Tensor] | None = None,
        key: Tensor | None = None,
        step: int = 0,
    ) -> States: ...
