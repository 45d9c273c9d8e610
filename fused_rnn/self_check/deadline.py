"""Work on a device under a deadline: whatever it does, the caller goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

# Seconds for what the host does, which is compilation for the most part; and for the kernels, which
# take milliseconds unless another process has the GPU.
HOST_DEADLINE = 300.0
DEVICE_DEADLINE = 5.0

# Results of what never ended, which may still be written to.
_abandoned: list = []


def settle(device) -> None:
    """Let the caller's own work come to its end, which is none of the check's time."""
    if device.type == "cuda":
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(device))
        _poll(ready, 12 * DEVICE_DEADLINE)


def _poll(event, seconds) -> bool:
    end = time.monotonic() + seconds
    while not event.query():
        if time.monotonic() > end:
            return False
        time.sleep(1e-4)
    return True


def supervise(work: Callable, device: torch.device):
    """What ``work`` returns, run in a thread and, on a GPU, on a stream of its own.

    Raises:
        TimeoutError: the thread or the stream did not end in time; both are abandoned.
    """
    box, launched = {}, threading.Event()

    def body():
        try:
            if device.type != "cuda":
                box["result"] = work()
                return
            with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
                box["result"] = work()
                box["event"] = torch.cuda.Event()
                box["event"].record()
        except BaseException as error:
            box["error"] = error
        finally:
            launched.set()

    thread = threading.Thread(target=body, name="fused_rnn self-check", daemon=True)
    thread.start()
    if not launched.wait(HOST_DEADLINE):
        _abandoned.append(box)
        raise TimeoutError(f"its launches did not return within {HOST_DEADLINE:g} s")
    if "error" in box:
        raise box["error"]
    if "event" in box and not _poll(box["event"], DEVICE_DEADLINE):
        _abandoned.append(box)
        raise TimeoutError(
            f"its kernels did not end within {DEVICE_DEADLINE:g} s; the GPU may be busy with them "
            "until this process ends"
        )
    return box["result"]
