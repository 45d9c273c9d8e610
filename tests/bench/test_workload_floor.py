"""The products alone: every case that torch.nn lacks has them, in its shapes, and no others."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.reports import workload_floor as floor
from bench.workloads.workload import Layer
from fused_rnn import cells
from fused_rnn.plan import cost

pytestmark = pytest.mark.usefixtures("one_thread")

CASES = [(name, case.name) for name, case in floor.cases()]


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_every_case_has_an_entry():
    assert set(floor.GATES) == set(CASES)
    assert len(CASES) == 12


@pytest.mark.parametrize(
    ("name", "case"),
    [pytest.param(name, case, id=f"{name}, {case.name}") for name, case in floor.cases()],
)
def test_the_gates_are_those_of_the_cell(name, case):
    (layer,) = case.layers(case.sizes("cpu"))
    cell = cells.get(layer.cell)
    gates = floor.GATES[name, case.name]
    if name == "forecaster":
        assert gates == (0, cost.squares(cell))
    elif case.name == "EA-LSTM":
        assert gates == (len(cell.x_gates) - 1, cost.squares(cell) - 1)
    else:
        assert gates == (len(cell.x_gates), cost.squares(cell))


def test_flops_of_an_lstm():
    T, B, features, H = 7, 3, 5, 8
    own = floor.Products(Layer("lstm", T, B, features, H), floor.Gates(4, 4), [B] * (T - 1))
    of_x, of_h = 2 * T * B * features * 4 * H, 2 * (T - 1) * B * H * 4 * H
    assert counted(own.inference) == own.flops["inference"] == of_x + of_h
    assert counted(own.training) == own.flops["training"] == 3 * (of_x + of_h)


def test_flops_of_heads_without_a_product_of_x():
    T, B, H, heads = 6, 2, 16, 4
    own = floor.Products(Layer("slstm", T, B, H, H, heads=heads), floor.Gates(0, 4), [B] * (T - 1))
    of_h = 2 * (T - 1) * B * heads * (H // heads) * 4 * (H // heads)
    assert counted(own.inference) == own.flops["inference"] == of_h
    assert counted(own.training) == own.flops["training"] == 3 * of_h


def test_episodes_are_rows_of_their_own():
    name, case = next(floor.cases())
    layer = Layer("lstm", T=4, B=2, I=5, H=8)
    reset = torch.tensor([[0, 0], [0, 1], [0, 0], [0, 1]], dtype=torch.bool)
    found = floor.orders(case, layer, (torch.randn(4, 2, 5), reset))
    # Episodes of 4, 1, 2 and 1 steps; the first step of each has a state of zeros.
    assert found == {floor.BY_STEPS: [2, 2, 2], floor.BY_EPISODES: [2, 1, 1]}
    own = floor.Products(layer, floor.GATES[name, case.name], found[floor.BY_EPISODES])
    assert counted(own.inference) == 2 * 4 * 8 * (4 * 2 * 5 + 4 * 8)


def test_a_case_has_rows_and_a_page():
    name, case = next(floor.cases())
    rows = list(floor.measure(name, case, 1, 0.001, tiny=True))
    assert [row.mode for row in rows] == list(case.modes)
    for row in rows:
        assert min(row.first_ms, row.fused_ms, row.products_ms) > 0
        assert min(row.ratio, row.bound, row.limit) > 0
    one, other = (row._replace(ratio=4.0) for row in rows)
    pair = [one._replace(bound=2.0), other._replace(bound=8.0)]
    page = floor.report(pair, {"torch": "2"}, 0.5)
    assert "- `fused_rnn`: 4.00×, from 4.00× to 4.00×; less than 3× in 0 of 2." in page
    assert "- Products alone: 4.00×, from 2.00× to 8.00×; less than 3× in 1 of 2." in page
    assert "  5.66×, from 4.00× to 8.00×" in page
    assert f"| {case.name} | training | 1 | {case.baseline} |" in page
    assert max(len(line) for line in page.splitlines() if not line.startswith("|")) <= 100
