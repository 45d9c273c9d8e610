"""Triton's interpreter with all programs of a grid at once, under a seeded scheduler.

The interpreter runs one program after the other, so a barrier of the grid never opens. Inside
``with concurrent(seed):`` each program is a thread, exactly one of them runs, and a scheduler may
give the turn to another at every load, store, atomic and barrier. Memory is sequentially
consistent here and each operation is atomic: a missing ``debug_barrier`` or a wrong memory order
does not show, for that execute the compiled kernel with ``simulate``.
"""

from __future__ import annotations

import contextlib
import inspect
import random
import threading
from collections.abc import Iterator
from unittest import mock

import numpy as np
from triton.runtime import interpreter

from .errors import Deadlock

# Where another program may get the turn; of atomics, which argument is the pointer.
_POINTS = ("create_masked_load", "create_masked_store", "create_barrier")
_ATOMICS = {"create_atomic_rmw": 1, "create_atomic_cas": 0}
# A program that read the same place so often while nothing changed is waiting.
_PATIENCE = 3


class Turns:
    """Who runs: programs pass the turn on, and are threads that wait for theirs.

    Args:
        count: of programs.
        schedule: "random", or "run-ahead": one goes on until it waits.
        resident: how many have a place on the chip at once.
        limit: of switches.
    """

    def __init__(self, count, schedule, seed, resident, limit):
        self.schedule, self.limit, self.switches = schedule, limit, 0
        self.error: BaseException | None = None
        self.finished = threading.Event()
        self._random = random.Random(seed)
        resident = count if resident is None else resident
        self._live = list(range(min(count, resident)))
        self._absent = list(range(len(self._live), count))
        self._turn = [threading.Semaphore(0) for _ in range(count)]
        self._current = -1
        self._atomics = dict.fromkeys(range(count), 0)  # since memory last changed

    def wait(self, program: int) -> None:
        """Until it is this program's turn."""
        self._turn[program].acquire()
        if self.error is not None:
            raise self.error

    def pass_on(self) -> None:
        """Give the turn to a program; to all, if something went wrong, so that they end."""
        if self.error is not None or not self._live:
            self.finished.set()
            for turn in self._turn:
                turn.release()
            return
        if self.schedule == "random" or self._current not in self._live:
            self._current = self._random.choice(self._live)
        elif self._atomics[self._current] >= _PATIENCE:
            others = [p for p in self._live if p != self._current] or self._live
            self._current = self._random.choice(others)
        self._turn[self._current].release()

    def point(self) -> None:
        """The current program offers the turn."""
        program = self._current
        self.switches += 1
        if self.switches > self.limit:
            self.error = self._deadlock(f"no end after {self.limit} switches")
        elif all(self._atomics[p] > 10 * _PATIENCE for p in self._live):
            self.error = self._deadlock("every program polls, and nothing changes")
        self.pass_on()
        self.wait(program)

    def polled(self, changed: bool) -> None:
        """The current program did an atomic operation."""
        if changed:
            self.changed()
        else:
            self._atomics[self._current] += 1

    def changed(self) -> None:
        """Memory changed: those who wait may find what they wait for."""
        self._atomics = dict.fromkeys(self._atomics, 0)

    def end(self, program: int) -> None:
        """The program is done; the next one may take its place on the chip."""
        if program in self._live:
            self._live.remove(program)
        if self._absent:
            self._live.append(self._absent.pop(0))
        self.changed()
        self.pass_on()

    def _deadlock(self, why: str) -> Deadlock:
        absent = f", {self._absent} are not resident" if self._absent else ""
        return Deadlock(f"{why}: programs {self._live} wait{absent}")


class Run:
    """What went on inside ``concurrent``: ``switches`` of all launches."""

    def __init__(self):
        self.switches = 0
        self.turns: Turns | None = None  # of the launch that is going on
        self.patched: dict = {}  # functions it called, and how to undo what was patched for them


