"""The random problems of tests, run by any backend: outputs and every gradient, by name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fused_rnn import Cell, cells
from fused_rnn.engines import choose
from fused_rnn.ops import recurrence
from fused_rnn.self_check import problem
from tests.support.cells import CLOCKWORK_RNN


class Problem(problem.Problem):
    """A problem that backends run."""

    def _forward(self, backend, cell, x, *others):
        """``recurrence.run`` with the arguments of ``reference.forward``."""
        *others, reverse = others
        return recurrence.run(
            cell,
            x,
            *others,
            reverse=reverse,
            all_states=any(f"sequence.{state}" in self.cotangents for state in cell.states[1:]),
            chosen=choose.layer(backend, cell, x.device, x.dtype).engine,
        )

    def outputs(self, leaves: dict[str, Tensor], backend: str | None) -> dict[str, Tensor]:
        """The results of a backend that have cotangents."""
        args = (self.cell, *self.arguments(leaves), self.reverse)
        return self.results(*self._forward(backend, *args))

    def scan_arguments(self, leaves: dict[str, Tensor]) -> dict:
        """The arguments of ``fused_rnn.scan`` for the same problem, in one direction."""
        x, weights, bias, states, params, streams = self.arguments(leaves)
        return {
            "cell": self.cell,
            "x_part": x.flatten(2),
            "recurrent_weights": [weight.squeeze(0) for weight in weights],
            "states": [state.squeeze(0) for state in states],
            "bias": None if bias is None else bias.flatten(),
            "params": [param.squeeze(0) for param in params],
            "streams": [s.squeeze(2) if s.dim() == 4 else s for s in streams],
            "reverse": self.reverse,
        }

    def run(self, backend: str | None, **backward) -> dict[str, Tensor]:
        """Outputs, and the gradient "d" + name of every input that has one.

        Args:
            backward: options of ``torch.autograd.grad``.
        """
        return self.differentiate(functools.partial(self._forward, backend), **backward)

    def run_higher(self, backend: str | None, order: int = 2) -> dict[str, Tensor]:
        """Derivatives up to an order: the gradients "d1.x", ...; the gradients "d2.x", ... of their
        product with random values, by every input and cotangent; and so on."""
        leaves = self.leaves()
        cotangents = {n: t.detach().requires_grad_() for n, t in self.cotangents.items()}
        wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        outputs, weights = self.outputs(leaves, backend).values(), cotangents.values()
        generator = torch.Generator().manual_seed(1)
        results = {}
        for n in range(1, order + 1):
            gradients = torch.autograd.grad(
                list(outputs),
                list(wanted.values()),
                list(weights),
                create_graph=n < order,
                materialize_grads=True,
            )
            results |= {f"d{n}.{name}": g for name, g in zip(wanted, gradients, strict=True)}
            outputs = [g for g in gradients if g.requires_grad]
            weights = [torch.randn(g.shape, generator=generator).to(g) for g in outputs]
            wanted = wanted | cotangents
        return results

    def run_forward(self, backend: str | None) -> dict[str, Tensor]:
        """Outputs only, without gradient tracking."""
        with torch.no_grad():
            return self.outputs(self.leaves(), backend)


# Of cells for which not every number is a value of an input: its name, and what makes it one.
_DOMAINS = {
    CLOCKWORK_RNN: ("params.period", lambda period: period.abs().ceil()),  # whole
    # A sum of exponentials, by which the cell divides, or 0 where there is no initial state.
    cells.SLSTM: ("states.n", lambda n: torch.where(n == 0, n, 1 + n.abs())),
}


def make_problem(
    cell: Cell, T: int, B: int, H: int, *, contiguous: bool = True, **options
) -> Problem:
    """A random problem in the domain of the cell, whose gates stay off zero if it has a relu.

    Args:
        contiguous: if False, all tensors have unusual strides and a storage offset.
        options: of ``Problem.make``.
    """
    # h is at most 8/3, so |R h| is at most 2/3 (times magnitude), less than any |x|.
    off_zero = 1 / 4 if cell is cells.RNN_RELU else None
    made = Problem.make(cell, T, B, H, off_zero=off_zero, **options)
    if cell in _DOMAINS:
        name, to_domain = _DOMAINS[cell]
        made.inputs[name].copy_(to_domain(made.inputs[name]))
    if contiguous:
        return made
    inputs = {name: _strided(tensor) for name, tensor in made.inputs.items()}
    cotangents = {name: _strided(tensor) for name, tensor in made.cotangents.items()}
    return dataclasses.replace(made, inputs=inputs, cotangents=cotangents)


def stacked(results: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The results of several problems as one. The error of a single value, often a sum whose terms
    cancel, says little about the accuracy of a computation."""
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


def _strided(tensor):
    """The same values with dims reversed in memory, a last stride of two and an offset of one."""
    storage = tensor.new_full((*reversed(tensor.shape[:-1]), 2 * tensor.shape[-1] + 1), torch.nan)
    dims = range(tensor.dim() - 1)
    view = storage[..., 1::2].permute(*reversed(dims), tensor.dim() - 1)
    return view.copy_(tensor)


def run_module(
    module: nn.Module, x: Tensor, hx: Tensor | Sequence[Tensor] | None = None, **options
) -> dict[str, Tensor]:
    """Outputs and final states of a layer and, if gradients are enabled, the gradients of all
    inputs and parameters for random cotangents.

    Args:
        options: further arguments of the call.
    """
    dtype, differentiated = next(module.parameters()).dtype, torch.is_grad_enabled()
    x = x.detach().to(dtype).requires_grad_(differentiated)
    given = [] if hx is None else [hx] if isinstance(hx, Tensor) else list(hx)
    given = [state.detach().to(dtype).requires_grad_(differentiated) for state in given]
    hx = None if hx is None else given[0] if isinstance(hx, Tensor) else tuple(given)
    groups = [[g] if isinstance(g, Tensor) else g for g in module(x, hx, **options)]
    outputs = {f"output.{i}" if i else "output": output for i, output in enumerate(groups[0])}
    outputs |= {f"final.{i}": final for i, final in enumerate(groups[1])}
    if not differentiated:
        return outputs
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(o.shape, generator=generator).to(o) for o in outputs.values()]
    inputs = {"x": x} | {f"hx.{i}": state for i, state in enumerate(given)}
    inputs |= dict(module.named_parameters())
    gradients = torch.autograd.grad(
        list(outputs.values()), list(inputs.values()), cotangents, materialize_grads=True
    )
    return outputs | {f"d{name}": g for name, g in zip(inputs, gradients, strict=True)}
