"""The equations of a cell in LaTeX, from its graph of expressions."""

from __future__ import annotations

import re

from algebra import Algebra, Node

from fused_rnn.cells import Cell

GREEK = {"alpha", "beta", "gamma", "nu", "tau", "zeta"}
FUNCTIONS = {"sigmoid": r"\sigma", "tanh": r"\tanh", "log": r"\log"}
FUNCTIONS |= {kind: rf"\operatorname{{{kind}}}" for kind in ("mean", "sum", "cumsum")}
ACTIVATIONS = ("sigmoid", "tanh", "relu", "exp")
COMPARISONS = {"greater": ">", "less": "<", "equal": "="}
# How tightly a text binds: sums, products, everything that needs no brackets.
SUM, PRODUCT, ATOM = 0, 1, 2


def equations(cell: Cell) -> list[str]:
    """One "left &= right" per value with a name, each after those that it needs."""
    return _Printer(Algebra(cell)).lines()


def symbol(name: str, time: str = "", mark: str = "") -> str:
    """A name as a symbol: "n_x" is n with index x; ``time`` follows in the index."""
    letter = re.fullmatch(r"([A-Za-z])(\d+)", name)
    head, *rest = letter.groups() if letter else name.split("_")
    if head in GREEK:
        head = f"\\{head}"
    elif len(head) > 1:
        head = rf"\mathrm{{{head}}}"
    head = f"{mark}{{{head}}}" if mark else head
    rest = [part if len(part) == 1 or part.isdigit() else rf"\mathrm{{{part}}}" for part in rest]
    index = ",".join([*rest, *([time] if time else [])])
    return f"{head}_{{{index}}}" if index else head


