"""The package's annotations; ``make types`` checks that they are right."""

import importlib
import inspect
import pkgutil

import pytest

import fused_rnn
from fused_rnn import cells, kernels, plan, torch_classes
from tests.project.typed_program import main

# Triton's language has no annotations but those of its constants.
_DEVICE_CODE = {f"gpu.{name}" for name in ("forward", "backward", "blocks", "sync", "pointwise")}


def modules():
    found = [m.name for m in pkgutil.walk_packages(fused_rnn.__path__, "fused_rnn.")]
    prefix = "fused_rnn.kernels."
    inner = [m.name for m in pkgutil.walk_packages(kernels.__path__, prefix)]
    found += [name for name in inner if name.removeprefix(prefix) not in _DEVICE_CODE]
    return sorted({*found} - {"fused_rnn.kernels"})


def public_functions(owner, module):
    """The public functions and methods of a module, by their qualified names."""
    for name, value in list(vars(owner).items()):
        if name.startswith("_") and name not in ("__init__", "__call__"):
            continue
        if inspect.isclass(value) and value.__module__ == module and value is not owner:
            yield from public_functions(value, module)
            continue
        value = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        function = inspect.unwrap(value) if callable(value) else None
        if inspect.isfunction(function) and function.__module__ == module:
            yield f"{module}.{function.__qualname__}", function


def lacking(function):
    """The parameters without an annotation, and "return"."""
    code = inspect.signature(function)
    names = [p.name for p in code.parameters.values() if p.annotation is p.empty]
    if code.return_annotation is code.empty and function.__name__ != "__init__":
        names.append("return")
    return [name for name in names if name not in ("self", "cls")]


def test_every_public_function_is_annotated():
    found = [
        pair for name in modules() for pair in public_functions(importlib.import_module(name), name)
    ]
    assert len(found) > 200
    bare = {name: names for name, function in found if (names := lacking(function))}
    assert not bare


@pytest.mark.parametrize("module", [fused_rnn, cells, plan, torch_classes])
def test_public_modules_list_public_names_only(module):
    assert dir(module) == sorted(module.__all__)
    assert all(hasattr(module, name) and not name.startswith("_") for name in module.__all__)


def test_the_typed_program_runs(capsys):
    main()
    assert "ugrnn" in capsys.readouterr().out
