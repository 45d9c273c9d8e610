"""Grids run concurrently in the interpreter: barriers open, broken ones are caught."""

import os
import threading
import traceback
from unittest import mock

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter as triton_interpreter

from fused_rnn import cells, plan
from simulator.concurrent import SCHEDULES, concurrent
from simulator.errors import Deadlock, SimulatorError
from tests.support.problems import make_problem

pytestmark = pytest.mark.usefixtures("interpreter")

with mock.patch.dict(os.environ, TRITON_INTERPRET="1"):

    @triton.jit
    def wait_for_all(counter, target, FAIL: tl.constexpr):
        tl.debug_barrier()
        tl.atomic_add(counter, 1, sem="release")
        tl.static_assert(tl.program_id(0) != FAIL, "planted")
        while tl.atomic_add(counter, 0, sem="acquire") < target:
            pass
        tl.debug_barrier()

    @triton.jit
    def pass_around(exchange, counter, out, rounds, off,
                    BUFFERS: tl.constexpr, BARRIER: tl.constexpr, FAIL: tl.constexpr):  # fmt: skip
        """In each round, every program hands its value on to the one before it."""
        p, count = tl.program_id(0), tl.num_programs(0)
        value = p
        for t in range(rounds):
            buffer = exchange + t % BUFFERS * count
            tl.store(buffer + p, value)
            if BARRIER:
                wait_for_all(counter, (t + 1) * count + off, FAIL)
            value = tl.load(buffer + (p + 1) % count)
        tl.store(out + p, value)

    @triton.jit
    def wait_volatile(flag):
        while tl.load(flag, volatile=True) == 0:
            pass

    @triton.jit
    def wait_for_first(flags, out):
        """Program 0 raises the flags, the others poll theirs."""
        p = tl.program_id(0)
        if p == 0:
            tl.store(out, 7)
            tl.atomic_xchg(flags + tl.arange(0, 4), 1, sem="release")
        else:
            tl.atomic_poll(flags + p, 1)
            tl.store(out + p, tl.load(out))

    @triton.jit
    def take_tickets(counter, order):
        for _ in range(3):
            ticket = tl.atomic_add(counter, 1)
            tl.store(order + ticket, tl.program_id(0))

    @triton.jit
    def lock_and_count(lock, total):
        for _ in range(3):
            while tl.atomic_cas(lock, 0, 1) == 1:
                pass
            tl.store(total, tl.load(total) + 1)
            tl.atomic_xchg(lock, 0)

    @triton.jit
    def add_where(x, size, N: tl.constexpr):
        """A masked atomic, whose inactive lanes have invalid addresses."""
        i = tl.arange(0, N)
        tl.atomic_add(x + i * 500_000_000, 1.0, mask=i < size)

    @triton.jit
    def number(out, N: tl.constexpr):
        place = tl.program_id(0) + 2 * (tl.program_id(1) + 3 * tl.program_id(2))
        tl.store(out + place * N + tl.arange(0, N), place)

    @triton.jit
    def far_away(x, stride):
        tl.store(x + tl.program_id(0) * stride, 1, mask=False)


def ring(programs=4, rounds=4, off=0, buffers=2, barrier=True, fail=-1):
    """Whether everybody ends up with the value that the one ``rounds`` places on began with."""
    exchange, counter, out = zeros(buffers * programs), zeros(1), zeros(programs)
    pass_around[(programs,)](exchange, counter, out, rounds, off, buffers, barrier, fail)
    return out.tolist() == [(p + rounds) % programs for p in range(programs)]


def zeros(size):
    return torch.zeros(size, dtype=torch.int32)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_barrier_opens(schedule):
    with concurrent(0, schedule) as run:
        for programs in (1, 2, 4, 7):
            assert ring(programs)
    assert run.launches == 4
    for seed in range(20):
        with concurrent(seed, schedule):
            assert ring(), seed


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("mistake", ({"barrier": False}, {"off": -1}, {"buffers": 1}), ids=str)
def test_mistakes_give_wrong_numbers(mistake, schedule):
    def right(seed):
        with concurrent(seed, schedule):
            return ring(**mistake)

    assert not all(right(seed) for seed in range(20))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_counter_that_is_never_reached(schedule):
    for seed in range(5):
        with concurrent(seed, schedule) as run, pytest.raises(Deadlock, match="none will change"):
            ring(off=1)
        assert run.switches < 1000


def test_a_grid_that_is_not_resident():
    message = r"\(0, 0, 0\), \(1, 0, 0\) wait; \(2, 0, 0\), \(3, 0, 0\) are not resident"
    with concurrent(resident=2), pytest.raises(Deadlock, match=message):
        ring()
    with concurrent(resident=4):
        assert ring()


