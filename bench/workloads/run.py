"""Runs a workload: a process per provider, checked first, then sampled in turns."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fused_rnn.self_check import measure

from ..race import gate
from ..race.timing import in_turns
from . import floors, worker
from .rows import Row
from .workload import Case, load

MOST_ROUNDS, LEAST_ROUNDS = 15, 5


class Remote:
    """A ``worker.Runner`` in another process, whose methods are called here."""

    def __init__(self, *arguments: Any):
        context = _context()
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=worker.serve, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, method: str, *given: Any) -> Any:
        """The result of a method.

        Raises:
            RuntimeError: the method raised, or the process died.
        """
        try:
            self._connection.send((method, *given))
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            message = f"its process ended with status {self._process.exitcode}"
            raise RuntimeError(message) from None
        if kind == "error":
            raise RuntimeError(value)
        return value

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()


def run(
    name: str,
    device: str,
    threads: Sequence[int],
    seconds: float = 4.0,
    tiny: bool = False,
    said: Callable[[Sequence[Row]], None] = lambda rows: None,
) -> list[Row]:
    """The rows of a workload.

    Args:
        threads: of each run, on a CPU.
        seconds: that the rounds of a case in one mode should take; 5 to 15 rounds.
        said: gets the rows of each case and mode as soon as they are known.
    """
    workload = load(name)
    with tempfile.TemporaryDirectory() as folder:
        exact = [worker.exact_file(Path(folder), i) for i in range(len(workload.cases))]
        with _remotes(name, workload.providers[:1], device, max(threads), tiny, True) as (
            oracle,
            _,
        ):
            (only,) = oracle.values()
            for case, path in zip(workload.cases, exact, strict=True):
                only.call("open", case.name)
                only.call("results", path)
        rows = []
        for count in threads:
            with _remotes(name, workload.providers, device, count, tiny) as (remotes, absent):
                for case, path in zip(workload.cases, exact, strict=True):
                    start = functools.partial(_start, case, device, tiny, count)
                    for found in _case(case, path, remotes, absent, device, seconds, tiny, start):
                        said(found)
                        rows += found
    return rows


def _case(case, path, remotes, absent, device, seconds, tiny, start) -> Iterator[list[Row]]:
    """The rows of a case, a list per mode."""
    dtype = case.autocast if device != "cpu" and case.autocast else torch.float32
    failed, verdicts = {}, {}
    names = [name for name in case.providers if name in remotes]
    for name in names:
        try:
            remotes[name].call("open", case.name)
            errors = remotes[name].call("errors", path)
        except RuntimeError as error:
            failed[name] = str(error)
            continue
        if name == case.baseline:
            # As in a race: its own errors are the unit, and half of the digits must be right.
            bounds = gate.allowed(errors, dtype)
            cap = torch.finfo(dtype).eps ** 0.5
            verdicts[name] = _verdict(errors, dict.fromkeys(errors, cap))
        elif case.baseline in verdicts:
            verdicts[name] = _verdict(errors, bounds)
        else:
            failed[name] = "the side to compare with has no result"
    for mode in case.modes:
        rows = {}
        for name in case.providers:
            if name in absent:
                status, reason = "absent", absent[name]
            elif name in failed:
                status, reason = "failed", failed[name]
            elif not verdicts[name].ok:
                status, reason = "wrong", str(verdicts[name])
            else:
                status, reason = "checked", "the side to compare with has no figure"
            row = start(mode, name, status, reason)
            rows[name] = row.judged(verdicts[name]) if name in verdicts else row
        racing = [name for name, row in rows.items() if row.status == "checked"]
        if case.baseline in racing:
            peaks = {name: remotes[name].call("peak", mode) for name in racing}
            turn = sum(remotes[name].call("prepare", mode) for name in racing)
            rounds = max(LEAST_ROUNDS, min(MOST_ROUNDS, int(seconds * 1e3 / max(turn, 1e-3))))
            samplers = {
                name: functools.partial(remotes[name].call, "sample", mode) for name in racing
            }
            samples = in_turns(samplers, 2 if tiny else rounds)
            sizes = case.sizes("cpu" if device == "cpu" else "cuda", tiny)
            for name in racing:
                row = rows[name].timed(samples, sizes.get(case.steps, 1))
                rows[name] = floors.beside(row, peaks[name], case.layers(sizes), device, dtype)
        yield list(rows.values())


def _start(case: Case, device, tiny, threads, mode, provider, status, reason) -> Row:
    sizes = case.sizes("cpu" if device == "cpu" else "cuda", tiny)
    other = [f"{name} {case.real[name]}" for name in sizes if sizes[name] != case.real.get(name)]
    return Row(
        case.name,
        ", ".join(f"{name} {value}" for name, value in sizes.items()),
        f"the project's: {', '.join(other)}" if other else "",
        case.in_torch,
        threads,
        mode,
        provider,
        case.baseline,
        status,
        reason,
    )


def _verdict(errors, bounds) -> gate.Verdict:
    tensor, _ = measure.worst({name: error / bounds[name] for name, error in errors.items()})
    return gate.Verdict(tensor, errors[tensor], bounds[tensor])


@contextlib.contextmanager
def _remotes(name, providers, device, threads, tiny, exact=False):
    """A process per provider, and the packages that others lack."""
    workload = load(name)
    known = {p: made for case in workload.cases for p, made in case.providers.items()}
    kind = torch.device(device).type
    absent = {p: known[p].why_absent(kind) for p in providers if known[p].why_absent(kind)}
    remotes = {
        p: Remote(name, p, device, threads, tiny, exact) for p in providers if p not in absent
    }
    try:
        yield remotes, absent
    finally:
        for remote in remotes.values():
            remote.close()


def _context() -> Any:
    """How processes start: forks of one that has imported all and computed nothing, or anew."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    multiprocessing.set_forkserver_preload([worker.__name__])
    return multiprocessing.get_context("forkserver")
