"""Launches of the package's kernels, planned for a GPU that is absent."""

from __future__ import annotations

import contextlib
from unittest import mock

import torch
from fused_rnn.kernels.gpu import backward, forward

from fused_rnn import context, plan
from fused_rnn.cells import Cell
from fused_rnn.plan import chips, plans
from fused_rnn.self_check import trial
from fused_rnn.self_check.problem import Problem


@contextlib.contextmanager
def planned_for(capability: int, launch: plan.Launch | None = None):
    """Inside the ``with``, run the kernels on CPU tensors as planned for a GPU.

    Args:
        capability: of the GPU, 90 for 9.0.
        launch: replaces the planned launch of the forward and of the backward.
    """
    chip = chips.chip(divmod(capability, 10))
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(context, "interpreted", return_value=True))
        stack.enter_context(mock.patch.object(plans, "_chip", return_value=chip))
        if launch is not None:
            for module in (forward, backward):
                both = plan.Plan.of(launch)
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
    heads: int = 1,
) -> None:
    """Launch a forward and a backward, with a gradient of the first state's sequence alone.

    Args:
        save: False for a forward alone, which keeps nothing for a backward.
        device: "meta" where the kernels are not run.
        heads: of each recurrent matrix.
    """
    of_first = (f"sequence.{cell.states[0]}",)
    each = [heads] * len(cell.matrices)
    more = {"device": device, "cotangents": of_first, "heads": each}
    problem = Problem.make(cell, T, B, H, dtype=dtype, **more)
    if save:
        trial.by_kernels(problem)
    else:
        forward.forward(cell, *problem.arguments(), False, False)
