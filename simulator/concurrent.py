"""Run all programs of a grid concurrently in Triton's interpreter (``TRITON_INTERPRET=1``).

The interpreter runs the programs of a grid one after the other, so a barrier of the whole grid
never opens. Inside ``with concurrent(seed)`` they are interleaved: before each load, store, atomic
and barrier, a seeded scheduler selects the program that continues. It works for any kernel,
unchanged.

Memory is sequentially consistent here, and each operation on a block of addresses is atomic. So a
missing ``tl.debug_barrier`` or a wrong ``sem=`` or ``scope=`` shows only in ``simulate``, which
executes the compiled kernel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
import queue
import random
import threading
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
from fused_rnn.kernels.gpu.interpreter import repair
from triton.runtime import interpreter

from .errors import Deadlock, SimulatorError

SCHEDULES = ("random", "run-ahead")

# Once every program has polled this often in vain, it is a deadlock, even if a loop would end.
_PATIENCE = 20


@dataclasses.dataclass
class Run:
    """Statistics of a ``with concurrent(...)`` so far."""

    launches: int = 0
    switches: int = 0  # decisions of the scheduler, also those for the same program again


@contextlib.contextmanager
def concurrent(
    seed: int = 0,
    schedule: str = "random",
    resident: int | None = None,
    max_switches: int = 1_000_000,
    check_offsets: bool = True,
) -> Iterator[Run]:
    """Run all programs of a grid concurrently, for interpreted launches inside the ``with``.

    An exception in a program ends the launch, which raises it as the interpreter does.
    After the ``with`` the interpreter is restored, except that it keeps the fixes for bfloat16.
    Launch from one thread at a time.

    Args:
        seed: the same seed gives the same order of everything.
        schedule: "random"; or "run-ahead", in which a program runs as far as it can: until it
            repeats a futile poll.
        resident: the maximum number of programs that have started and not ended; the next one, in
            a GPU's order (x fastest), starts when one ends. Default: all.
        max_switches: a launch that takes more counts as a deadlock.
        check_offsets: whether an overflow of integers below 64 bits, silent on a GPU, is an
            error. This turns on the checks of Triton's debug mode, ``tl.device_assert`` too.

    Raises:
        Deadlock: the programs of a launch wait for each other, or for one that is not resident.
            It is noticed early if they wait by atomics or volatile loads and store nothing.
        SimulatorError: inside another ``concurrent``.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if resident is not None and resident < 1:
        raise ValueError(f"resident: expected at least 1, got {resident}")
    if interpreter.GridExecutor.__call__.__module__ == __name__:
        raise SimulatorError("concurrent does not nest")
    repair()
    run = Run()
    scheduler = Scheduler(seed, run_ahead=schedule == "run-ahead")
    builder = interpreter.interpreter_builder
    options = dataclasses.replace(builder.options, debug=True) if check_offsets else builder.options
    with (
        _patched(functools.partial(_Launch, run, scheduler, resident, max_switches)),
        mock.patch.object(builder, "options", options),
    ):
        yield run


class Scheduler:
    """Selects the program to continue; one that polls in vain only when all do."""

    def __init__(self, seed: int, run_ahead: bool):
        self._random = random.Random(seed)
        self._run_ahead = run_ahead

    def choose(self, programs: list[_Program], current: _Program | None) -> _Program:
        """Select one of the programs; ``current`` ran last, if it can continue."""
        ready = [program for program in programs if not program.repeats]
        if self._run_ahead and current in ready:
            return current
        return self._random.choice(ready or programs)


class _Stop(BaseException):
    """Unwinds a program whose launch has failed."""


class _Program(threading.Thread):
    """A program in a thread of its own, which runs only while another thread is in ``resume``."""

    def __init__(self, index: tuple[int, int, int], body: Callable[[], None]):
        super().__init__(daemon=True)
        self.index = index
        self.ended = False
        self.error: BaseException | None = None
        self.repeats = 0  # of polls in vain, since memory changed or the program did anything else
        self._polled: set[bytes] = set()  # addresses, since then
        self._go: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._back: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._body = body

    def resume(self) -> None:
        """Run until the next pause, or the end."""
        if self.ident is None:
            self.start()
        else:
            self._go.put(True)
        self._back.get()

    def stop(self) -> None:
        """Unwind the program, wherever it is."""
        if self.ident is not None:
            self._go.put(False)
            self.join()

    def pause(self) -> None:
        """Let others run; called by the program."""
        self._back.put(None)
        if not self._go.get():
            raise _Stop

    def poll(self, pointers: interpreter.TensorHandle) -> None:
        """Note a poll of these addresses."""
        addresses = pointers.data.tobytes()
        self.repeats = self.repeats + 1 if addresses in self._polled else 0
        self._polled.add(addresses)

    def progress(self) -> None:
        """Forget polls: the program did something else, or memory changed."""
        self.repeats = 0
        self._polled.clear()

    def run(self) -> None:  # of Thread
        try:
            self._body()
        except BaseException as error:  # the launch raises it, unless it is _Stop
            self.error = error
        finally:
            self.ended = True
            self._back.put(None)


