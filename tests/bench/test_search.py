"""The search of the table of plans, with planted facts in the place of the compiler."""

import dataclasses
import math

import pytest
import torch

from bench.machine_code.grid import torch_dtype
from bench.tune import search
from fused_rnn import cells, plan
from fused_rnn.plan import chips, cost
from fused_rnn.plan.chips import Launch, Row

TABLE = chips.chips()
GRID = search.Grid(
    cells=("lstm", "peephole_lstm", "gru"),
    dtypes=("bfloat16", "float16"),
    hidden=(64, 128, 512, 1024, 2048),
    batches=(1, 16, 64),
)


def clean(probe, names):
    return dict.fromkeys(names, ())


def faulty(*where):
    """An examiner that finds faults where one of these functions of a probe says so."""

    def examine(probe, names):
        return {name: ["99 spills"] if any(w(probe) for w in where) else [] for name in names}

    return examine


def chosen(chip, grid=GRID):
    """By layer, batch and strategy, what ``plan`` would take."""
    return {
        (name, dtype, H, B, strategy): plan.quickest(
            cells.get(name), strategy, B, H, 1, torch_dtype(dtype), chip
        )[0]
        for name, dtype, H in grid.layers()
        for B in grid.batches
        for strategy in plan.STRATEGIES
    }


def probe_of(layer, launch):
    return search.Probe(*layer[:3], dataclasses.replace(launch, tiles=1))


def searched(chip):
    """The rows of cells with products; the others are kept as they are."""
    return [row for row in chip.rows if row.blocks.strategy in plan.STRATEGIES]


def test_of_clean_kernels_the_fastest_by_the_model_are_the_table():
    found = search.search(TABLE, ["90"], clean, GRID)
    chip, everything = found.table["90"], dataclasses.replace(TABLE["90"], rows=search.SPACE)
    ours, best = chosen(chip), chosen(everything)
    assert ours == best
    assert {launch.strategy for launch in ours.values() if launch} == set(plan.STRATEGIES)
    for layer, launch in ours.items():
        if launch is None:
            continue
        name, dtype, H, B, strategy = layer
        times = [
            cost.step_time(cells.get(name), other, B, H, 1, 2, chip.multiprocessors)
            for row in search.SPACE
            if (row.blocks.strategy, row.itemsize) == (strategy, 2)
            for other, _ in [plan.fitting(cells.get(name), row, H, 1, everything)]
            if other is not None
        ]
        assert len(times) > 1 or strategy == "resident"
        size = (B, H, 1, 2, chip.multiprocessors)
        assert cost.step_time(cells.get(name), launch, *size) == min(times)
    used = {search._blocks(launch, "bfloat16") for launch in ours.values() if launch}
    assert {search._blocks(row) for row in searched(chip) if row.itemsize == 2} == used
    assert not found.unseen["90"]
    assert not found.faults["90"]


def fastest(strategy, H=1024, B=16):
    everything = dataclasses.replace(TABLE["90"], rows=search.SPACE)
    return plan.quickest(cells.LSTM, strategy, B, H, 1, torch.bfloat16, everything)[0]


def test_a_row_whose_kernels_all_have_faults_is_left_out():
    bad = fastest("grid")
    like = search._blocks(bad, "bfloat16")
    found = search.search(
        TABLE, ["90"], faulty(lambda p: search._blocks(p.launch, p.dtype) == like), GRID
    )
    assert like not in map(search._blocks, found.table["90"].rows)
    layer = ("lstm", "bfloat16", 1024, 16, "grid")
    second = chosen(found.table["90"])[layer]
    assert second is not None
    assert second != bad
    assert found.faults["90"]
    assert all(words == ("99 spills",) for words in found.faults["90"].values())


RULES = {
    "many values": lambda p: plan.values(cells.get(p.cell)) * p.launch.block_h * p.launch.own > 140,
    "large layers": lambda p: p.H > 600,
    "many units": lambda p: p.launch.own * p.launch.block_h > 64,
    "two warps": lambda p: p.launch.num_warps == 2,
    "one dtype": lambda p: p.dtype == "float16" and p.launch.strategy == "grid" and p.H > 128,
    # The same in every process, as Python's own hash of strings is not.
    "at random": lambda p: sum(map(ord, repr(p))) % 5 == 0,
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ("80", "90", "120"))
def test_all_that_is_chosen_was_seen_without_fault(rule, name):
    asked, examine = [], faulty(RULES[rule])

    def counted(probe, names):
        asked.append(probe)
        return examine(probe, names)

    found = search.search(TABLE, [name], counted, GRID)
    assert len(asked) == len(set(asked))
    plans = chosen(found.table[name])
    taken = {probe_of(layer, launch) for layer, launch in plans.items() if launch}
    assert taken
    assert taken <= set(asked)
    assert not any(map(RULES[rule], taken))
    assert set(found.faults[name]) == set(filter(RULES[rule], asked))
    # A program that owns more units than any that was looked at is not in the table.
    for row in found.table[name].rows:
        if row.itemsize == 2 and row.blocks.strategy in ("resident", "stream"):
            assert row.units == max(
                p.launch.own * p.launch.block_h
                for p in taken
                if search._blocks(p.launch, p.dtype) == search._blocks(row)
            )


