"""A provider in a process of its own: builds, checks and samples one case after the other."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fused_rnn.self_check import measure

from ..race.timing import Sampler
from . import memory
from .workload import load

CALLS = 100  # that a sample of "latency" times one by one


def serve(connection, *arguments) -> None:
    """Answer calls of a ``Runner``'s methods until the other end says None."""
    runner = Runner(*arguments)
    gc.disable()  # between samples, never inside one
    while (asked := connection.recv()) is not None:
        method, *given = asked
        try:
            answer = "result", getattr(runner, method)(*given)
        except Exception as error:  # of any kind: this provider has no figure, the others do
            answer = "error", f"{type(error).__name__}: {error}".splitlines()[0]
        gc.collect()
        connection.send(answer)


class Runner:
    """One provider of a workload; with ``exact`` the first one of each case, in float64."""

    def __init__(self, workload: str, provider: str, device: str, threads: int, tiny: bool,
                 exact: bool = False):  # fmt: skip
        torch.set_num_threads(threads)
        self.workload, self.provider = load(workload), provider
        self.device, self.tiny, self.exact = torch.device(device), tiny, exact
        self.calls: dict[str, Callable[[], dict[str, Tensor]]] = {}
        self.samplers: dict[str, Sampler] = {}

    def open(self, which: str) -> None:
        """Build a case's model and inputs; they replace those of the case before."""
        case = self.workload.case(which)
        sizes = case.sizes(self.device.type, self.tiny)
        self.samplers, self.calls = {}, {}
        torch.manual_seed(0)
        model = case.model(sizes)
        inputs = case.inputs(sizes, torch.Generator().manual_seed(1))
        if self.exact:
            model, inputs = model.double(), [_double(given) for given in inputs]
        name = case.baseline if self.exact else self.provider
        self.module = case.providers[name].make(model.to(self.device), sizes)
        self.inputs = [given.to(self.device) for given in inputs]
        self.autocast = case.autocast if self.device.type == "cuda" and not self.exact else None
        both = {"inference": self._inference, "training": self._training()}
        self.calls = {m: both.get(m, self._inference) for m in case.modes}

    def results(self, path: str) -> None:
        """Save the results of all modes, without dropout."""
        torch.save(self._checked(), path)

    def errors(self, path: str) -> dict[str, float]:
        """The error of each result, against those of a file."""
        exact, own = torch.load(path), self._checked()
        if exact.keys() != own.keys():
            raise RuntimeError(f"results: expected {sorted(exact)}, got {sorted(own)}")
        found = {name: measure.error(own[name].cpu(), exact[name]) for name in exact}
        return {name: math.inf if math.isnan(e) else e for name, e in found.items()}

    def peak(self, mode: str) -> float | None:
        """MB that a call takes beside the model, its inputs and what earlier calls have left."""
        self.module.train(mode == "training")
        self.calls[mode]()  # loads libraries, compiles
        return memory.peak(self.calls[mode], self.device)

    def prepare(self, mode: str) -> float:
        """Warm up; return about how many milliseconds a sample takes."""
        self.module.train(mode == "training")
        self.samplers[mode] = sampler = Sampler(self.calls[mode], self.device)
        return sampler.once * (CALLS if mode == "latency" else sampler.number)

    def sample(self, mode: str) -> list[float]:
        """Milliseconds: of one call, as a mean over a few, or of many calls one by one."""
        sampler = self.samplers[mode]
        return sampler.one_by_one(CALLS) if mode == "latency" else [sampler()]

    def _checked(self):
        self.module.eval()
        return {
            f"{mode} {name}": value.detach()
            for mode, call in self.calls.items()
            for name, value in call().items()
        }

    def _around(self):
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def _inference(self):
        with torch.no_grad(), self._around():
            return _named(self.module(*self.inputs))

    def _training(self):
        """A forward and a backward to the inputs and every parameter."""
        leaves = [
            given.clone().requires_grad_() if given.is_floating_point() else given
            for given in self.inputs
        ]
        wanted = {f"dx{i}": leaf for i, leaf in enumerate(leaves) if leaf.is_floating_point()}
        wanted |= {f"d{name}": own for name, own in self.module.named_parameters()}
        cotangents: list[Tensor] = []

        def call():
            with self._around():
                outputs = _named(self.module(*leaves))
            if not cotangents:  # once the shapes are known
                generator = torch.Generator().manual_seed(2)
                for value in outputs.values():
                    drawn = torch.randn(value.shape, generator=generator)
                    cotangents.append(drawn.to(value.device, value.dtype))
            found = torch.autograd.grad(
                list(outputs.values()), list(wanted.values()), cotangents, materialize_grads=True
            )
            return outputs | dict(zip(wanted, found, strict=True))

        return call


def _named(outputs):
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    return {f"output{i}": value for i, value in enumerate(outputs)}


def _double(given):
    return given.double() if given.is_floating_point() else given


def exact_file(folder: Path, case: int) -> str:
    return str(folder / f"exact-{case}.pt")
