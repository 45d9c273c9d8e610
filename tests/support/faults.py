"""Faults planted in the kernels: in forward and backward, unless they are of gradients."""

import contextlib
import functools
import threading
from unittest import mock

import torch

from fused_rnn.self_check import deadline


def changed(name, change):
    """Replace the forward or the backward, ``right``, by ``change(right, ...)`` in a ``with``."""
    from fused_rnn.kernels.gpu import engine

    right = getattr(engine, name)
    return mock.patch.object(engine, name, functools.partial(change, right))


def wrong_outputs():
    def change(right, *args):
        sequences, pre, finals = right(*args)
        return [s + 0.01 for s in sequences], pre, finals

    return changed("forward", change)


def wrong_gradient():
    """An error of 1 % in the gradient of an initial state, and in nothing else."""

    def change(right, *args):
        dpre, dstates, *others = right(*args)
        return dpre, [dstates[0] * 1.01, *dstates[1:]], *others

    return changed("backward", change)


def not_a_number():
    def change(right, *args):
        dpre, *others = right(*args)
        dpre[0, 0, 0, 0, 0] = torch.nan
        return dpre, *others

    return changed("backward", change)


def exception():
    from fused_rnn.kernels.gpu import launch

    return mock.patch.object(launch, "start", side_effect=RuntimeError("no such instruction"))


@contextlib.contextmanager
def hang():
    from fused_rnn.kernels.gpu import launch

    free, hanging = threading.Event(), []

    def start(*_):
        hanging.append(threading.current_thread())
        free.wait(30)
        raise RuntimeError("woken up")

    with (
        mock.patch.object(launch, "start", side_effect=start),
        mock.patch.object(deadline, "HOST_DEADLINE", 0.2),
    ):
        yield
    free.set()
    for thread in hanging:
        thread.join()


FAULTS = {
    wrong_outputs: "sequence.h is off by",
    wrong_gradient: "gradient of states.h is off by",
    not_a_number: "is off by nan",
    exception: "RuntimeError: no such instruction",
    hang: "did not return within 0.2 s",
}
