"""Infinity and NaN in tests of arithmetic are meant, as in the machine."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield
