"""What functions that Triton runs when it compiles may do, in all versions that are supported."""

import ast
from pathlib import Path

import pytest

KERNELS = sorted((Path(__file__).parents[2] / "kernels" / "gpu").rglob("*.py"))


def methods_of_tuples(source: str) -> list[str]:
    """The calls of a tuple's method of an argument, in each ``constexpr_function``."""
    found = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        if not any(ast.unparse(d).endswith("constexpr_function") for d in function.decorator_list):
            continue
        arguments = {argument.arg for argument in function.args.args}
        found += [
            f"{function.name}: {ast.unparse(node)}"
            for node in ast.walk(function)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in arguments
            and node.func.attr in ("index", "count")
        ]
    return found


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_no_method_of_a_tuple_is_called(path):
    """In Triton 3.9 a tuple arrives as a class of Triton's own, which has no ``index``."""
    assert methods_of_tuples(path.read_text()) == []


def test_such_a_call_is_found():
    source = "@gluon.constexpr_function\ndef place(all, one):\n    return all.index(one)\n"
    assert methods_of_tuples(source) == ["place: all.index(one)"]