@contextlib.contextmanager
def concurrent(
    seed: int = 0,
    *,
    schedule: str = "random",
    resident: int | None = None,
    limit: int = 200_000,
) -> Iterator[Run]:
    """Interpreted launches inside the ``with`` run all programs of their grid at once.

    Args:
        seed: the same seed gives the same order.
        schedule: "random" or "run-ahead".
        resident: how many programs have a place at once; the next starts when one ends.
        limit: of switches, after which a launch is taken to hang.

    Raises:
        Deadlock: the programs wait for each other, or for one that is not resident.
        ValueError: another schedule.
    """
    if schedule not in ("random", "run-ahead"):
        raise ValueError(f"schedule: expected random or run-ahead, got {schedule!r}")
    run = Run()
    local = threading.local()
    builder = interpreter.InterpreterBuilder

    def offering(name):
        """A load, store or barrier before which another program may get the turn."""
        operation = getattr(builder, name)

        def wrapped(self, *args, **kwargs):
            if run.turns is not None:
                run.turns.point()
                if name == "create_masked_store":
                    run.turns.changed()
            return operation(self, *args, **kwargs)

        return wrapped

    def atomic(name, place):
        """The same of an atomic operation; its pointer is argument number ``place``."""
        operation = getattr(builder, name)

        def wrapped(self, *args, **kwargs):
            if run.turns is None:
                return operation(self, *args, **kwargs)
            run.turns.point()
            before = _value_at(args[place])
            result = operation(self, *args, **kwargs)
            run.turns.polled(changed=not np.array_equal(before, _value_at(args[place])))
            return result

        return wrapped

    def atomic_poll(self, pointer, expected, *_):
        while not (self.create_load(pointer, None, True).data == expected.data).all():
            run.turns.point()
            run.turns.polled(changed=False)
        return interpreter.TensorHandle(np.ones(pointer.data.shape, bool), interpreter.tl.int1)

    def call(self, *args, **kwargs):
        # The language is patched for a function once a launch, not by every thread again.
        if run.turns is None:
            return original_call(self, *args, **kwargs)
        if self.fn not in run.patched:
            run.patched[self.fn] = interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    def launch(self, *args, **kwargs):
        _launch(self, run, local, (schedule, seed, resident, limit), args, kwargs)

    original_call = interpreter.InterpretedFunction.__call__
    here = property(lambda self: local.index, lambda self, index: setattr(local, "index", index))
    with contextlib.ExitStack() as stack:
        for name in _POINTS:
            stack.enter_context(mock.patch.object(builder, name, offering(name)))
        for name, place in _ATOMICS.items():
            stack.enter_context(mock.patch.object(builder, name, atomic(name, place)))
        stack.enter_context(mock.patch.object(builder, "grid_idx", here, create=True))
        if hasattr(builder, "create_atomic_poll"):  # Triton 3.9
            stack.enter_context(mock.patch.object(builder, "create_atomic_poll", atomic_poll))
        stack.enter_context(mock.patch.object(interpreter.InterpretedFunction, "__call__", call))
        stack.enter_context(mock.patch.object(interpreter.GridExecutor, "__call__", launch))
        yield run


def _value_at(pointer) -> np.ndarray:
    """What stands where a block of pointers points."""
    kind = pointer.get_element_ty()
    zeros = np.zeros(pointer.data.shape, interpreter._get_np_dtype(kind))
    everywhere = np.ones(pointer.data.shape, bool)
    return interpreter._interpreter.load(pointer.data, everywhere, zeros, zeros.dtype)


def _launch(executor, run: Run, local, how, args, kwargs) -> None:
    """What ``GridExecutor`` does, with threads for its loops."""
    known = inspect.getfullargspec(executor.fn)
    kwargs = {k: v for k, v in kwargs.items() if k in known.args + known.kwonlyargs}
    host_args, host_kwargs = executor._init_args_hst(args, kwargs)
    for hook in executor.pre_run_hooks:
        hook(*host_args, **host_kwargs)
    scope = interpreter._patch_lang(executor.fn)
    try:
        bound = {
            name: value if name in executor.constexprs else interpreter._implicit_cvt(value)
            for name, value in inspect.getcallargs(executor.fn, *host_args, **host_kwargs).items()
        }
        grid = executor.grid(bound) if callable(executor.grid) else executor.grid
        grid = (*grid, 1, 1)[:3]
        interpreter.interpreter_builder.set_grid_dim(*grid)
        _run_all(executor.fn, bound, grid, run, local, how)
    finally:
        run.turns = None
        for patched in (*reversed(run.patched.values()), scope):
            patched.restore()
        run.patched.clear()
    executor._restore_args_dev(args, host_args, kwargs, host_kwargs)


def _run_all(function, bound, grid, run: Run, local, how) -> None:
    schedule, seed, resident, limit = how
    places = list(np.ndindex(grid[2], grid[1], grid[0]))
    turns = run.turns = Turns(len(places), schedule, seed, resident, limit)

    def body(program):
        try:
            turns.wait(program)
            local.index = places[program][::-1]
            function(**bound)
        except BaseException as error:
            turns.error = turns.error or error
        turns.end(program)

    threads = [threading.Thread(target=body, args=(p,), daemon=True) for p in range(len(places))]
    for thread in threads:
        thread.start()
    turns.pass_on()
    turns.finished.wait()
    for thread in threads:
        thread.join()
    run.switches += turns.switches
    if turns.error is not None:
        raise turns.error
