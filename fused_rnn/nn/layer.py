"""The base of all recurrent modules: a cell, the parameters of a layer, and its forward pass."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .. import cells
from ..cells import Cell
from ..context import check_name
from ..engines import choose, onnx
from ..ops.layer import run_layer
from . import packed, regularizers, segments
from .older_graphs import refuse_script


class Layer(nn.Module):
    """Base of the modules: see ``Recurrent`` for the parameters and their order.

    Raises:
        TypeError: ``cell`` is neither a cell nor a name.
        ValueError: an unknown cell or backend.
    """

    cell: Cell
    input_size: int
    hidden_size: int
    bias: bool
    backend: str | None
    proj_size: int = 0
    num_heads: int | Sequence[int] = 1
    learn_h0: bool = False
    zoneout: float | Sequence[float] = 0.0
    state_dropout: float = 0.0
    weight_drop: float = 0.0
    recurrent_dropout: float = 0.0
    cell_clip: float | None = None
    _regularizers = regularizers.Regularizers()
    recompute: bool = False
    _heads: tuple[int, ...] = ()  # per matrix; () for one everywhere

    def __init__(self, cell: Cell | str, backend: str | None = None):
        nn.Module.__init__(self)  # torch.nn.RNNBase's would make parameters of its own
        self.cell = cells.as_cell(cell)
        self.backend = backend if backend is None else check_name(backend)

    @property
    def qconfig(self) -> Any:
        """What ``torch.ao.quantization`` sets in each module that it looks at."""
        if "qconfig" not in vars(self):
            raise AttributeError("qconfig: none was set")
        return vars(self)["qconfig"]

    @qconfig.setter
    def qconfig(self, value: object) -> None:
        # It finds layers by their exact class, and skips any other silently.
        name = type(self).__name__
        warnings.warn(
            f"torch.ao.quantization does not quantise fused_rnn.{name}, which keeps its dtype; "
            "call fused_rnn.revert(model) first to quantise what torch.nn has",
            stacklevel=3,
        )
        vars(self)["qconfig"] = value

    @qconfig.deleter
    def qconfig(self) -> None:
        vars(self).pop("qconfig", None)

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(self)  # called by torch.jit.script

    def _regularize(self, proj_size: int = 0, **given: Any) -> None:
        """Check the arguments of ``regularizers.check``, and keep them by their names."""
        vars(self).update(given)
        self._regularizers = regularizers.check(self.cell, proj_size=proj_size, **given)

    def reset_parameters(self) -> None:
        """Set the initial values: see ``Recurrent``."""
        bound = 1 / math.sqrt(self.hidden_size) if self.hidden_size else 0  # a cell may have none
        own = {name + end: p for end in self._suffixes for name, p in self.cell.given.items()}
        constants = [pair for pair in self.named_buffers(recurse=False) if pair[0] in own]
        for name, tensor in itertools.chain(self.named_parameters(), constants):
            init = own[name].init if name in own else None
            if init is None:
                nn.init.uniform_(tensor, -bound, bound)
            else:
                own[name].fill(tensor)

    @property
    def _suffixes(self) -> list[str]:
        """The suffixes of the names of parameters, one per layer and direction."""
        return [""]

    def _add_parameters(self, features, suffix, device, dtype):
        cell = self.cell
        if cell.raw_gates and features != self.hidden_size:
            raise ValueError(
                f"input_size: gates {cell.raw_gates} of cell {cell.name!r} take the "
                f"input as it is: expected hidden_size = {self.hidden_size} features, "
                f"got {features} in layer {suffix.removeprefix('_l') or 0}"
            )
        for name, shape in self._shapes(features).items():
            tensor = torch.empty(shape, device=device, dtype=dtype)
            if name in cell.given and not cell.given[name].learned:
                self.register_buffer(name + suffix, tensor)
            else:
                self.register_parameter(name + suffix, nn.Parameter(tensor))

    def _weights(self, suffix: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The tensors of a layer in one direction by their names, in a dtype if one is given.

        Matrices are those that are multiplied (``Stage.weight``), and params have H values.
        A parametrization is evaluated at each call, since its state may change: call this once per
        forward.
        """
        own, found = self._parameters, {}
        for name in self._shapes(1):
            weight = own.get(name + suffix)  # several times as fast as an attribute of a module
            if weight is None:  # parametrized, or a buffer
                weight = getattr(self, name + suffix)
            found[name] = weight
        if not self.cell.is_plain:
            self._put_effective(found)
        return found if dtype is None else cast(found, dtype)

    def _put_effective(self, weights):
        """Replace numbers by vectors, and matrices by what ``Stage.weight`` makes of them."""
        cell = self.cell
        for name, param in cell.given.items():
            if param.scalar:
                weights[name] = weights[name].expand(self.hidden_size)
        if not any(callable(stage.weight) for stage in cell.stages):
            return
        own, matrices = self._by_stage(weights), []
        for s, stage in enumerate(cell.stages):
            if stage.fixed:
                continue
            matrix = own[cell.weight_index[s]]
            made = stage.weight(matrix) if callable(stage.weight) else matrix
            if not isinstance(made, Tensor) or made.shape != matrix.shape:
                got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
                raise ValueError(
                    f"cell {cell.name!r}, stage {s}, weight: expected to return a tensor of shape "
                    f"{tuple(matrix.shape)}, got {got}"
                )
            matrices.append(made)
        if "weight_hh" in weights:
            weights["weight_hh"] = matrices[0] if len(matrices) == 1 else torch.cat(matrices)
        else:
            weights.update({f"weight_hh{s}": matrix for s, matrix in enumerate(matrices)})

    def _by_stage(self, weights):
        """The recurrent matrix (R_s·H, V_s·H) of each stage that has one."""
        count, matrix = len(self.cell.matrices), weights.get("weight_hh")
        if matrix is None:
            return [weights[f"weight_hh{s}"] for s in range(count)]
        if count == 1:
            return [matrix]
        return matrix.split([gates * self.hidden_size for gates, _ in self.cell.matrices])

    @property
    def _by_heads(self) -> bool:
        return bool(self._heads) and max(self._heads) > 1

    @property
    def _own_options(self) -> frozenset[str]:
        """What the module's arguments ask of an engine, of ``contract.OPTIONS``."""
        asked = {"num_heads": self._by_heads, **self._regularizers.asked(self.training)}
        return frozenset(name for name, is_asked in asked.items() if is_asked)

    def _width(self, state: int) -> int:
        """The size of state number ``state``."""
        return self.proj_size if self.proj_size and state == 0 else self.hidden_size

    def _shapes(self, features: int) -> dict[str, tuple[int, ...]]:
        """Name and shape of each tensor of a layer in one direction, in torch.nn's order."""
        cell, hidden = self.cell, self.hidden_size
        shapes = {}
        if len(cell.x_gates) > len(cell.raw_gates):
            rows = (len(cell.x_gates) - len(cell.raw_gates)) * hidden
            shapes["weight_ih"] = (rows, features)
        heads = self._heads or (1,) * len(cell.matrices)
        pairs = zip(cell.matrices, heads, strict=True)
        widths = [vectors * self._width(0) // count for (_, vectors), count in pairs]
        if len(set(widths)) == 1:
            shapes["weight_hh"] = (len(cell.recurrent_gates) * hidden, widths[0])
        else:
            for i, (gates, _) in enumerate(cell.matrices):
                shapes[f"weight_hh{i}"] = (gates * hidden, widths[i])
        if self.bias:
            shapes["bias_ih"] = (len(cell.x_gates) * hidden,)
        if self.bias and cell.matrices:
            shapes["bias_hh"] = (len(cell.recurrent_gates) * hidden,)
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, hidden)
        shapes.update((name, () if p.scalar else (hidden,)) for name, p in cell.given.items())
        return shapes

    def _run_layer(
        self,
        chosen,
        input,
        weights,
        states,
        rows=None,
        zeros=False,
        all_states=False,
        streams=(),
        at_resets=None,
        key=None,
    ):
        """One layer in all its directions.

        A projection h = P m with m of H units runs as the cell with states m and the recurrent
        matrices R P. So the loop has one product per step and stage, and the projection of all
        steps is one product after it. A given h0 is added as R h0 where a row starts.

        Args:
            chosen: the engine, by ``choose``.
            input: (T, B, I).
            weights: per direction the tensors of ``_shapes`` by name.
            states: one (D, B, width) per state.
            rows: ``segments.Segments``, or None.
            zeros: whether the states are known to be zeros.
            streams: of the cell, each (T, B, H).
            at_resets: per state (T, D, B, H), where not all resets are to ``states``.
            key: of what the layer draws; None to draw one.

        Returns:
            The sequences (T, B, D, width), of the first state only unless ``all_states``; and the
            states (D, B, width) after the last step.
        """
        cell = self.cell
        if chosen == "onnx" and choose.is_operator(self, input, rows, all_states):
            return onnx.run_operator(cell, input, weights, states, rows, zeros)
        matrices, added = self._recurrent_weights(weights), None
        projection, h0 = None, states[0]
        if self.proj_size:
            projection = _stack([w["weight_hr"] for w in weights])  # (D, P, H)
            if not zeros:
                added = self._pull(h0, matrices, rows, input)
            matrices = [matrix @ projection for matrix in matrices]
            states = [h0.new_zeros(*h0.shape[:2], self.hidden_size), *states[1:]]
        groups = (
            [w["weight_ih"] for w in weights if "weight_ih" in w],
            [w["bias_ih"] for w in weights if self.bias],
            [w["bias_hh"] for w in weights if "bias_hh" in w],
            matrices,
        )
        params, ran = [_stack([w[name] for w in weights]) for name in cell.params], None
        descending = None if rows is None else rows.descending
        streams = [stream.unsqueeze(2).expand(-1, -1, len(h0), -1) for stream in streams]
        run = regularizers.disturbed(self._regularizers, self.training, cell)
        drawing = len(run.drawn) > 0
        plain = added is None and not (streams or drawing or all_states or self.recompute)
        if descending is not None and plain:
            ran = packed.run_layer(run, input, *groups, list(states), params, descending, chosen)
        if ran is not None:
            sequences, finals = map(list, ran)
        else:
            before = 0
            if rows is not None:
                run, states, masks, before = rows.carried_by(
                    run, list(states), input, zeros, all_states, at_resets
                )
                streams += masks
            if drawing and key is None:
                order = None if rows is None else rows.order
                key = cells.draw_key(input.shape[1], input.device, order=order)
            streams += [key] * drawing
            sequences, finals = run_layer(
                run,
                input,
                *groups,
                list(states),
                params,
                streams,
                added=added,
                all_states=all_states,
                recompute=self.recompute,
                chosen=chosen,
            )
            sequences, finals = list(sequences), list(finals[before:])
            if rows is not None:
                wanted = len(cell.states) if all_states else 1
                sequences = [rows.hide(sequence) for sequence in sequences[:wanted]]
        if projection is not None:
            sequences[0] = torch.einsum("tbdh,dph->tbdp", sequences[0], projection)
            finals[0] = finals[0] @ projection.mT
            if rows is not None and rows.valid is not None:
                finals[0] = torch.where(rows.valid[0, :, None], finals[0], h0)
        return sequences, finals

    def _pull(self, h0, matrices, rows, input):
        """R h0 (T, B, D, X, H) at the first steps of rows and segments, zero elsewhere."""
        cell = self.cell
        pull = torch.cat([h0 @ matrix.mT for matrix in matrices], -1)
        pull = pull.unflatten(-1, (len(cell.recurrent_gates), self.hidden_size))
        known = cell.recurrent_gates
        order = [known.index(gate) + 1 if gate in known else 0 for gate in cell.x_gates]
        zero = torch.zeros_like(pull[:, :, :1])
        pull = torch.cat([zero, pull], 2)[:, :, order]
        if rows is None:
            lengths = torch.full((input.shape[1],), input.shape[0], device=input.device)
            rows = segments.Segments(input.shape[0], len(h0), lengths, None)
        return torch.where(rows.starts()[..., None, None], pull.transpose(0, 1), 0)

    def _recurrent_weights(self, weights):
        """Per matrix (D, R_s·H, V_s·H)."""
        return [_stack(group) for group in zip(*map(self._by_stage, weights), strict=True)]


def cast(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights by name, converted to a dtype."""
    for weight in weights.values():
        if weight.dtype != dtype:
            return {name: weight.to(dtype) for name, weight in weights.items()}
    return weights


def _stack(tensors):
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(tensors)