class _Launch:
    """All programs of one grid; replaces the kernel in the loops of ``GridExecutor``.

    The loops call it once for each program. The last call runs them all.
    """

    def __init__(self, run: Run, scheduler: Scheduler, resident, max_switches, kernel):
        self.__globals__, self.__name__ = kernel.__globals__, kernel.__name__
        self.__signature__ = inspect.signature(kernel)
        self.current: _Program | None = None  # the one that runs, or ran last
        self._run, self._scheduler, self._kernel = run, scheduler, kernel
        self._resident, self._max_switches = resident, max_switches
        self._absent: list[_Program] = []  # not started yet, in reverse order
        self._live: list[_Program] = []
        self._language = {id(kernel.__globals__)}  # ids of the globals in which tl is patched
        self._cleanup = contextlib.ExitStack()

    def __call__(self, **arguments):
        builder = interpreter.interpreter_builder
        body = functools.partial(self._kernel, **arguments)
        self._absent.append(_Program(builder.grid_idx, body))
        if len(self._absent) == math.prod(builder.grid_dim):
            self._absent.sort(key=lambda program: program.index[::-1], reverse=True)
            with self._cleanup:
                self._run_all()

    def patch_language(self, function) -> None:
        """Patch ``tl`` as the module of a called function sees it."""
        # Triton itself patches at each of these calls: slow, and never undone.
        if id(function.__globals__) not in self._language:
            self._language.add(id(function.__globals__))
            self._cleanup.callback(interpreter._patch_lang(function).restore)

    def changed(self) -> None:
        """Note that memory changed, or may have."""
        for program in self._live:
            program.progress()

    def _run_all(self):
        self._run.launches += 1
        last = self._run.switches + self._max_switches
        while self._absent or self._live:
            while self._absent and len(self._live) != self._resident:
                self._live.append(self._absent.pop())
                self._cleanup.callback(self._live[-1].stop)
            if self._run.switches == last:
                raise self._deadlock(f"no end after {self._max_switches} switches")
            if all(program.repeats >= _PATIENCE for program in self._live):
                raise self._deadlock("every program polls what none will change")
            self._run.switches += 1
            program = self.current = self._scheduler.choose(self._live, self.current)
            # The builder is the same for all programs; only this one runs until it pauses.
            interpreter.interpreter_builder.grid_idx = program.index
            program.resume()
            if program.ended:
                self._live.remove(program)
            if program.error is not None:
                raise program.error

    def _deadlock(self, why):
        waiting = ", ".join(str(program.index) for program in self._live)
        absent = ", ".join(str(program.index) for program in reversed(self._absent))
        return Deadlock(f"{why}: {waiting} wait" + (absent and f"; {absent} are not resident"))


@contextlib.contextmanager
def _patched(start: Callable[..., _Launch]):
    """Patch the interpreter to run each grid by the launch that ``start`` makes of a kernel."""
    launch: _Launch | None = None  # the current one
    builder = interpreter.InterpreterBuilder
    run_grid = interpreter.GridExecutor.__call__
    call_function = interpreter.InterpretedFunction.__call__

    def grid(executor, *args, **kwargs):
        nonlocal launch
        launch = start(executor.fn)
        try:
            with mock.patch.object(executor, "fn", launch):
                return run_grid(executor, *args, **kwargs)
        except interpreter.InterpreterError as error:
            if isinstance(error.__cause__, Deadlock):  # the interpreter wraps every exception
                raise error.__cause__ from None
            raise
        finally:
            launch = None

    def function(self, *args, **kwargs):
        if launch is None:
            return call_function(self, *args, **kwargs)
        launch.patch_language(self.fn)
        return self.rewrite()(*args, **kwargs)

    def shared(name, effect):
        """Wrap an operation: others may run before it, ``effect(result, *arguments)`` after it."""
        operation = getattr(builder, name)

        def replacement(self, *args, **kwargs):
            if launch is None or launch.current is None:
                return operation(self, *args, **kwargs)
            launch.current.pause()
            result = operation(self, *args, **kwargs)
            effect(result, *args, **kwargs)
            return result

        return mock.patch.object(builder, name, replacement)

    def looked(pointers, changed):
        if changed:
            launch.changed()
        else:
            launch.current.poll(pointers)

    def load(result, pointers, *args, **kwargs):
        if kwargs.get("is_volatile", args and args[-1]):
            looked(pointers, changed=False)
        else:  # the compiler may hoist it out of a loop, so it is no poll
            launch.current.progress()

    def rmw(result, _, pointers, value, mask, *__):
        old, mask = result.data, mask.data
        new = interpreter._interpreter.load(pointers.data, mask, np.zeros_like(old), old.dtype)
        looked(pointers, changed=((new != old) & mask).any())

    def cas(result, pointers, expected, value, *_):
        hit = result.data == expected.data
        looked(pointers, changed=(hit & (expected.data != value.data)).any())

    def poll(self, pointers, expected, timeout, *args):
        # Without a timeout Triton 3.9.0 passes an empty ir.value, which its own loop cannot read.
        timeout = timeout if hasattr(timeout, "data") else None
        return wait(self, pointers, expected, timeout, *args)

    with (
        mock.patch.object(interpreter.GridExecutor, "__call__", grid),
        mock.patch.object(interpreter.InterpretedFunction, "__call__", function),
        shared("create_masked_load", load),
        shared("create_masked_store", lambda *_, **__: launch.changed()),
        shared("create_atomic_rmw", rmw),
        shared("create_atomic_cas", cas),
        shared("create_barrier", lambda _: None),
        contextlib.ExitStack() as newer,
    ):
        if wait := getattr(builder, "create_atomic_poll", None):  # Triton 3.9, a loop of loads
            newer.enter_context(mock.patch.object(builder, "create_atomic_poll", poll))
        yield
