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

ROOT = Path(fused_rnn.__file__).parents[1]
KERNELS = Path(*find_spec("fused_rnn.kernels").submodule_search_locations)

# What the files of a room may import of the other rooms; "name*" only inside a function.
ROOMS = {
    "once": [],
    "context": [],
    "machine": ["context"],
    "cells": ["once", "kernels/gpu*", "engines*"],
    "numerics": ["cells"],
    "products": ["cells", "numerics"],
    "checks": ["cells"],
    "plan": ["cells", "context", "machine", "numerics", "once"],
    "kernels": ["cells"],
    "kernels/cpu": ["cells", "checks", "kernels", "machine", "numerics", "once"],
    "kernels/gpu": ["cells", "checks", "kernels", "numerics", "once", "plan"],
    "self_check": ["cells", "machine", "numerics", "plan", "products", "kernels/gpu*"],
    "engines": [
        *("cells", "checks", "context", "machine", "numerics", "once", "plan", "self_check"),
        *("kernels/cpu*", "kernels/gpu*"),
    ],
    "ops": ["cells", "checks", "context", "engines", "numerics", "products"],
    "nn": ["cells", "checks", "context", "engines", "once", "ops"],
}
# Besides torch and the standard library.
OTHERS = {"kernels/gpu": {"triton", "numpy"}}


def table() -> str:
    """ROOMS in Markdown, as CONTRIBUTING.md has it."""
    lines = ["| room | may import | inside functions only |", "| --- | --- | --- |"]
    for room, may in ROOMS.items():
        always = [f"`{name}`" for name in may if name[-1] != "*"]
        always += [f"`{name}`" for name in sorted(OTHERS.get(room, ()))]
        inside = [f"`{name[:-1]}`" for name in may if name[-1] == "*"]
        lines.append(f"| `{room}` | {', '.join(always) or 'nothing'} | {', '.join(inside)} |")
    return "\n".join(lines) + "\n"


def _room(module: str) -> str:
    first, *rest = module.split(".")[1:] or ["fused_rnn"]
    return f"kernels/{rest[0]}" if first == "kernels" and rest[:1] in (["cpu"], ["gpu"]) else first


def _modules():
    """The package's files, by the names of their modules."""
    found = {}
    for folder, package in ((ROOT / "fused_rnn", "fused_rnn"), (KERNELS, "fused_rnn.kernels")):
        for file in sorted(folder.rglob("*.py")):
            parts = [package, *file.relative_to(folder).with_suffix("").parts]
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


MODULES = _modules()


def _imports(module, file):
    """The modules that a file imports: their names, and whether inside a function."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
    inside = {node for function in functions for node in ast.walk(function)}
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node in inside
        elif isinstance(node, ast.ImportFrom):
            levels = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = (
                ".".join([*levels, *filter(None, [node.module])]) if node.level else node.module
            )
            for alias in node.names:
                name = f"{source}.{alias.name}"
                yield name if name in MODULES else source, node in inside


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_what_its_room_may(module):
    room = _room(module)
    for name, inside in _imports(module, MODULES[module]):
        top, other = name.split(".")[0], _room(name)
        if top != "fused_rnn":
            allowed = {"torch", *OTHERS.get(room, ())} | sys.stdlib_module_names
            assert top in allowed, f"{module} imports {name}"
        elif room != other and room not in ("fused_rnn", "doctor"):
            may = other in ROOMS[room] or (inside and f"{other}*" in ROOMS[room])
            assert may, f"{module} imports {name}"


def test_rooms_make_no_circle():
    at_import = {room: [r for r in may if r[-1] != "*"] for room, may in ROOMS.items()}
    list(TopologicalSorter(at_import).static_order())
    # doctor is a program; nothing imports it, nor the package's own names.
    for module, file in MODULES.items():
        assert not {"fused_rnn", "fused_rnn.doctor"} & {name for name, _ in _imports(module, file)}
    assert {_room(module) for module in MODULES} == {*ROOMS, "fused_rnn", "doctor", "checkout"}


def test_contributing_has_the_table_of_rooms():
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert table() in text, "python tests/project/test_rooms.py prints the table"


def test_only_ops_call_the_package_s_ops():
    """``torch.ops`` would be an arrow to the room ``ops`` that no import shows."""
    for module, file in MODULES.items():
        assert _room(module) == "ops" or "torch.ops.fused_rnn" not in file.read_text("utf-8")


def test_bench_never_imports_tests():
    for file in sorted((ROOT / "bench").rglob("*.py")):
        assert not [name for name, _ in _imports("bench.x", file) if name.startswith("tests")]


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
    import torch
    import fused_rnn
    from fused_rnn.kernels.cpu import emit

    if __name__ == "__main__":
        assert pickle.loads(pickle.dumps(emit.emit)) is emit.emit
        print(fused_rnn.__file__, *fused_rnn.kernels.__path__, emit.__file__)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            there = pool.apply(emit.emit, (fused_rnn.cells.LSTM, torch.float32))
            assert there == emit.emit(fused_rnn.cells.LSTM, torch.float32)
"""


@pytest.mark.parametrize("kernels", ["kernels", "fused_rnn/kernels"], ids=["checkout", "wheel"])
def test_kernels_are_found_without_an_install(tmp_path, kernels):
    # The environment may have an editable install: its kernels are of another place.
    place = tmp_path / "place"
    leave = shutil.ignore_patterns("__pycache__", "kernels")
    shutil.copytree(ROOT / "fused_rnn", place / "fused_rnn", ignore=leave)
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
    assert module == Path(kernels, "cpu", "emit.py")


if __name__ == "__main__":
    print(table())
