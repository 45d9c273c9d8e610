"""Run work on a device with a timeout; control always returns to the caller."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")

# Seconds for the host's work, which is mostly compilation, and for the kernels, which take
# milliseconds unless another process occupies the GPU.
HOST_DEADLINE = 300.0
DEVICE_DEADLINE = 5.0

# Results of abandoned work, kept alive since kernels may still write to them.
_abandoned: list = []


def settle(device: torch.device) -> None:
    """Wait for the caller's own work on the device, so that the deadline excludes it."""
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


def supervise(work: Callable[[], Result], device: torch.device) -> Result:
    """Return the result of ``work``, run in a thread and, on a GPU, on a separate stream.

    Raises:
        TimeoutError: the thread or the stream did not finish in time. Both are abandoned.
    """
    box: dict[str, Any] = {}
    launched = threading.Event()

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
