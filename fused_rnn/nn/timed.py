"""Times both engines of the CPU on a layer of some kind, for ``engines.cpu_race``.

The layer and its random numbers are this module's own. It neither sees nor changes the caller's
generator, autocast or hooks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import torch
from torch.nn.utils.rnn import pack_padded_sequence

from ..engines import cpu_race
from .recurrent import Recurrent

# The most turns; seconds after which there are no further ones. A longer call needs no warm-up.
_TURNS, _LONG = 5, 0.05


def seconds(kind: cpu_race.Kind) -> tuple[float, float]:
    """The seconds of torch.nn's kernels and of the C++ loop; in training with the backward.

    Args:
        kind: a ``cpu_race.Kind``.
    """
    training = kind.mode == "training"
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(training))
        stack.enter_context(torch.autocast("cpu", enabled=False))
        # Hides the caller's hooks, which might count what is saved, as checkpointing does.
        hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
        stack.enter_context(hooks)
        aten, loop = race([_call(kind, backend, training) for backend in ("aten", "cpp")])
        return aten, loop


def _call(kind, backend, training):
    dtype, cpu = getattr(torch, kind.dtype), torch.device("cpu")
    generator = torch.Generator().manual_seed(0)
    # On "meta", initialisation draws no random numbers.
    module = Recurrent(
        kind.cell,
        kind.I,
        kind.H,
        bidirectional=kind.directions == 2,
        proj_size=kind.P,
        device="meta",
        dtype=dtype,
        backend=backend,
    ).to_empty(device="cpu")
    bound = kind.H**-0.5
    for parameter in module.parameters():
        values = torch.rand(parameter.shape, generator=generator, device=cpu)
        parameter.data.copy_((2 * values - 1) * bound)
    x = torch.randn(kind.T, kind.B, kind.I, generator=generator, device=cpu).to(dtype)
    if kind.packed:
        # Lengths spread evenly from T / 2 to T.
        lengths = torch.linspace(kind.T, (kind.T + 1) // 2, kind.B, device=cpu).long()
        x = pack_padded_sequence(x, lengths)
    parameters = list(module.parameters())

    def run():
        output = module.forward(x)[0]  # not module(x), which runs global hooks
        if training:
            output = output.data if kind.packed else output
            torch.autograd.grad(output.sum(), parameters)

    return run


def race(calls: list[Callable[[], object]]) -> list[float]:
    """The least seconds of each call; the calls take turns.

    A single thread is timed by its own clock, so other load on the machine does not count.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    best, begin = [float("inf")] * len(calls), clock()
    for turn in range(_TURNS + 1):
        for place, call in enumerate(calls):
            start = clock()
            call()
            seconds = clock() - start
            # The first call allocates, and chooses algorithms.
            if turn or seconds > _LONG:
                best[place] = min(best[place], seconds)
        elapsed = clock() - begin
        if max(best) < float("inf") and elapsed > (_LONG if turn > 1 else 8 * _LONG):
            break
    return best


cpu_race.timer = seconds
