"""A well-written loop over time in plain PyTorch: the baseline of every speed-up."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from torch.nn import functional

import fused_rnn
from fused_rnn.cells import stages


class EagerLoop(fused_rnn.Recurrent):
    """One layer of any cell as a Python loop under autograd.

    A fair baseline: the input product is computed once for the whole sequence, a stage takes one
    ``addmm`` per step, gates are unpacked as views, nothing is sliced inside the loop, and the
    cell's own function is called directly.
    """

    def forward(self, input, hx):
        states = (hx,) if isinstance(hx, Tensor) else hx
        output, finals = self._walk(input, tuple(s[0] for s in states), "_l0")
        finals = tuple(s.unsqueeze(0) for s in finals)
        if self.bidirectional:
            back, others = self._walk(input.flip(0), tuple(s[1] for s in states), "_l0_reverse")
            output = torch.cat((output, back.flip(0)), -1)
            finals = tuple(
                torch.cat((f, o.unsqueeze(0))) for f, o in zip(finals, others, strict=True)
            )
        return output, finals[0] if len(finals) == 1 else finals

    def _walk(self, input, state, suffix):
        """Run one direction, with the parameters of this suffix."""
        cell = self.cell
        weights = self._weights(suffix)
        params = tuple(weights[name] for name in cell.params)
        step = _direct(cell.step, params)
        sources = [self._source(stage.source, params) for stage in cell.stages]
        counts = [end - begin for begin, end in cell.spans]
        matrices = [matrix.t() for matrix in self._by_stage(weights)]
        adding = [self._adding(s, matrices) for s in range(len(counts))]
        outputs = []
        for t, (blocks, own) in enumerate(self._blocks(input, suffix)):
            pre = own[0]
            for s, block in enumerate(blocks):
                v = sources[s](pre, state, t)
                v = v if isinstance(v, Tensor) else torch.cat(v, -1)
                pre += adding[s](block, v).chunk(counts[s], -1) + own[s + 1]
            state = step(pre, state, t)
            state = (state,) if isinstance(state, Tensor) else state
            outputs.append(state[0])
        return torch.stack(outputs), state

    def _source(self, source, params):
        """The source of a stage, as a function of (pre, state, t)."""
        if callable(source):
            return _direct(source, params)
        index = [self.cell.states.index(name) for name in source]
        if len(index) == 1:
            return lambda pre, state, t: state[index[0]]
        return lambda pre, state, t: tuple(state[i] for i in index)

    def _adding(self, stage, matrices):
        """The product of a stage, as a function of the addend and the source."""
        place = self.cell.weight_index[stage]
        if place >= 0:
            return lambda block, v: torch.addmm(block, v, matrices[place])
        return lambda block, v: stages.product(self.cell, stage, v, ())

    def _blocks(self, x, suffix):
        """For each step, the addends of the stages' products; and the gates without a product,
        those before each stage and those after the last."""
        cell, hidden = self.cell, self.hidden_size
        pre = self._without_recurrence(x, suffix)
        ends = [0, *(end for _, end in cell.spans)]
        begins = [*(begin for begin, _ in cell.spans), len(cell.gates)]
        gaps = [
            [pre[..., g * hidden : (g + 1) * hidden].unbind() for g in range(*gap)]
            for gap in zip(ends, begins, strict=True)
        ]
        blocks = [pre[..., begin * hidden : end * hidden].unbind() for begin, end in cell.spans]
        return [
            ([block[t] for block in blocks], [tuple(gate[t] for gate in gap) for gap in gaps])
            for t in range(len(pre))
        ]

    def _without_recurrence(self, x, suffix):
        """The parts of the gates that depend on no earlier step, (T, B, G·H)."""
        cell = self.cell
        rows = self._rows(f"bias_hh{suffix}") if cell.matrices else ()
        recurrent = dict(zip(cell.recurrent_gates, rows, strict=True))
        own = dict(zip(cell.x_gates, self._rows(f"bias_ih{suffix}"), strict=True))
        bias = {g: own[g] + recurrent[g] if g in recurrent else own[g] for g in cell.x_gates}
        linear = [gate for gate in cell.x_gates if gate not in cell.raw_gates]
        parts = {gate: x + bias[gate] for gate in cell.raw_gates}
        if linear:
            weight = getattr(self, f"weight_ih{suffix}")
            product = functional.linear(x, weight, torch.cat([bias[g] for g in linear]))
            if tuple(linear) == cell.gates:
                return product
            parts.update(zip(linear, product.split(self.hidden_size, -1), strict=True))
        for gate in cell.bias_gates:
            parts[gate] = recurrent[gate].expand(*x.shape[:2], -1)
        for gate in cell.gates:
            if gate not in parts:
                parts[gate] = x.new_zeros(*x.shape[:2], self.hidden_size)
        return torch.cat([parts[gate] for gate in cell.gates], -1)

    def _rows(self, name):
        return getattr(self, name).split(self.hidden_size)


def _direct(function, params):
    """A cell's function of (pre, state, t), without the checks of ``Cell`` at every step."""
    asked = inspect.signature(function).parameters
    more = (params,) if "params" in asked else ()
    if "t" in asked:
        return lambda pre, state, t: function(pre, state, *more, t)
    return lambda pre, state, t: function(pre, state, *more)
