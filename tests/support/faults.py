"""Faults planted in the kernels, of forward and backward alike unless they are of gradients."""

import contextlib
import functools
import threading
from unittest import mock

import torch

import fused_rnn
from fused_rnn.self_check import deadline


def changed(name, change):
    """Inside, ``change(function, *arguments)`` instead of the forward or the backward."""
    module = getattr(fused_rnn.kernels.gpu, name)
    right = getattr(module, name)
    return mock.patch.object(module, name, functools.partial(change, right))


def wrong_outputs():
    def change(right, *args):
        sequences, pre, finals = right(*args)
        return [s + 0.01 for s in sequences], pre, finals

    return changed("forward", change)


def wrong_gradient():
    """Only the initial states' gradient, by one in a hundred."""

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
    wrong_outputs: "output 0 is off by",
    wrong_gradient: "gradient of states 0 is off by",
    not_a_number: "is off by nan",
    exception: "RuntimeError: no such instruction",
    hang: "did not return within 0.2 s",
}
