"""The page of equations is up to date, and the graphs behind it and the drawings are right."""

import importlib
import math
import sys
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fused_rnn import cells
from fused_rnn.cells import as_cell

ROOT = Path(__file__).parents[2]


@pytest.fixture
def extension(monkeypatch):
    """Imports a module of docs/_ext by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    kept = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - kept:
        if (ROOT / "docs" / "_ext" / f"{name}.py").exists():
            del sys.modules[name]


OPERATIONS = {
    "greater": torch.gt,
    "less": torch.lt,
    "equal": torch.eq,
    "identity": torch.clone,
    "mean": lambda v: v.mean(-1, keepdim=True).expand_as(v),
    "sum": lambda v: v.sum(-1, keepdim=True).expand_as(v),
    "cumsum": lambda v: v.cumsum(-1),
}


def evaluate(algebra, given, product):
    """The new states by walking over the graph; ``product`` is a gate of its name and vectors."""
    values = {}
    for node in algebra.nodes:
        inputs = [values[i] for i in node.inputs]
        if node.kind == "gate":
            values[node] = product(node.name, inputs)
        elif node.kind == "number":
            number = math.e if node.name == "e" else float(node.name)
            values[node] = torch.tensor(number, dtype=torch.float64)
        elif not inputs:
            values[node] = given[node.kind, node.name]
        else:
            operation = OPERATIONS.get(node.kind) or getattr(torch, node.kind)
            values[node] = operation(*inputs)
    return tuple(values[node] for node in algebra.states.values())


def expected(cell, given, product):
    """The new states by the cell's own functions, one after the other."""
    state, params, streams = (
        [given[kind, name] for name in names]
        for kind, names in (
            ("state", cell.states),
            ("param", cell.params),
            ("stream", cell.streams),
        )
    )
    pre = {}
    for s, stage in enumerate(cell.stages):
        begin = cell.spans[s][0]
        for gate in cell.gates[len(pre) : begin]:
            pre[gate] = product(gate, [])
        vectors = cell.run_source(s, tuple(pre.values()), state, params, streams, given["t", ""])
        for i, gate in enumerate(stage.gates):
            fixed = stage.fixed and OPERATIONS[stage.fixed](vectors[i])
            pre[gate] = fixed if stage.fixed else product(gate, list(vectors))
    for gate in cell.gates[len(pre) :]:
        pre[gate] = product(gate, [])
    return cell.run_step(tuple(pre.values()), state, params, streams, given["t", ""])


@pytest.mark.parametrize("name", cells.names())
def test_the_graph_computes_what_the_cell_does(name, extension):
    cell = as_cell(name)
    H = 6
    given = {("t", ""): torch.tensor(3.0, dtype=torch.float64)}
    groups = {"state": cell.states, "param": cell.params, "stream": cell.streams}
    for kind, names in groups.items():
        given |= {(kind, n): torch.rand(H, dtype=torch.float64) + 0.1 for n in names}
    own = {gate: torch.randn(H, dtype=torch.float64) for gate in cell.gates}
    matrices = {gate: torch.randn(4, H, H, dtype=torch.float64) for gate in cell.gates}

    def product(gate, vectors):
        parts = [matrices[gate][i] @ v for i, v in enumerate(vectors)]
        return own[gate] + sum(parts)

    algebra = extension("algebra").Algebra(cell)
    pairs = zip(evaluate(algebra, given, product), expected(cell, given, product), strict=True)
    for found, wanted in pairs:
        torch.testing.assert_close(found.expand(H), wanted.expand(H), rtol=1e-5, atol=1e-9)


def test_the_equations_of_an_lstm_are_those_of_its_paper(extension):
    gates = [
        rf"{g}_{{t}} &= {f}\left(W_{{{g}}} x_t + R_{{{g}}} h_{{t-1}} + b_{{{g}}}\right)"
        for g, f in zip("figo", (r"\sigma", r"\sigma", r"\tanh", r"\sigma"), strict=True)
    ]
    assert extension("latex").equations(cells.get("lstm")) == [
        *gates[:3],
        r"c_{t} &= f_{t} \odot c_{t-1} + i_{t} \odot g_{t}",
        gates[3],
        r"h_{t} &= o_{t} \odot \tanh\left(c_{t}\right)",
    ]


def test_the_page_is_up_to_date(extension):
    page = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    assert page == extension("equations").page(), (
        "python docs/_ext/equations.py > docs/equations.md"
    )


@pytest.mark.parametrize("name", cells.names())
def test_a_drawing_has_every_gate_and_state(name, extension):
    cell = cells.get(name)
    drawn = extension("drawings").draw(cell)
    assert drawn == extension("drawings").draw(cell)
    texts = {
        text.text for text in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")
    }
    assert {f"{state}(t)" for state in cell.states} <= texts
    fixed = {gate for stage in cell.stages if stage.fixed for gate in stage.gates}
    assert set(cell.gates) - fixed <= {text.split(":")[0] for text in texts}


def test_boxes_of_a_drawing_do_not_overlap(extension):
    nodes = list("abcdefg")
    edges = [("a", "c"), ("b", "c"), ("a", "d"), ("c", "e"), ("d", "g"), ("e", "g"), ("b", "g")]
    places = extension("layers").arrange(nodes, edges)
    rows = {}
    for place in places.values():
        assert place.row >= 0
        rows.setdefault(place.column, []).append(place.row)
    for column in rows.values():
        column.sort()
        assert all(b - a >= 1 - 1e-9 for a, b in pairwise(column))
    assert all(places[a].column < places[b].column for a, b in edges)
