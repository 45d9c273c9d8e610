"""What every test starts from: fixed seeds and poisoned memory; which tests run."""

import importlib.util
import os
from pathlib import Path
from unittest import mock

import pytest
import torch

COMPILED = Path(__file__).parent / "compiled"
INTERPRETED = True  # decided by pytest_configure

# What "auto" runs is the same on every day: no test depends on a clock.
os.environ.setdefault("FUSED_RNN_MEASURE", "0")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_configure(config):
    """Decide whether the kernels of this process are interpreted, and then define them.

    Triton settles it for a kernel when the kernel is defined, so a process has one kind. Without a
    GPU the kernels are interpreted, except in a run of tests/compiled alone; TRITON_INTERPRET=0 or
    1 overrides. Which backend "auto" picks is left as users find it.
    """
    global INTERPRETED
    choice = os.environ.get("TRITON_INTERPRET")
    if choice is None:
        INTERPRETED = not torch.cuda.is_available() and not _only_compiled(config)
    else:
        INTERPRETED = choice == "1"
    if INTERPRETED and importlib.util.find_spec("triton"):
        with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
            import fused_rnn.kernels.backward
            import fused_rnn.kernels.forward  # noqa: F401


def _only_compiled(config):
    """Whether every path on the command line lies in tests/compiled."""
    here = config.invocation_params.dir
    paths = [Path(here, argument.partition("::")[0]).resolve() for argument in config.args]
    return bool(paths) and all(path.is_relative_to(COMPILED) for path in paths)


@pytest.fixture(autouse=True)
def _same_start():
    """Same random numbers in every test, and NaN in whatever ``torch.empty`` and its kin return.

    Under deterministic algorithms PyTorch fills new memory with NaN (integers with their largest
    value), in custom ops too. So a value that a kernel forgot to write shows up as NaN.
    """
    torch.manual_seed(0)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture
def interpreter(monkeypatch):
    """The fused kernels run on CPU tensors, in Triton's interpreter."""
    pytest.importorskip("triton")
    if not INTERPRETED:
        pytest.skip("the kernels are compiled for this GPU; set TRITON_INTERPRET=1 to test these")
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    no_gpu = pytest.mark.skip(reason="needs a CUDA device; torch.cuda.is_available() is False")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)


def pytest_pycollect_makemodule(module_path, parent):
    if INTERPRETED and module_path.is_relative_to(COMPILED):
        return _LeftOut.from_parent(parent, path=module_path)


class _LeftOut(pytest.Module):
    """A file of tests/compiled in a run that interprets the kernels: skipped whole."""

    def collect(self):
        pytest.skip(
            "this run interprets the kernels; run `pytest tests/compiled` to test compiled ones",
            allow_module_level=True,
        )