def test_volatile_loads_that_wait_for_nobody():
    with concurrent() as run, pytest.raises(Deadlock, match="none will change"):
        wait_volatile[(3,)](zeros(1))
    assert run.switches < 200


def test_too_many_switches():
    with concurrent(max_switches=20) as run:
        with pytest.raises(Deadlock, match="no end after 20 switches"):
            ring()
        assert run.switches == 20


@pytest.mark.skipif(not hasattr(tl, "atomic_poll"), reason="Triton before 3.9")
def test_atomic_poll():
    for seed in range(10):
        out = zeros(4)
        with concurrent(seed):
            wait_for_first[(4,)](zeros(4), out)
        assert out.tolist() == [7] * 4


def test_a_lock():
    for seed in range(10):
        total = zeros(1)
        with concurrent(seed, resident=3):
            lock_and_count[(4,)](zeros(1), total)
        assert total.item() == 12


def test_masked_lanes_of_atomics_are_left_alone():
    x = torch.zeros(1)
    with concurrent():
        add_where[(5,)](x, 1, 4)
    assert x.item() == 5


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_error_in_one_program_ends_the_launch(schedule):
    threads = threading.active_count()
    with concurrent(3, schedule) as run:
        with pytest.raises(triton_interpreter.InterpreterError, match="planted") as error:
            ring(fail=2)
        assert threading.active_count() == threads
        frames = traceback.extract_tb(error.value.__cause__.__traceback__)
        assert "wait_for_all" in [frame.name for frame in frames]
        assert ring()
    assert run.launches == 2


def test_reproducible():
    def order(seed, schedule):
        with concurrent(seed, schedule) as run:
            orders = [zeros(12), zeros(12)]
            for tickets in orders:
                take_tickets[(4,)](zeros(1), tickets)
        return [tickets.tolist() for tickets in orders], run.switches

    for schedule in SCHEDULES:
        orders = [order(seed, schedule) for seed in range(5)]
        assert orders == [order(seed, schedule) for seed in range(5)]
        assert len({str(o) for o in orders}) > 1
    one, another = orders[0][0]
    assert sorted(one) == sorted(another) == sorted(list(range(4)) * 3)


def test_run_ahead_runs_ahead():
    with concurrent(schedule="run-ahead"):
        order = zeros(12)
        take_tickets[(4,)](zeros(1), order)
    by_turns = order.view(4, 3)
    assert (by_turns == by_turns[:, :1]).all()


def test_the_interpreter_is_as_before():
    def state():
        builder = triton_interpreter.InterpreterBuilder
        return {
            **vars(builder),
            "call": triton_interpreter.InterpretedFunction.__call__,
            "grid": triton_interpreter.GridExecutor.__call__,
            "options": triton_interpreter.interpreter_builder.options,
            "core": dict(vars(tl.core)),
            "tl": dict(vars(tl)),
        }

    before = state()
    with concurrent():
        assert state() != before
        assert ring()
    assert state() == before
    with pytest.raises(KeyError), concurrent():
        raise KeyError
    with pytest.raises(Deadlock), concurrent():
        ring(off=1)
    assert state() == before
    with concurrent(), pytest.raises(SimulatorError, match="nest"), concurrent():
        pass
    assert state() == before


def test_wrong_arguments():
    with pytest.raises(ValueError, match="schedule: expected one of random, run-ahead, got 'x'"):
        concurrent(schedule="x").__enter__()
    with pytest.raises(ValueError, match="resident: expected at least 1, got 0"):
        concurrent(resident=0).__enter__()


def test_plain_kernels_and_empty_grids():
    want, got = zeros(24 * 8), zeros(24 * 8)
    number[(2, 3, 4)](want, 8)
    with concurrent(resident=5) as run:
        number[(2, 3, 4)](got, 8)
        number[(0,)](got, 8)
    assert torch.equal(got, want)
    assert want.view(24, 8)[:, 0].tolist() == list(range(24))
    assert run.launches == 1
    assert run.switches == 48  # to its store, and to its end


def test_offsets_that_overflow():
    with concurrent(), pytest.raises(triton_interpreter.InterpreterError, match="overflow"):
        far_away[(4,)](zeros(1), 2**30)
    with concurrent():
        far_away[(2,)](zeros(1), 2**30)
    with concurrent(check_offsets=False):
        far_away[(4,)](zeros(1), 2**30)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_fused_kernels_give_the_same_bits(schedule):
    problem = make_problem(cells.GRU_RESET_BEFORE, 2, 17, 5)
    with plan.use_strategy("step"):
        want = problem.run("triton")
        with concurrent(1, schedule) as run:
            got = problem.run("triton")
    assert run.switches > run.launches > 1
    for name, value in want.items():
        assert torch.equal(got[name], value), name
