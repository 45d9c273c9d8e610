"""``Cell.check``: right cells pass on every engine, and a planted fault is named."""

import io
from unittest import mock

import pytest
import torch
from fused_rnn.kernels.cpu import compiler
from torch import sigmoid, tanh

import fused_rnn
import tests.support.cells as ours
from fused_rnn import Cell, CellReport, Stage, cells, plan
from fused_rnn.engines import sequence
from tests.support.faults import wrong_gradient

FLOATS = ("float64", "float32")
SMALL = {"T": 3, "B": 2, "H": 5, "compile": False}


def checked(cell, **options):
    """The report, and its checks by (what, of)."""
    report = cell.check(**SMALL | {"stream": io.StringIO()} | options)
    return report, {(check.what, check.of): check for check in report.checks}


@pytest.mark.parametrize(
    "cell",
    [
        *ours.USER,
        ours.LEAKING,
        *map(cells.get, ("rnn_relu", "gru", "min_gru", "phased_lstm", "clockwork_rnn")),
    ],
    ids=ours.name_of,
)
def test_right_cells_pass(cell):
    report, found = checked(cell)
    assert report.ok
    ran = {key for key, check in found.items() if check.ok}
    wanted = {("sequence", "float64"), ("sequence", "float32"), ("derivatives", "float64")}
    wanted.add(("gradcheck", "float64"))
    if compiler.find() is not None:
        wanted |= {("cpp", "float64"), ("cpp", "float32")}
    assert ran >= wanted
    assert found["derivatives", "float64"].figure < 1e-7
    for key in ran - {("derivatives", "float64"), ("gradcheck", "float64")}:
        assert found[key].figure < 4


@pytest.mark.parametrize("cell", [ours.NOISY_GRU, ours.FADING_UNITS], ids=ours.name_of)
def test_kernels_in_the_interpreter(interpreter, cell):
    report, found = checked(cell)
    assert report.ok
    for strategy in {"resident", "step", "scan"} & {*plan.strategies(cell)}:
        for dtype in ("float64", "float32"):
            assert found[f"triton, {strategy}", dtype].figure < 4


def test_faults_of_kernels_are_named(interpreter):
    with wrong_gradient():
        report, found = checked(cells.MGU)
    assert not report.ok
    failed = {key for key, check in found.items() if check.ok is False}
    assert failed == {(f"triton, {s}", d) for s in ("resident", "step") for d in FLOATS}
    assert "gradient of states.h is off by 0.01 of" in found["triton, step", "float64"].result


def test_what_is_printed_is_the_report(capsys):
    report = cells.MGU.check(**SMALL)
    printed = capsys.readouterr().out
    assert printed == f"{report}\n"
    first, *lines, last = printed.splitlines()
    assert first == "cell 'mgu', T = 3, B = 2, H = 5"
    assert len(lines) == len(report.checks)
    assert "sequence          float32  ok       " in printed
    ran = sum(check.ok is True for check in report.checks)
    assert last == f"{ran} ok, 0 failed, {len(lines) - ran} not run"
    assert isinstance(report, CellReport)
    assert report == fused_rnn.CellReport("mgu", (3, 2, 5), report.checks)


def _detached(pre, state):
    n, u = pre
    (h,) = state
    u = sigmoid(u.detach())
    return u * h + (1 - u) * tanh(n)


DETACHED = Cell("detached", _detached, gates=("n", "u"))


def test_gradients_that_are_no_derivatives():
    report, found = checked(DETACHED)
    assert not report.ok
    check = found["derivatives", "float64"]
    assert check.ok is False
    assert check.figure > 1e-2
    assert "off by" in check.result
    assert "derivatives       float64  FAILED" in str(report)
    # Every engine computes these gradients, and a straight-through estimator means them.
    assert all(check.ok is not False for check in report.checks[2:])
    assert found["gradcheck", "float64"].ok is False
    report, found = checked(DETACHED, differences=False)
    assert report.ok
    assert not {("derivatives", "float64"), ("gradcheck", "float64")} & found.keys()


def _missing_gradient(pre, state, params):
    (n,) = pre
    (h,) = state
    (scale,) = params
    return 0.5 * h + tanh(n) * scale.detach()


def test_the_tensor_with_the_largest_deviation_is_named():
    cell = Cell("missing_gradient", _missing_gradient, gates=("n",), params=("scale",))
    _, found = checked(cell)
    result = found["derivatives", "float64"].result
    assert result.startswith("gradient of params.scale is off by")
    assert "A constant is Param('scale', ..., learned=False)" in result
    result = found["gradcheck", "float64"].result
    assert result.startswith("gradient of params.scale: Jacobian mismatch for output 0")
    assert result.endswith("(T = 3, B = 2, H = 3)")


def _changed_backward(right):
    def backward(*args):
        dpre, dstates, *others = right(*args)
        return dpre, [1.01 * dstates[0], *dstates[1:]], *others

    return backward


def test_a_fault_of_an_engine_is_named():
    with mock.patch.object(sequence, "backward", _changed_backward(sequence.backward)):
        report, found = checked(cells.LSTM)
    assert not report.ok
    failed = {key for key, check in found.items() if check.ok is False}
    assert failed == {("sequence", "float64"), ("sequence", "float32")}
    check = found["sequence", "float64"]
    assert "gradient of states.h is off by 0.01 of its largest value" in check.result
    assert check.figure == pytest.approx(0.01 / 1.25e-13, rel=1e-3)
    assert "gradient of states.h is off by" in found["sequence", "float32"].result


def test_an_exception_of_an_engine_is_a_failure():
    with mock.patch.object(sequence, "forward", side_effect=RuntimeError("no such product")):
        report, found = checked(cells.LSTM)
    assert not report.ok
    assert found["sequence", "float32"].result == "RuntimeError: no such product"
    assert found["sequence", "float32"].figure is None


def _step_ldexp(pre, state):
    return torch.special.bessel_j0(pre[0]) + 0 * state[0]


def test_an_operation_that_is_not_printed_is_no_failure():
    report, found = checked(Cell("bessel", _step_ldexp, gates=("n",)), differences=False)
    assert report.ok
    assert found["sequence", "float64"].ok
    assert found["cpp", "float64"].ok is None
    assert "bessel_j0" in found["cpp", "float64"].result
    assert "not run" in str(found["cpp", "float64"])


def test_a_cell_that_takes_roots():
    def step(pre, state):
        return torch.sqrt(pre[0]) + torch.log(state[0])

    def source(pre, state):
        return torch.log(state[0] + 1)

    cell = Cell("roots", step, gates=("n",), stages=(Stage(("n",), source),))
    assert checked(cell)[0].ok


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"T": 0}, ValueError, "T: expected .* got 0"),
        ({"B": 1.5}, TypeError, "B: expected int, got float"),
        ({"H": True}, TypeError, "H: expected int, got bool"),
        ({"compile": 1}, TypeError, "compile: expected bool, got int"),
        ({"differences": None}, TypeError, "differences: expected bool, got NoneType"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        checked(cells.LSTM, **options)
