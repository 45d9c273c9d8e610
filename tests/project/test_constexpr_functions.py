"""What functions and constants of kernels may be, in all versions of Triton that are supported."""

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


def shared_constants(source: str) -> list[str]:
    """The names of global ``constexpr`` values."""
    return [
        ast.unparse(node.targets[0])
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).endswith("constexpr")
    ]


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_no_constant_of_functions_is_global(path):
    """Triton's key of a kernel has such constants of the functions that it calls, but only if they
    had a key already. So one kernel would have several, and be compiled again in another order.
    """
    alone = ["_NO_TOTALS"] if path.name == "pieces.py" else []  # of a kernel that none calls
    assert shared_constants(path.read_text()) == alone


def test_such_a_constant_is_found():
    assert shared_constants("_SIZE = tl.constexpr(4)\nOTHER = max(4, 2)\n") == ["_SIZE"]
