"""Which module may import which, and that nothing but the kernels needs Triton."""

import ast
import shutil
import subprocess
import sys
import textwrap
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest

import fused_rnn

HOUSE = Path(fused_rnn.__file__).parent

# What a module may import of the package when it is imported, and what only inside a function.
ARROWS = {
    "__init__": {
        "activations",
        "backends",
        "cells",
        "checkout",
        "convert",
        "explain",
        "flops",
        "function",
        "modules",
        "one_step",
        "self_check",
        "torch_classes",
    },
    "flops": set(),
    "sharded": set(),
    "activations": set(),
    "aten": {"backends", "boundary", "cells", "choice", "direct", "onnx_export", "tuned"},
    "choice": {"cells", "engines", "machine", "measured", "once"},
    "timed": {"modules"},
    "once": set(),
    "registry": set(),
    "boundary": {"cells", "once"},
    "cells": {"once", "registry"},
    "checkout": set(),
    "backends": {"cells", "onnx_export"},
    "recorder": set(),
    "snapshot": {"once", "recorder"},
    "trace": {"cells", "once", "recorder", "snapshot"},
    "reference": {"cells"},
    "sequence": {"boundary", "cells", "trace"},
    "tables": set(),
    "cost": {"cells", "tables"},
    "machine": {"backends"},
    "tuned": {"cells", "machine", "tables"},
    "plan": {"cells", "cost", "once", "tuned", "tables"},
    "deadline": set(),
    "trial": {"cells", "deadline", "machine", "plan", "reference"},
    "self_check": {"activations", "backends", "cells", "machine", "plan", "trial"},
    "transforms": {"cells"},
    "compiler": {"machine", "once"},
    "direct": set(),
    "measured": set(),
    "onnx_export": {"cells", "reference"},
    "engines": {"backends", "cells", "compiler", "once", "self_check", "sequence"},
    "function": {
        "backends",
        "boundary",
        "cells",
        "direct",
        "engines",
        "onnx_export",
        "reference",
        "registry",
        "sequence",
        "sharded",
        "transforms",
        "weight_gradients",
    },
    "at_once": {
        "backends",
        "cells",
        "direct",
        "engines",
        "function",
        "transforms",
        "weight_gradients",
    },
    "recompute": {
        "at_once",
        "backends",
        "boundary",
        "cells",
        "function",
        "registry",
        "sequence",
        "transforms",
        "weight_gradients",
    },
    "weight_gradients": {"cells", "sequence"},
    "segments": {"cells", "once", "onnx_export"},
    "arguments": {"cells", "function", "trace"},
    "packed": {
        "at_once",
        "backends",
        "cells",
        "direct",
        "engines",
        "function",
        "recompute",
        "segments",
        "transforms",
    },
    "older_graphs": {"cells"},
    "layer": {
        "backends",
        "cells",
        "older_graphs",
        "onnx_export",
        "packed",
        "recompute",
        "segments",
    },
    "bases": {"cells"},
    "modules": {
        "arguments",
        "aten",
        "backends",
        "bases",
        "cells",
        "function",
        "layer",
        "older_graphs",
        "segments",
        "sharded",
    },
    "explain": {
        "aten",
        "backends",
        "cells",
        "choice",
        "engines",
        "measured",
        "modules",
        "one_step",
        "plan",
        "self_check",
        "tuned",
    },
    "one_step": {
        "arguments",
        "aten",
        "backends",
        "cells",
        "function",
        "layer",
        "older_graphs",
        "sharded",
        "step",
    },
    "step": {"cells", "sequence"},
    "torch_classes": {"arguments", "modules", "one_step"},
    "holders": set(),
    "convert": {"backends", "cells", "holders", "modules", "one_step", "torch_classes"},
    "doctor": {"backends", "cells", "compiler", "machine", "modules", "plan", "trial"},
}
LAZY = {
    "cells": {"kernels", "snapshot"},
    "choice": {"timed"},
    "doctor": {"kernels"},
    "engines": {"kernels"},
}
FILES = sorted(HOUSE.glob("*.py"))


KERNELS = Path(*find_spec("fused_rnn.kernels").submodule_search_locations)


