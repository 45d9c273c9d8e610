"""The summary of compiled kernels keeps the sections of other Tritons."""

from bench.machine_code import by_cell
from bench.machine_code.summary import INTRODUCTION, replaced, section


def kernel(**changed):
    row = {"cell": "gru", "dtype": "float32", "H": 64, "chip": 90, "strategy": "grid"}
    row |= {"layouts": "Triton's"}
    row |= {"kernel": "forward", "registers": 64, "spills": 0, "shared": 2048, "faults": ""}
    row |= {"seconds": 1.5}
    return row | changed


def test_a_section_counts_spills_and_names_faults():
    kernels = [kernel(), kernel(registers=255, spills=3, faults="3 spills"), kernel(dtype="tf32")]
    kernels.append(kernel(layouts="explicit"))
    text = section("3.7.1", kernels, 10)
    assert "4 of 10 kernels were compiled, " in text
    assert "random order: 3 have no spill, 1 have faults." in text
    assert "| float32 | grid | Triton's | 2 | 0: 1, 3: 1 | 255 | 2,048 | 2 | 1 |" in text
    assert "| float32 | grid | explicit | 1 | 0: 1 | 64 | 2,048 | 2 | 0 |" in text
    assert "| tf32 | grid | Triton's | 1 | 0: 1 | 64 | 2,048 | 2 | 0 |" in text
    assert text.endswith("- gru, float32, H 64, sm_90, grid, forward: 3 spills\n")


def test_only_the_section_of_this_triton_is_replaced():
    old, new = section("3.6.0", [kernel()], 10), section("3.6.0", [kernel(), kernel()], 10)
    other = section("3.9.0", [kernel()], 10)
    text = replaced(replaced("", other), old)
    assert text == f"{INTRODUCTION}\n{old}\n{other}"
    assert replaced(text, new) == f"{INTRODUCTION}\n{new}\n{other}"


def test_a_page_of_cells_has_a_row_for_each_strategy():
    explicit = kernel(H=128, layouts="explicit", registers=90)
    faulty = kernel(cell="lem", spills=2, faults="2 spills")
    text = by_cell.section("3.7.1", [kernel(), kernel(chip=80), kernel(H=32), explicit, faulty], 9)
    assert "5 of 9 kernels were compiled, of 2 cells: 4 have no spill, 1 have faults." in text
    assert "| gru | float32 | grid | 64 | - | - | 32 64 | - | - | 3 | 64 | 0 | 2 |" in text
    assert "| gru | float32 | grid, explicit | - | - | - | 128 | - | - | 1 | 90 | 0 | 2 |" in text
    assert "| lem | float32 | grid | - | - | - | 64 | - | - | 1 | 64 | 2 | 2 |" in text
    assert text.endswith("- lem, float32, H 64, sm_90, grid, forward: 2 spills\n")
