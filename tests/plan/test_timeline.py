"""The timeline of a layer: every strategy, as text and as a picture, with the model's own times."""

from xml.etree import ElementTree

import pytest
import torch

import fused_rnn
from fused_rnn import cells, plan
from fused_rnn.plan import cost
from fused_rnn.plan.chips import ALL

H100 = (9, 0)
SVG = "{http://www.w3.org/2000/svg}"
CELLS = {"resident": ("lstm", 64), "scan": ("sru", 300), "parallel_scan": ("min_gru", 300)}


def asked(strategy, T=100, B=40):
    cell, hidden = CELLS.get(strategy, ("gru_reset_before", 512))
    with plan.use_strategy(strategy):
        explained = fused_rnn.explain(cell, T, B, hidden, dtype=torch.bfloat16)
        return explained.timeline(H100)


@pytest.mark.parametrize("strategy", ALL)
def test_every_strategy_has_a_text_and_a_valid_picture(strategy):
    found = asked(strategy)
    assert found.launch.strategy == strategy
    text = str(found)
    assert text.splitlines()[0].endswith(f"B=40 H={found.H}, bfloat16, H100")
    assert "not measurements" in text
    assert strategy in text
    assert max(map(len, text.splitlines())) < 160
    picture = found.svg()
    again = asked(strategy)
    assert (str(again), again.svg()) == (text, picture)
    root = ElementTree.fromstring(picture)
    assert root.tag == f"{SVG}svg"
    width, height = float(root.get("width")), float(root.get("height"))
    for box in root.iter(f"{SVG}rect"):
        x, y, wide, high = (float(box.get(k, 0)) for k in ("x", "y", "width", "height"))
        assert 0 <= x <= x + wide <= width + 0.5
        assert 0 <= y <= y + high <= height
    words = " ".join(root.itertext())
    assert "not measurements" in words
    for name, _, _ in found.rows():
        assert name in words
    lanes = sum(text.startswith("program ") for text in root.itertext())
    assert lanes == min(4, found.programs)


@pytest.mark.parametrize("strategy", ALL)
def test_its_times_are_the_model_s(strategy):
    found = asked(strategy)
    cell, launch = cells.get(found.cell), found.launch
    given = (cell, launch, found.B, found.H, 1, 2, 132)
    assert found.step == cost.step_time(*given, steps=found.T)
    assert found.time == found.input_product + found.T * found.step
    own = sum(time for _, time, _ in found.rows())
    if strategy != "parallel_scan":  # whose pieces walk side by side
        assert own == pytest.approx(found.step)
    assert ("waits" in found.parts) == (strategy in ("grid", "stream", "step"))
    assert ("weights" in found.parts and found.parts["weights"] > 0) == (
        strategy in ("stream", "step")
    )
    assert found.programs >= -(-found.B // launch.block_b)


def test_a_module_s_own_sizes_and_directions():
    layer = fused_rnn.LSTM(24, 64, bidirectional=True)
    found = fused_rnn.explain(layer, 50, 8).timeline(H100)
    assert (found.H, found.directions, found.dtype) == (64, 2, torch.float32)
    assert "2 directions" in found.title
    wider = fused_rnn.explain(fused_rnn.LSTM(2400, 64, bidirectional=True), 50, 8).timeline(H100)
    assert wider.input_product > found.input_product
    assert wider.step == found.step
    half = fused_rnn.explain(layer, 50, 8).timeline(H100, torch.bfloat16)
    assert half.dtype == torch.bfloat16


def test_what_has_no_timeline_says_why():
    explained = fused_rnn.explain("lstm", 5, 3, 8)
    with pytest.raises(ValueError, match=r"gpu: expected .* such as \(9, 0\), got None.*'cpu'"):
        explained.timeline()
    with plan.use_strategy("resident"), pytest.raises(RuntimeError, match="does not fit"):
        fused_rnn.explain("lstm", 5, 3, 4000).timeline(H100)
