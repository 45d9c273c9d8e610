"""What every test starts from: fixed seeds and poisoned memory; which tests run."""

import importlib.util
import os
from unittest import mock

import pytest
import torch

# Triton decides when a kernel is defined whether it is compiled or interpreted. So without a GPU
# all are defined here, for the interpreter; which backend "auto" picks is left as users find it.
# TRITON_INTERPRET=0 leaves them to the compiler, for tests/compiled.
_CHOICE = os.environ.get("TRITON_INTERPRET")
INTERPRETED = _CHOICE == "1" or (_CHOICE is None and not torch.cuda.is_available())
if INTERPRETED and importlib.util.find_spec("triton"):
    with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):
        import fused_rnn.kernels.backward
        import fused_rnn.kernels.forward  # noqa: F401

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


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
    interpreted = pytest.mark.skip(
        reason="kernels are interpreted in this run; make test-simulator compiles them"
    )
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(no_gpu)
        if INTERPRETED and "compiled" in item.path.parts:
            item.add_marker(interpreted)
