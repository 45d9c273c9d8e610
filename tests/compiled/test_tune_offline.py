"""The search of the table of plans with the compiler itself, for a single layer."""

import json
from collections import Counter

import pytest

from bench.machine_code import examined, kernels
from bench.machine_code.examined import Examined
from bench.machine_code.kernels import Facts
from bench.tune import __main__
from fused_rnn.plan import chips
from fused_rnn.plan.chips import Launch

GRID = ("gru", "bfloat16", 17, Launch("grid", 16, 16, 64, 2))


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(examined, "FILE", tmp_path / "compiled.jsonl")
    return tmp_path / "compiled.jsonl"


def test_kernels_are_compiled_once_and_known_from_the_file(file, monkeypatch):
    assert [facts for _, facts in Examined(minutes=0).look(*GRID, [80, 90])] == [None] * 6
    assert [facts for _, facts in Examined().look(*GRID, [80, 90], more=False)] == [None] * 6
    first = list(Examined().look(*GRID, [90]))
    assert [chip for chip, _ in first] == [90] * 3
    kinds = ("forward", "backward", "inference")
    assert tuple(facts.kernel for _, facts in first) == kinds
    assert not any(facts.faults("bfloat16", 90) for _, facts in first)
    asked, examine = [], kernels.examine
    monkeypatch.setattr(kernels, "examine", lambda k, c: asked.append(c) or examine(k, c))
    again = list(Examined().look(*GRID, [90, 80]))
    assert asked == [[80]] * 3
    assert [chip for chip, _ in again] == [80, 90] * 3
    assert again[1::2] == first
    assert len(file.read_text().splitlines()) == 6
    assert list(Examined(minutes=0).look(*GRID, [80, 90])) == again


def test_search(file, tmp_path, monkeypatch, capsys):
    """Stopped before it begins, whole, and again without the compiler."""
    before = chips.FILE.read_bytes()
    options = ["--offline", "--capability", "90", "--cells", "gru", "--dtypes", "bfloat16"]
    options += ["--hidden", "17"]
    out = tmp_path / "first.json"
    assert __main__.main([*options, "--minutes", "0", "--out", str(out)]) == 1
    text = capsys.readouterr().out
    assert "of what they allow 4 were not examined" in text
    assert not file.exists()
    assert __main__.main(options) == 0
    text, progress = capsys.readouterr()
    assert "launches, round 1: 4 of 4, " in progress
    assert "of what they allow 0 were not examined" in text
    assert "Wrote nothing" in text  # a grid of one layer is none for the table of the repository
    assert chips.FILE.read_bytes() == before
    looked_at = Counter(json.loads(line)["kernel"] for line in file.read_text().splitlines())
    assert set(looked_at) == {"forward", "backward", "inference"}
    assert len(set(looked_at.values())) == 1
    assert looked_at["forward"] >= 4  # more where the assembler of a Triton spills
    monkeypatch.setattr(kernels, "examine", None)
    assert __main__.main([*options, "--out", str(out)]) == 0
    found = chips.read(out)
    strategies = {row.blocks.strategy for row in found["90"].rows if row.itemsize == 2}
    assert strategies == set(chips.ALL)
    assert found["80"].rows == chips.chips()["80"].rows


FACTS = Facts("_forward_kernel", exits=3, shared=1024, tensor_core=4, expected=4)
FAULTS = {
    "only a trap": {"exits": 0},
    "20 spills, 0 are allowed": {"spills": 20},
    "300000 bytes of shared memory, the chip has 232448": {"shared": 300_000},
    "0 tensor-core instructions, 4 in the PTX": {"tensor_core": 0},
    "does not compile: RuntimeError: out of resource": {"error": "RuntimeError: out of resource"},
}


@pytest.mark.parametrize("words", FAULTS)
def test_blocks_whose_kernels_have_a_fault_are_refused(words, file, tmp_path, monkeypatch, capsys):
    """The one that the model likes best, of each strategy; the next is taken."""
    tables_found = []
    for bad in (False, True):

        def examine(kernel, chips, bad=bad):
            warps = kernel.constants["num_warps"]
            fault = FAULTS[words] if bad and warps == 2 and "forward" in _name(kernel) else {}
            return [(chip, Facts(**vars(FACTS) | fault)) for chip in chips]

        monkeypatch.setattr(kernels, "examine", examine)
        out = tmp_path / f"{bad}.json"
        options = ["--offline", "--capability", "90", "--cells", "lstm", "--dtypes", "bfloat16"]
        __main__.main([*options, "--hidden", "32", "--out", str(out)])
        assert (words in capsys.readouterr().out) == bad
        rows = [row for row in chips.read(out)["90"].rows if row.itemsize == 2]
        tables_found.append({row.blocks.num_warps for row in rows})
        file.unlink()
    assert 2 in tables_found[0]
    assert 2 not in tables_found[1]
    assert tables_found[1]


def _name(kernel):
    return kernel.function.__name__


def test_the_file_holds_what_facts_hold(file):
    known = Examined()
    known._add("a key", FACTS)
    assert json.loads(file.read_text())["spills"] == 0
    assert Examined().known == {"a key": FACTS}
