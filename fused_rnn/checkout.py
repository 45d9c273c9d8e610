"""Makes ``fused_rnn.kernels`` importable in a checkout that is not installed."""

from __future__ import annotations

import sys
from importlib import util
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def load_kernels() -> None:
    """Load the package ``fused_rnn.kernels`` from the folder beside this one, in a checkout.

    Installed, the kernels lie inside this folder and Python finds them. In a checkout they lie at
    the top of the repository. An editable install of another checkout may be present then, and
    Python would find its kernels: so the folder beside this one is taken first.
    """
    package, beside = __name__.rpartition(".")[0], HERE.parent / "kernels"
    if (HERE / "kernels" / "__init__.py").exists() or not (beside / "operations.py").exists():
        return
    spec = util.spec_from_file_location(
        f"{package}.kernels", beside / "__init__.py", submodule_search_locations=[str(beside)]
    )
    assert spec is not None  # the file is there
    assert spec.loader is not None
    kernels = util.module_from_spec(spec)
    sys.modules[spec.name] = kernels
    spec.loader.exec_module(kernels)  # a docstring: no kernel is defined yet
    parent: Any = sys.modules[package]
    parent.kernels = kernels
