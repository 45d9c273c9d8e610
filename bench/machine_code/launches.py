"""The package's own launches, planned for a GPU that is not here."""

from __future__ import annotations

import contextlib
from unittest import mock

import torch
from fused_rnn.kernels.gpu import backward, forward

from fused_rnn import context, plan
from fused_rnn.cells import Cell
from fused_rnn.plan import chips, plans
from tests.support.problems import make_problem


@contextlib.contextmanager
def planned_for(capability: int, launch: plan.Launch | None = None):
    """CPU tensors go to the kernels, by the plan for a GPU.

    Args:
        capability: of the GPU, 90 for 9.0.
        launch: instead of what the plan says, for both directions.
    """
    chip = chips.chip(divmod(capability, 10))
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(context, "interpreted", return_value=True))
        stack.enter_context(mock.patch.object(plans, "_chip", return_value=chip))
        if launch is not None:
            for module in (forward, backward):
                both = plan.Plan(launch, launch)
                stack.enter_context(mock.patch.object(module, "plan", return_value=both))
        yield


def launch_both(
    cell: Cell,
    dtype: torch.dtype,
    H: int,
    T: int,
    B: int,
    save: bool = True,
    device: str = "cpu",
) -> None:
    """A forward and a backward with the gradient of h alone, by the launchers themselves.

    Args:
        save: False for a forward that keeps nothing for a backward, alone.
        device: "meta" where the launches are not run.
    """
    inputs = make_problem(cell, T, B, H, dtype=dtype, device=device).inputs
    weights, states, params, streams = (
        [t for name, t in inputs.items() if name.startswith(group)]
        for group in ("weights", "states", "params", "streams")
    )
    sequences, pre, _ = forward.forward(
        cell, inputs["x"], weights, inputs.get("bias"), states, params, streams, False, save
    )
    if save:
        given = [sequences[0].clone()] + [None] * (len(states) - 1)
        finals = [None] * len(states)
        backward.backward(
            cell, weights, states, params, streams, sequences, pre, given, None, finals, False
        )