class _Printer:
    def __init__(self, algebra: Algebra):
        self.algebra, self.cell = algebra, algebra.cell
        self.users = {node: algebra.users(node) for node in algebra.nodes}
        self.named: dict[Node, str] = {}
        for name, node in algebra.states.items():
            if node.kind != "state":
                self.named.setdefault(node, symbol(name, "t"))
        self._name_gates()
        self._name_shared()

    def lines(self) -> list[str]:
        out = [f"{self.named[n]} &= {self._text(n, SUM, True)}" for n in self._ordered()]
        for name, node in self.algebra.states.items():
            if self._text(node, SUM) != symbol(name, "t"):  # another state's value, or an old one
                out.append(f"{symbol(name, 't')} &= {self._text(node, SUM)}")
        return out

    def _ordered(self):
        return [node for node in self.algebra.nodes if node in self.named]

    def _name_gates(self):
        """A gate's letter is for its value after the activation, as papers have it."""
        taken = {"x", *self.cell.states, *self.cell.params, *self.cell.streams}
        for gate in (node for node in self.algebra.nodes if node.kind == "gate"):
            node = gate
            while len(self.users[node]) == 1 and node not in self.named:
                node = self.users[node][0]
                if node.kind not in ("add", "sub"):
                    break
            letter = gate.name.split("_")[0]
            names = [gate.name] if len(letter) > 1 else [letter, gate.name]
            free = [name for name in names if name not in taken]
            if node.kind in ACTIVATIONS and node not in self.named and free:
                taken.add(free[0])
                self.named[node] = symbol(free[0], "t")

    def _name_shared(self):
        count = 0
        for node in self.algebra.nodes:
            if len(self.users[node]) < 2 or node in self.named:
                continue
            if node.kind == "gate":
                self.named[node] = symbol(node.name, "t", r"\hat")
            elif node.kind in ("mean", "sum", "cumsum"):
                self.named[node] = symbol(node.name, "t")
            elif node.inputs and node.kind not in ("identity", *COMPARISONS):
                count += 1
                self.named[node] = f"v_{{{count},t}}"

    def _text(self, node: Node, binding: int, defining: bool = False) -> str:
        """The text of a value, in brackets if it binds less tightly than ``binding``."""
        if node in self.named and not defining:
            return self.named[node]
        text, own = self._parts(node)
        return rf"\left({text}\right)" if own < binding else text

    def _parts(self, node: Node) -> tuple[str, int]:
        kind, inputs = node.kind, node.inputs
        if kind == "gate":
            return self._affine(node)
        if not inputs:
            return self._given(node), ATOM
        if kind == "identity":
            named = self.named.get(inputs[0])
            return (named, ATOM) if named else self._parts(inputs[0])
        if kind in ("add", "sub"):
            sign = "+" if kind == "add" else "-"
            right = self._text(inputs[1], SUM if kind == "add" else PRODUCT)
            return f"{self._text(inputs[0], SUM)} {sign} {right}", SUM
        if kind == "mul":
            left, right = (self._text(i, PRODUCT) for i in inputs)
            if inputs[1].kind == "number":
                left, right = right, left
            dot = r"\cdot" if "number" in (inputs[0].kind, inputs[1].kind) else r"\odot"
            return rf"{left} {dot} {right}", PRODUCT
        return self._function(kind, [self._text(i, SUM) for i in inputs], inputs)

    def _function(self, kind, texts, inputs):
        first = texts[0]
        if kind in FUNCTIONS:
            return rf"{FUNCTIONS[kind]}\left({first}\right)", ATOM
        if kind in ("relu", "maximum", "minimum"):
            name = r"\min" if kind == "minimum" else r"\max"
            both = ["0", first] if kind == "relu" else texts
            return rf"{name}\left({', '.join(both)}\right)", ATOM
        if kind in COMPARISONS:
            return f"{first} {COMPARISONS[kind]} {texts[1]}", SUM
        if kind == "div":
            return rf"\frac{{{first}}}{{{texts[1]}}}", ATOM
        if kind == "where":
            return rf"\begin{{cases}} {self._cases(inputs)} \end{{cases}}", ATOM
        if kind == "remainder":
            left, right = (self._text(i, PRODUCT) for i in inputs)
            return rf"{left} \bmod {right}", PRODUCT
        forms = {
            "neg": "-" + self._text(inputs[0], PRODUCT),
            "exp": rf"e^{{{first}}}",
            "rsqrt": rf"\frac{{1}}{{\sqrt{{{first}}}}}",
            "reciprocal": rf"\frac{{1}}{{{first}}}",
        }
        return forms[kind], SUM if kind == "neg" else ATOM

    def _cases(self, inputs):
        condition, yes, no = inputs
        inner = no.kind == "where" and no not in self.named
        rest = self._cases(no.inputs) if inner else rf"{self._text(no, SUM)} & \text{{otherwise}}"
        return rf"{self._text(yes, SUM)} & \text{{if }} {self._text(condition, SUM)} \\ {rest}"

    def _affine(self, gate: Node) -> tuple[str, int]:
        cell, name, terms = self.cell, gate.name, []
        if name in cell.raw_gates:
            terms.append("x_t")
        elif name in cell.x_gates:
            terms.append(f"W_{{{symbol(name)}}} x_t")
        stage = next((s for s in cell.stages if name in s.gates), None)
        if gate.inputs and stage is not None:
            mark = r"\tilde" if callable(stage.weight) else ""
            matrix = f"{mark}{{R}}_{{{symbol(name)}}}" if mark else f"R_{{{symbol(name)}}}"
            vectors = [self._text(v, ATOM if len(gate.inputs) == 1 else SUM) for v in gate.inputs]
            what = vectors[0] if len(vectors) == 1 else rf"\left[{', '.join(vectors)}\right]"
            terms.append(f"{matrix} {what}")
        terms.append(f"b_{{{symbol(name)}}}")
        return " + ".join(terms), SUM

    def _given(self, node: Node) -> str:
        if node.kind == "number":
            return re.sub(r"1e(-?)0*(\d+)", r"10^{\1\2}", node.name)
        times = {"state": "t-1", "stream": "t"}
        return "t" if node.kind == "t" else symbol(node.name, times.get(node.kind, ""))
