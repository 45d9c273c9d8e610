"""What every test starts from: fixed seeds and poisoned memory; which tests run."""

import contextlib
import importlib
import importlib.util
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

COMPILED = tuple(Path(__file__).parent / name for name in ("compiled", "simulator"))
INTERPRETED = True  # decided by pytest_configure

# What "auto" runs is the same on every day: no test depends on a clock.
os.environ.setdefault("FUSED_RNN_MEASURE", "0")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_configure(config):
    """Decide whether the kernels of this process are interpreted, and then define them.

    Triton settles it for a kernel when the kernel is defined, so a process has one kind. Without a
    GPU the kernels are interpreted, except in a run of ``COMPILED`` alone; TRITON_INTERPRET=0 or
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
            importlib.import_module("fused_rnn.kernels.gpu.forward")
            importlib.import_module("fused_rnn.kernels.gpu.backward")


def _only_compiled(config):
    """Whether every path on the command line lies in a folder of ``COMPILED``."""
    here = config.invocation_params.dir
    paths = [Path(here, argument.partition("::")[0]).resolve() for argument in config.args]
    return bool(paths) and all(map(_is_compiled, paths))


def _is_compiled(path):
    return any(path.is_relative_to(folder) for folder in COMPILED)


@pytest.fixture(params=[1, 2, 3, 12])
def threads(request):
    """Set the number of threads that PyTorch uses."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def one_thread():
    """PyTorch with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _same_start():
    """Same random numbers in every test, and NaN in what ``torch.empty`` and the like return.

    Under deterministic algorithms PyTorch fills new memory with NaN (integers with their largest
    value), in custom ops too. So a value that a kernel forgot to write shows up as NaN.
    """
    torch.manual_seed(0)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture(autouse=True)
def _infinity_and_nan_are_meant(request):
    """As in the machine, whose arithmetic the simulator does with numpy."""
    quiet = np.errstate(all="ignore") if _is_compiled(request.path) else contextlib.nullcontext()
    with quiet:
        yield


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
    if INTERPRETED and _is_compiled(module_path):
        return _LeftOut.from_parent(parent, path=module_path)


class _LeftOut(pytest.Module):
    """A file of ``COMPILED`` in a run that interprets the kernels: skipped whole."""

    def collect(self):
        pytest.skip(
            "this run interprets the kernels; `pytest tests/compiled tests/simulator` tests "
            "compiled ones",
            allow_module_level=True,
        )
