"""Random problems for any cell, run by any backend: outputs and every gradient, by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fused_rnn import Cell, cells
from fused_rnn.engines import choose
from fused_rnn.ops import recurrence

# The groups of inputs, by the names that ``function.run`` gives them.
GROUPS = ("x", "weights", "bias", "states", "params", "streams")


@dataclasses.dataclass(frozen=True)
class Problem:
    """Inputs of ``function.run`` with their names, and cotangents of everything it returns."""

    cell: Cell
    inputs: dict[str, Tensor]  # each "group" or "group.name"
    cotangents: dict[str, Tensor]  # each "sequence.state" or "final.state"
    without_grad: tuple[str, ...]
    reverse: bool

    def to(self, dtype: torch.dtype | None = None, device=None) -> Problem:
        """The same numbers in another dtype or place: ``.to(torch.float64)`` for the oracle."""

        def move(tensors):
            return {name: tensor.to(device, dtype) for name, tensor in tensors.items()}

        return dataclasses.replace(self, inputs=move(self.inputs), cotangents=move(self.cotangents))

    def leaves(self) -> dict[str, Tensor]:
        """Fresh inputs; those that are to have gradients require them."""
        return {
            name: tensor.detach().requires_grad_(_group(name) not in self.without_grad)
            for name, tensor in self.inputs.items()
        }

    def outputs(self, leaves: dict[str, Tensor], backend: str | None) -> dict[str, Tensor]:
        """What ``function.run`` makes of ``leaves``, of these the ones that have cotangents."""
        groups = _grouped(leaves)
        sequences, finals = recurrence.run(
            self.cell,
            groups["x"][0],
            groups["weights"],
            groups["bias"][0] if groups["bias"] else None,
            groups["states"],
            groups["params"],
            groups["streams"],
            reverse=self.reverse,
            all_states=any(f"sequence.{s}" in self.cotangents for s in self.cell.states[1:]),
            chosen=choose.layer(
                backend, self.cell, groups["x"][0].device, groups["x"][0].dtype
            ).engine,
        )
        named = {f"sequence.{s}": v for s, v in zip(self.cell.states, sequences, strict=False)}
        named |= {f"final.{s}": v for s, v in zip(self.cell.states, finals, strict=True)}
        return {name: named[name] for name in self.cotangents}

    def scan_arguments(self, leaves: dict[str, Tensor]) -> dict:
        """What ``fused_rnn.scan`` is given for the same (one direction)."""
        groups = _grouped(leaves)
        return {
            "cell": self.cell,
            "x_part": groups["x"][0].flatten(2),
            "recurrent_weights": [weight.squeeze(0) for weight in groups["weights"]],
            "states": [state.squeeze(0) for state in groups["states"]],
            "bias": groups["bias"][0].flatten() if groups["bias"] else None,
            "params": [param.squeeze(0) for param in groups["params"]],
            "streams": [stream.squeeze(2) for stream in groups["streams"]],
            "reverse": self.reverse,
        }

    def run(self, backend: str | None, **backward) -> dict[str, Tensor]:
        """Outputs, and the gradient "d" + name of every input that has one.

        Args:
            backward: to ``torch.autograd.grad``.
        """
        leaves = self.leaves()
        outputs = self.outputs(leaves, backend)
        wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
        gradients = torch.autograd.grad(
            list(outputs.values()),
            list(wanted.values()),
            list(self.cotangents.values()),
            materialize_grads=True,
            **backward,
        )
        return outputs | {f"d{name}": g for name, g in zip(wanted, gradients, strict=True)}

    def run_higher(self, backend: str | None, order: int = 2) -> dict[str, Tensor]:
        """Derivatives to an order: the gradients "d1.x", ...; then of a random product with these
        "d2." + name of every input and cotangent; of a random product with these "d3.", ..."""
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
        """Outputs only, without gradients in view."""
        with torch.no_grad():
            return self.outputs(self.leaves(), backend)


def make_problem(
    cell: Cell,
    T: int,
    B: int,
    H: int,
    *,
    D: int = 1,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
    reverse: bool = False,
    bias: bool = True,
    initial: bool = True,
    contiguous: bool = True,
    magnitude: float = 1.0,
    cotangents: Sequence[str] | None = None,
    without_grad: Sequence[str] = (),
) -> Problem:
    """A random problem, the same numbers (but for rounding) in every dtype and on every device.

    Args:
        device: "meta" for shapes without numbers.
        bias: whether the gates without an input part have one.
        initial: whether there are initial states; else they are zeros and have no gradients.
        contiguous: else every tensor has strides that no fresh tensor has, and a storage offset.
        magnitude: the size of x, and so about that of the gates.
        cotangents: what the loss looks at, of "sequence.h", "final.h" and so on. Default: all.
        without_grad: those of GROUPS whose tensors require no gradients.
    """
    generator = torch.Generator().manual_seed(seed)
    hidden = H

    def normal(*shape):
        if device == "meta":
            return torch.empty(shape, dtype=torch.float64, device=device)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {"x": magnitude * normal(T, B, D, len(cell.x_gates), hidden)}
    for s, ((begin, end), size) in enumerate(zip(cell.spans, cell.source_sizes, strict=True)):
        shape = (D, (end - begin) * hidden, size * hidden)
        inputs[f"weights.{s}"] = normal(*shape) / (size * hidden) ** 0.5
    if bias and cell.bias_gates:
        inputs["bias"] = normal(D, len(cell.bias_gates), hidden)
    for name in cell.states:
        start = normal(D, B, hidden)
        inputs[f"states.{name}"] = start if initial else torch.zeros_like(start)
    for name in cell.params:
        value = normal(D, hidden)
        inputs[f"params.{name}"] = value.abs().ceil() if name == "period" else value
    for name in cell.streams:
        inputs[f"streams.{name}"] = normal(T, B, D, hidden).sigmoid()
    if cell is cells.RNN_RELU:
        _keep_off_zero(inputs, magnitude)
    given = {}
    for name in cell.states:
        given[f"sequence.{name}"] = normal(T, B, D, hidden)
        given[f"final.{name}"] = normal(D, B, hidden)
    if cotangents is not None:
        given = {name: given[name] for name in cotangents}

    def place(tensors):
        tensors = {name: t.to(device, dtype) for name, t in tensors.items()}
        return tensors if contiguous else {name: _strided(t) for name, t in tensors.items()}

    without_grad = (*without_grad, *(() if initial else ("states",)))
    return Problem(cell, place(inputs), place(given), without_grad, reverse)


def stacked(results: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The results of several problems as one: a tensor of one value alone, often a sum whose terms
    cancel, says little about how exactly it was computed."""
    return {name: torch.stack([result[name] for result in results]) for name in results[0]}


