"""``Cell.check`` where there is no GPU: the kernels are compiled for two."""

import io
from unittest import mock

import pytest
import torch
from fused_rnn.kernels.gpu import offline

import tests.support.cells as ours
from fused_rnn import cells
from fused_rnn.self_check import trial

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on a GPU")


def compiled(cell):
    report = cell.check(3, 2, 17, differences=False, stream=io.StringIO())
    return report, {check.of: check for check in report.checks if check.what == "compiled"}


@pytest.mark.parametrize("cell", [ours.NOISY_GRU, ours.FADING_UNITS], ids=ours.name_of)
def test_kernels_compile(cell):
    report, found = compiled(cell)
    assert report.ok
    assert list(found) == ["sm_80", "sm_90"]
    for check in found.values():
        assert check.ok
        assert "forward" in check.result
        assert "backward" in check.result
        assert "registers" in check.result
        assert check.figure == 0


def test_spills_are_said():
    with mock.patch.object(offline, "resources", return_value=(255, 3)):
        _, found = compiled(cells.MGU)
    assert found["sm_90"].ok
    assert found["sm_90"].figure == 3
    assert "forward 255 registers and 3 words spilled" in found["sm_90"].result


def test_kernels_that_do_not_compile_are_a_failure():
    with mock.patch.object(trial, "by_kernels", side_effect=RuntimeError("no such layout\nmore")):
        report, found = compiled(cells.MGU)
    assert not report.ok
    assert found["sm_80"].result.endswith(": RuntimeError: no such layout")


def test_a_size_without_a_plan_is_no_failure():
    with mock.patch("fused_rnn.plan.plan", side_effect=RuntimeError("does not fit")):
        _, found = compiled(cells.MGU)
    assert [check.ok for check in found.values()] == [None, None]
