"""The concurrent interpreter: a barrier of the grid opens, and its mutants are caught."""

import os
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from problems import make_problem

from fused_rnn import cells, plan
from simulator.concurrent import concurrent
from simulator.errors import Deadlock

pytestmark = pytest.mark.usefixtures("interpreter")

with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):

    @triton.jit
    def _ring_kernel(
        exchange_ptr, counter_ptr, out_ptr, rounds, N: tl.constexpr, BUFFERS: tl.constexpr,
        BARRIER: tl.constexpr, EXTRA: tl.constexpr,
    ):  # fmt: skip
        """Round after round each program passes a value on to the program before it."""
        program = tl.program_id(0)
        value = program
        for t in range(rounds):
            buffer = exchange_ptr + (t % BUFFERS) * N
            tl.store(buffer + program, value)
            if BARRIER:
                tl.debug_barrier()
                tl.atomic_add(counter_ptr, 1, sem="release")
                while tl.atomic_add(counter_ptr, 0, sem="acquire") < N * (t + 1) + EXTRA:
                    pass
                tl.debug_barrier()
            value = tl.load(buffer + (program + 1) % N)
        tl.store(out_ptr + program, value)

    @triton.jit
    def _failing_kernel(out_ptr):
        program = tl.program_id(0)
        tl.store(out_ptr + program, program)
        tl.static_assert(False, "planted")


def ring(n=4, rounds=5, buffers=2, barrier=True, extra=0):
    exchange, counter = torch.zeros(2 * n, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    out = torch.zeros(n, dtype=torch.int32)
    _ring_kernel[(n,)](exchange, counter, out, rounds, n, buffers, barrier, extra)
    return out.tolist() == [(p + rounds) % n for p in range(n)]


@pytest.mark.parametrize("schedule", ("random", "run-ahead"))
def test_ring(schedule):
    for seed in range(10):
        with concurrent(seed, schedule=schedule) as run:
            assert ring(), seed
        assert run.switches > 50


@pytest.mark.parametrize("mistake", ({"barrier": False}, {"extra": -1}, {"buffers": 1}), ids=str)
def test_mutants_give_wrong_numbers(mistake):
    right = []
    for seed in range(20):
        with concurrent(seed):
            right.append(ring(**mistake))
    assert not all(right)


def test_waiting_for_one_too_many():
    with concurrent(), pytest.raises(Deadlock, match="every program polls, and nothing changes"):
        ring(extra=1)


def test_a_grid_that_is_not_resident():
    with concurrent(resident=3), pytest.raises(Deadlock, match=r"\[3\] are not resident"):
        ring()
    with concurrent(resident=2):
        assert make_problem(cells.LSTM, 2, 17, 5).run("triton")


def test_too_many_switches():
    with concurrent(limit=20), pytest.raises(Deadlock, match="no end after 20 switches"):
        ring()


def test_an_error_in_a_program_is_raised_and_the_next_launch_works():
    with concurrent():
        with pytest.raises(Exception, match="planted"):
            _failing_kernel[(3,)](torch.zeros(3))
        assert ring()
    assert ring(n=1)


def test_reproducible():
    def order(seed):
        with concurrent(seed) as run:
            ring()
        return run.switches

    assert [order(seed) for seed in range(5)] == [order(seed) for seed in range(5)]


def test_bad_schedule():
    with pytest.raises(ValueError, match="schedule: expected random or run-ahead, got 'chaos'"):
        concurrent(schedule="chaos").__enter__()


@pytest.mark.parametrize("strategy", ("resident", "step"))
def test_the_kernels_give_the_same_bits(strategy):
    problem = make_problem(cells.GRU_RESET_BEFORE, 2, 17, 33, dtype=torch.bfloat16)
    with plan.use_strategy(strategy):
        want = problem.run_forward("triton")
        with concurrent(seed=1) as run:
            got = problem.run_forward("triton")
    assert run.switches
    for name, value in want.items():
        assert torch.equal(got[name], value), name