def _group(name):
    return name.split(".")[0]


def _grouped(leaves):
    groups = {group: [] for group in GROUPS}
    for name, tensor in leaves.items():
        groups[_group(name)].append(tensor)
    return groups


def _keep_off_zero(inputs, magnitude):
    """Gates that no rounding can carry over zero, where the derivative of relu jumps.

    |x| is from 1 to 2, the rows of |R| sum to 1/4: so h ≤ 8/3 and |R h| ≤ 2/3 (times magnitude).
    """
    x, weight, state = inputs["x"], inputs["weights.0"], inputs["states.h"]
    x += magnitude * x.sign()
    x.clamp_(-2 * magnitude, 2 * magnitude)
    weight /= 4 * weight.abs().sum(-1, keepdim=True)
    state.clamp_(-2, 2)


def _strided(tensor):
    """The same values with the dims reversed in memory, every second element, an offset of one."""
    storage = tensor.new_full((*reversed(tensor.shape[:-1]), 2 * tensor.shape[-1] + 1), torch.nan)
    dims = range(tensor.dim() - 1)
    view = storage[..., 1::2].permute(*reversed(dims), tensor.dim() - 1)
    return view.copy_(tensor)


def run_module(
    module: nn.Module, x: Tensor, hx: Tensor | Sequence[Tensor] | None = None, **options
) -> dict[str, Tensor]:
    """Outputs and final states of a layer and, where they are enabled and for random cotangents,
    the gradients of everything.

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