def test_limits_shut_out_the_faults_and_little_else():
    row = Row(2, Launch("grid", 16, 16, 64, 2))

    def limited(**by_cell):
        """Verdicts by cell for H of 64, 128, 256; of cells with 5, 6 and 9 values of 16 units."""
        values = {"gru": 5, "lstm": 6, "peephole": 9}
        spots = {
            (H, 16, 16 * values[cell]): {"+": True, "-": False, "?": None}[verdict]
            for cell, verdicts in by_cell.items()
            for H, verdict in zip((64, 128, 256), verdicts, strict=True)
        }
        found = search.limited(row, spots)
        return found and (found.hidden, found.units, found.values)

    free = (None, None, None)
    assert limited(gru="+++", lstm="+++", peephole="+++") == free
    assert limited(gru="???", lstm="???", peephole="???") == free
    assert limited(gru="+++", lstm="+++", peephole="---") == (None, None, 96)
    assert limited(gru="+++", lstm="+++", peephole="+-?") == (None, None, 96)
    assert limited(gru="++-", lstm="++-", peephole="++-") == (128, None, None)
    assert limited(gru="++-", lstm="++-", peephole="+--") == (128, None, 96)
    assert limited(gru="???", lstm="???", peephole="?-?") == (None, None, 96)
    assert limited(gru="-++", lstm="---", peephole="---") is None
    assert limited(gru="---", lstm="---", peephole="---") is None


def test_limits_of_units():
    row = Row(2, Launch("resident", 16, 32, 32, 2))
    spots = {(H, H, H * v): H < 128 for H in (32, 64, 96, 128, 160) for v in (5, 6)}
    found = search.limited(row, spots)
    assert [found.hidden, found.units, found.values].count(None) == 2
    assert found.units in (None, 96)
    assert found.hidden in (None, 96)


def test_what_was_not_examined_is_said():
    def little(probe, names):
        return clean(probe, names) if probe.H < 512 else {}

    found = search.search(TABLE, ["80", "90"], little, GRID)
    for name in ("80", "90"):
        plans = chosen(found.table[name])
        taken = {probe_of(layer, launch) for layer, launch in plans.items() if launch}
        assert set(found.unseen[name]) == {probe for probe in taken if probe.H >= 512}
        assert found.unseen[name]


def test_chips_are_examined_together_where_they_choose_the_same():
    calls = []

    def examine(probe, names):
        calls.append(names)
        return clean(probe, names)

    search.search(TABLE, ["80", "86", "89"], examine, GRID)
    assert ["80", "86", "89"] in calls


def test_the_same_facts_give_the_same_bytes(tmp_path):
    examine = faulty(RULES["at random"])
    for turn in range(2):
        found = search.search(TABLE, ["80", "90"], examine, GRID)
        chips.write(tmp_path / f"{turn}.json", found.table)
        assert chips.read(tmp_path / f"{turn}.json").keys() == TABLE.keys()
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()
    # Stopped on the way, and begun again with what was known then.
    memory, room = {}, 40
    for _ in range(100):
        left = room

        def some(probe, names):
            nonlocal left
            for name in names:
                if (probe, name) not in memory and left:
                    left -= 1
                    memory[probe, name] = examine(probe, [name])[name]
            return {name: memory[probe, name] for name in names if (probe, name) in memory}

        found = search.search(TABLE, ["80", "90"], some, GRID)
        if not any(found.unseen.values()):
            break
    assert not any(found.unseen.values())
    chips.write(tmp_path / "2.json", found.table)
    assert (tmp_path / "2.json").read_bytes() == (tmp_path / "0.json").read_bytes()


def test_a_check_of_the_table_changes_only_what_has_faults(tmp_path):
    names = [name for name in TABLE if name != chips.INTERPRETER]
    found = search.search(TABLE, names, clean, GRID, None)
    chips.write(tmp_path / "same.json", found.table)
    assert (tmp_path / "same.json").read_bytes() == chips.FILE.read_bytes()
    found = search.search(TABLE, names, faulty(RULES["many values"]), GRID, None)
    for name in names:
        taken = [probe_of(*pair) for pair in chosen(found.table[name]).items() if pair[1]]
        assert not any(map(RULES["many values"], taken))
        after = {search._blocks(row): row for row in found.table[name].rows}
        assert list(after) == [b for b in map(search._blocks, TABLE[name].rows) if b in after]
        for row in TABLE[name].rows:
            now = after.get(search._blocks(row))
            for limit in ("hidden", "units", "values"):
                before = getattr(row, limit) or math.inf
                assert now is None or (getattr(now, limit) or math.inf) <= before
    changed = [r for r in found.table["90"].rows if r not in TABLE["90"].rows]
    assert changed


def test_other_chips_and_sizes_of_an_element_stay():
    found = search.search(TABLE, ["90"], clean, GRID)
    for name, chip in TABLE.items():
        rows = found.table[name].rows
        same = chip.rows if name != "90" else [r for r in chip.rows if r.itemsize != 2]
        assert [row for row in rows if name != "90" or row.itemsize != 2] == list(same)
    assert found.table["90"].rows != TABLE["90"].rows


def test_the_space_has_all_rows_of_the_table():
    """So that a search can come to them again."""
    space = set(map(search._blocks, search.SPACE))
    assert len(space) == len(search.SPACE)
    for name, chip in TABLE.items():
        if name != chips.INTERPRETER:
            assert set(map(search._blocks, searched(chip))) <= space


def test_the_table_is_written_as_it_is(tmp_path):
    chips.write(tmp_path / "again.json", chips.read(chips.FILE))
    assert (tmp_path / "again.json").read_bytes() == chips.FILE.read_bytes()