def _imports(nodes, level=1):
    """Of the package, by so many dots: names of modules. Of others: their top-level names."""
    own, others = set(), set()
    for node in nodes:
        if isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == level:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            own |= {name.split(".")[0] for name in names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            others.add(node.module.split(".")[0])
    return own, others


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_arrows(path):
    tree = ast.parse(path.read_text())
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.Lambda)]
    inside = {node for function in functions for node in ast.walk(function)}
    own, others = _imports(node for node in ast.walk(tree) if node not in inside)
    assert own <= ARROWS[path.stem]
    assert others <= {"torch"} | sys.stdlib_module_names
    own, others = _imports(inside)
    assert own <= ARROWS[path.stem] | LAZY.get(path.stem, set())
    assert others <= {"torch"} | sys.stdlib_module_names


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*.py")), ids=lambda path: path.stem)
def test_kernels_know_cells_and_plans_only(path):
    own, others = _imports(ast.walk(ast.parse(path.read_text())), level=2)
    assert own <= {
        "activations",
        "boundary",
        "cells",
        "compiler",
        "once",
        "plan",
        "sequence",
        "trace",
    }
    assert others <= {"numpy", "torch", "triton"} | sys.stdlib_module_names


def test_arrows_make_no_circle():
    list(TopologicalSorter(ARROWS).static_order())
    # doctor is a program; nothing imports it, nor the package's own names.
    assert not {"__init__", "doctor"} & set().union(*ARROWS.values())


HIDE_TRITON = """
    import sys
    from importlib.machinery import PathFinder

    class WithoutTriton(PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            hidden = name.split(".")[0] == "triton"
            return None if hidden else PathFinder.find_spec(name, path, target)

    sys.meta_path = [WithoutTriton if f is PathFinder else f for f in sys.meta_path]
"""

TRAIN = """
    import importlib.util
    import pytest
    import torch
    import fused_rnn

    assert importlib.util.find_spec("triton") is None
    for module in (fused_rnn.LSTM(3, 4), fused_rnn.PeepholeLSTM(3, 4)):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        x, losses = torch.randn(5, 2, 3), []
        for _ in range(3):
            optimizer.zero_grad()
            losses.append(module(x)[0].square().mean())
            losses[-1].backward()
            optimizer.step()
        assert losses[2] < losses[1] < losses[0]
    with pytest.raises(RuntimeError, match="'lstm' here: Triton is not installed"):
        fused_rnn.LSTM(3, 4, backend="triton")(x)
    with pytest.raises(ImportError, match="triton"):
        fused_rnn.cells.LSTM.triton_source()
"""


def _run(code):
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def test_trains_where_triton_is_absent():
    _run(textwrap.dedent(HIDE_TRITON) + textwrap.dedent(TRAIN))


def test_import_does_not_import_triton():
    loaded = _run("import sys, fused_rnn; print(*sys.modules)").split()
    assert "fused_rnn.cells" in loaded
    assert not [name for name in loaded if name.split(".")[0] == "triton"]
    assert not [name for name in loaded if name.startswith("fused_rnn.kernels.")]


FIND_KERNELS = """
    import multiprocessing
    import pickle
    import sys

    sys.path.insert(0, {place!r})
    import fused_rnn
    from fused_rnn.kernels import emit_c

    if __name__ == "__main__":
        assert fused_rnn.kernels.emit_c is emit_c
        assert pickle.loads(pickle.dumps(emit_c.emit)) is emit_c.emit
        print(fused_rnn.__file__, *fused_rnn.kernels.__path__, emit_c.__file__)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            there = pool.apply(emit_c.emit, (fused_rnn.cells.LSTM, fused_rnn.cells.torch.float32))
            assert there == emit_c.emit(fused_rnn.cells.LSTM, fused_rnn.cells.torch.float32)
"""


@pytest.mark.parametrize("kernels", ["kernels", "fused_rnn/kernels"], ids=["checkout", "wheel"])
def test_kernels_are_found_without_an_install(tmp_path, kernels):
    # The environment may have an editable install: its kernels are of another place.
    place = tmp_path / "place"
    leave = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(HOUSE, place / "fused_rnn", ignore=leave)
    shutil.copytree(KERNELS, place / kernels, ignore=leave)
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(FIND_KERNELS).format(place=str(place)))
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    package, folder, module = (Path(path).relative_to(place) for path in done.stdout.split())
    assert package == Path("fused_rnn/__init__.py")
    assert folder == Path(kernels)
    assert module == Path(kernels, "emit_c.py")
