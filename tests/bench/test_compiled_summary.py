"""The summary of compiled kernels keeps the sections of other Tritons."""

from bench.machine_code.summary import INTRODUCTION, replaced, section


def kernel(**changed):
    row = {"cell": "gru", "dtype": "float32", "H": 64, "chip": 90, "strategy": "grid"}
    row |= {"kernel": "forward", "registers": 64, "spills": 0, "shared": 2048, "faults": ""}
    return row | changed


def test_a_section_counts_spills_and_names_faults():
    kernels = [kernel(), kernel(registers=255, spills=3, faults="3 spills"), kernel(dtype="tf32")]
    text = section("3.7.1", kernels, 10)
    assert "3 of 10 kernels were compiled, in random order: 2 have no spill, 1 have faults." in text
    assert "| float32 | grid | 2 | 0: 1, 3: 1 | 255 | 2,048 | 1 |" in text
    assert "| tf32 | grid | 1 | 0: 1 | 64 | 2,048 | 0 |" in text
    assert text.endswith("- gru, float32, H 64, sm_90, grid, forward: 3 spills\n")


def test_only_the_section_of_this_triton_is_replaced():
    old, new = section("3.6.0", [kernel()], 10), section("3.6.0", [kernel(), kernel()], 10)
    other = section("3.9.0", [kernel()], 10)
    text = replaced(replaced("", other), old)
    assert text == f"{INTRODUCTION}\n{old}\n{other}"
    assert replaced(text, new) == f"{INTRODUCTION}\n{new}\n{other}"
