"""A cell as one graph of expressions: its gates, the sources of its stages and its step together.

Read from the graphs that the cell's functions were recorded as, which the kernels are printed from
too. Equal expressions are one node, so what a cell computes once stands once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from fused_rnn.cells import Cell, graphs

aten = torch.ops.aten

# The operations of the built-in cells, by the names that the printer and the drawings use.
NAMES = {
    aten.add.Tensor: "add",
    aten.sub.Tensor: "sub",
    aten.mul.Tensor: "mul",
    aten.div.Tensor: "div",
    aten.neg.default: "neg",
    aten.sigmoid.default: "sigmoid",
    aten.tanh.default: "tanh",
    aten.relu.default: "relu",
    aten.exp.default: "exp",
    aten.log.default: "log",
    aten.rsqrt.default: "rsqrt",
    aten.reciprocal.default: "reciprocal",
    aten.maximum.default: "maximum",
    aten.remainder.Tensor: "remainder",
    aten.where.self: "where",
    aten.gt.Scalar: "greater",
    aten.lt.Scalar: "less",
    aten.eq.Scalar: "equal",
}


@dataclass(frozen=True)
class Node:
    """One value. Two nodes are the same value if and only if they are the same object.

    Args:
        kind: an operation of ``NAMES``; "x", "state", "param", "stream", "t" or "number", which are
            given; "gate", a sum of products; "mean", "sum", "cumsum" or "identity" of a vector.
        inputs: the values it is computed from. Of a gate: the vectors that its matrix multiplies.
        name: of a given value or a gate; the digits of a number.
    """

    kind: str
    inputs: tuple[Node, ...] = field(default=(), repr=False)
    name: str = ""

    def __hash__(self):
        return id(self)

    def __eq__(self, other):
        return self is other


class Algebra:
    """All values of one step of a cell.

    Attributes:
        cell: the cell.
        states: by name the new states, in the order of the cell's.
        nodes: all values, each after those it is computed from.
    """

    def __init__(self, cell: Cell):
        self.cell = cell
        self._made: dict[tuple, Node] = {}
        gates: dict[str, Node] = {}
        for s, stage in enumerate(cell.stages):
            self._plain_gates(gates, cell.spans[s][0])
            vectors = self._read("source", s, gates)
            for i, gate in enumerate(stage.gates):
                inputs = (vectors[i],) if stage.fixed else tuple(vectors)
                gates[gate] = self.node(stage.fixed or "gate", inputs, gate)
        self._plain_gates(gates, len(cell.gates))
        new = self._read("step", 0, gates)
        self.states = dict(zip(cell.states, new, strict=True))
        needed = _closure(new)
        self.nodes = [node for node in self._made.values() if node in needed]

    def node(self, kind: str, inputs: tuple[Node, ...] = (), name: str = "") -> Node:
        key = (kind, inputs, name)
        if key not in self._made:
            self._made[key] = Node(kind, inputs, name)
        return self._made[key]

    def users(self, node: Node) -> list[Node]:
        return [user for user in self.nodes if node in user.inputs]

    def _plain_gates(self, gates, until):
        """The gates before a stage that belong to none, whose values are those of x alone."""
        for gate in self.cell.gates[len(gates) : until]:
            gates[gate] = self.node("gate", (), gate)

    def _read(self, part, stage, gates) -> list[Node]:
        cell, values = self.cell, {}
        before = cell.gates if part == "step" else cell.gates[: cell.spans[stage][0]]
        names = [*cell.streams, *(drawn.name for drawn in cell.drawn)]
        given = [gates[gate] for gate in before]
        for kind, group in (("state", cell.states), ("param", cell.params), ("stream", names)):
            given += [self.node(kind, (), name) for name in group]
        given.append(self.node("t"))
        graph = graphs.graph(cell, part, stage).graph
        for node, value in zip(graph.find_nodes(op="placeholder"), given, strict=True):
            values[node] = value
        for node in graph.nodes:
            if node.op == "call_function":
                values[node] = self._operation(node, values)
        (output,) = graph.find_nodes(op="output")
        return [values[node] for node in output.args[0]]

    def _operation(self, node, values):
        args = [self._argument(a, values) for a in node.args]
        target = node.target
        if target in (aten.detach.default, aten.log_sigmoid_forward.default):
            return args[0] if target is aten.detach.default else self._log_sigmoid(args[0])
        if getattr(target, "__name__", "") == "getitem":
            return args[0]
        if target is aten.full_like.default:
            return args[1]
        if target is aten.rsub.Scalar:
            return self.node("sub", (args[1], args[0]))
        if target is aten.clamp.default:
            assert node.args[1] is None, "only an upper bound has been seen"
            return self.node("minimum", (args[0], args[2]))
        kind = NAMES[target]
        zero, one = (self.node("number", (), digits) for digits in "01")
        if (kind in ("add", "sub") and args[1] is zero) or (kind == "div" and args[1] is one):
            return args[0]
        if kind == "mul" and one in args:
            return args[0] if args[1] is one else args[1]
        return self.node(kind, tuple(args))

    def _log_sigmoid(self, value):
        return self.node("log", (self.node("sigmoid", (value,)),))

    def _argument(self, value, values):
        if isinstance(value, torch.fx.Node):
            return values[value]
        if value is None:  # an absent bound
            return None
        return self.node("number", (), "e" if value == math.e else f"{value:g}")


def _closure(nodes):
    found, left = set(), list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.inputs
    return found
