"""Kernels that spill are compiled again with other limits, and the best of them is launched."""

import pytest
import torch
from fused_rnn.kernels.gpu.offline import Driver
from fused_rnn.kernels.gpu.registers import LIMITS, limit

from bench.machine_code.grid import products_of
from bench.machine_code.launches import launch_both, planned_for
from fused_rnn import cells, plan

GRID = plan.Launch("grid", 16, 16, 64, 4)
STREAM = plan.Launch("stream", 16, 16, 64, 4)


class Spilling(Driver):
    """A GPU whose driver says what was planted.

    Args:
        words: of local memory, by the limit of registers; 0 where none is given.
    """

    def __init__(self, words: dict):
        # Of no two tests alike: what Triton and the package keep is by device.
        super().__init__(f"spilling {words}", 90, shared_memory=1 << 30, multiprocessors=132)
        self.words, self.compiled, self.launched = words, [], []

    def launcher_cls(self, source, metadata):
        self.compiled.append(metadata.maxnreg)  # right before it is loaded
        return super().launcher_cls(source, metadata)

    def load(self, binary):
        return binary

    def spilled(self, binary):
        return self.words.get(self.compiled[-1], 0)

    def launch(self, source, metadata, grid, loaded, arguments):
        self.launched.append(metadata.maxnreg)


def launched_twice(words, launch):
    driver = Spilling(words)
    with driver.activated(), planned_for(90, launch):
        for _ in range(2):
            launch_both(cells.LSTM, torch.bfloat16, 64, 2, 1, save=False)
    return driver


@pytest.mark.parametrize(
    ("words", "chosen", "compiled"),
    (
        ({}, None, 1),
        ({None: 2}, 255, 2),
        ({None: 2, 255: 9, 248: 3, 232: 1}, 224, 5),
        ({None: 9, 255: 4, 248: 4, 232: 3, 224: 3, 192: 5}, 232, 6),
        (dict.fromkeys(LIMITS, 1), None, 6),
    ),
)
def test_the_limit_that_spills_least(words, chosen, compiled):
    driver = launched_twice(words, GRID)
    assert driver.launched == [chosen] * 2
    assert driver.compiled == list(LIMITS[:compiled])


def test_a_kernel_that_reads_its_weights_has_all_registers_without_a_trial():
    driver = launched_twice({255: 7}, STREAM)
    assert driver.launched == [255] * 2
    assert driver.compiled == [255]


def test_another_dtype_is_another_kernel():
    driver = Spilling({None: 3})
    with driver.activated(), planned_for(90, GRID):
        launch_both(cells.LSTM, torch.bfloat16, 64, 2, 1, save=False)
        driver.words = {}
        launch_both(cells.LSTM, torch.float16, 64, 2, 1, save=False)
        launch_both(cells.LSTM, torch.bfloat16, 64, 2, 1, save=False)
    assert driver.launched == [255, None, 255]


def test_no_thread_may_have_more_than_its_share():
    assert limit(255, 8) == {"maxnreg": 255}
    assert limit(255, 16) == {"maxnreg": 128}


class Giving(Spilling):
    """A GPU on which kernels spill that have more than some matrices in registers."""

    def __init__(self, most: int):
        super().__init__({"held": most})
        self.most = most

    def launcher_cls(self, source, metadata):
        self.tried = _held(source)
        return super().launcher_cls(source, metadata)

    def spilled(self, binary):
        return max(0, self.tried - self.most)

    def launch(self, source, metadata, grid, loaded, arguments):
        self.launched.append(_held(source))


def _held(source):
    (held,) = source.constants[source.fn.arg_names.index("HELD"),]
    return getattr(held, "value", held)


@pytest.mark.parametrize(("most", "launched"), ((4, 4), (3, 3), (1, 1), (0, 1)))
def test_a_kernel_with_explicit_layouts_that_spills_gives_up_matrices(most, launched):
    launch = plan.Launch("resident", 8, 64, 64, 4, explicit=True)
    driver = Giving(most)
    with driver.activated(), planned_for(90, launch):
        for _ in range(2):
            launch_both(cells.LSTM, torch.bfloat16, 64, 2, 1, save=False)
    assert driver.launched == [launched] * 2
    assert len(driver.compiled) == 5 - launched


def test_a_kernel_whose_matrices_fit_nowhere_else_tries_other_limits():
    launch = plan.Launch("resident", 8, 128, 128, 8, explicit=True)
    assert plan.held_choices(cells.LSTM, launch, 128, 4, False, (8, 0)) == ((2,),)
    driver = Spilling({255: 14, 248: 4, 232: 4})
    with driver.activated(), planned_for(80, launch), products_of("tf32"):
        for _ in range(2):
            launch_both(cells.LSTM, torch.float32, 128, 2, 1, save=False)
    assert driver.launched == [224] * 2
    assert driver.compiled == list(LIMITS[1:5])


def test_matrices_are_given_up_as_far_as_shared_memory_has_room():
    launch = plan.Launch("resident", 8, 128, 128, 8, explicit=True)
    choices = plan.held_choices(cells.LSTM, launch, 128, 2, True, (8, 0))
    assert choices == ((4,), (3,), (2,), (1,))
    assert plan.held_choices(cells.LSTM, launch, 128, 2, True, (8, 6)) == ((4,), (3,), (2,))
    programs = plan.Launch("grid", 16, 8, 64, 4, explicit=True)
    assert len(plan.held_choices(cells.LSTM, programs, 512, 2, True, (8, 0))) == 1
