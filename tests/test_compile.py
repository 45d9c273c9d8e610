"""The kernels compiled for GPUs that are not here, as the plan would launch them.

A spill, a kernel that is nothing but a trap, weights beyond the shared memory, or a product that
missed the tensor cores compile without a word; so the machine code is read.
"""

import concurrent.futures
import multiprocessing
import os

import pytest
import torch

from fused_rnn import cells, plan

pytest.importorskip("triton")

# (cell, dtype, H, B, compute capability): both strategies, every dtype, every chip once or more.
FEW = (
    ("lstm", "bfloat16", 128, 8, 90),
    ("lstm", "float32", 64, 8, 80),
    ("lstm", "float16", 512, 64, 80),
    ("lstm", "float64", 1000, 8, 80),
    ("peephole_lstm", "bfloat16", 64, 8, 86),
    ("peephole_lstm", "float32", 512, 8, 90),
    ("gru", "bfloat16", 100, 8, 89),
    ("gru", "float64", 32, 8, 80),
    ("gru_reset_before", "bfloat16", 128, 8, 100),
    ("gru_reset_before", "float16", 300, 8, 90),
    ("rnn_tanh", "bfloat16", 17, 8, 120),
)
MANY = tuple(
    (cell, dtype, H, B, capability)
    for capability in (80, 86, 89, 90, 100, 120)
    for cell in ("rnn_relu", "lstm", "peephole_lstm", "cifg_lstm", "gru", "gru_reset_before")
    for dtype, H, B in (
        ("bfloat16", 32, 8),
        ("bfloat16", 64, 8),
        ("bfloat16", 128, 8),
        ("bfloat16", 192, 8),
        ("float32", 32, 8),
        ("float32", 64, 8),
        ("bfloat16", 1000, 8),
        ("bfloat16", 1000, 64),
        ("float32", 1000, 8),
        ("float32", 1000, 64),
        ("float64", 32, 8),
        ("float64", 1000, 8),
    )
)


@pytest.fixture(scope="session")
def compiler():
    """A process whose kernels are for the compiler; those of this one are for the interpreter."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, _be_compiler) as pool:
        yield pool


@pytest.mark.parametrize("case", FEW, ids=str)
def test_machine_code(compiler, case):
    check(compiler, *case)


@pytest.mark.slow
@pytest.mark.parametrize("case", MANY, ids=str)
def test_machine_code_of_every_plan(compiler, case):
    check(compiler, *case)


def check(compiler, cell, dtype, H, B, capability):
    dtype = getattr(torch, dtype)
    # The assembler gives up to two values to memory to get by with fewer registers than it has.
    spills = 4
    limit = plan.SHARED_MEMORY[divmod(capability, 10)]
    for name, audit in compiler.submit(_compile, cell, dtype, H, B, capability).result():
        assert audit["exits"] >= 1, f"{name}: only a trap"
        assert audit["spills"] <= spills, f"{name}: {audit}"
        assert audit["shared"] <= limit, f"{name}: {audit}"
        if dtype.itemsize == 2:
            assert audit["tensor_core"] > 0, f"{name}: {audit}"


def test_new_lengths_and_batch_sizes_do_not_compile_anew(compiler):
    """T and B are run-time values: the key of the compiled kernel does not change with them."""
    keys = {
        key
        for T, B in ((1, 1), (2, 16), (7, 5), (16, 8), (1000, 3))
        for key in [compiler.submit(_signature, "lstm", torch.bfloat16, 64, T, B).result()]
    }
    assert len(keys) == 1


def _be_compiler():
    os.environ.pop("TRITON_INTERPRET", None)


def _launches(cell, dtype, H, T, B, capability):
    from unittest import mock

    from fused_rnn.kernels import backward, forward, offline
    from problems import make_problem

    def plan_for_chip(cell, T, B, H, dtype, device):
        return plan.plan(cell, T, B, H, dtype, divmod(capability, 10))

    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    cell = cells.get(cell)
    inputs = make_problem(cell, T, B, H, dtype=dtype).inputs
    weights, states, params = (
        [t for name, t in inputs.items() if name.startswith(group)]
        for group in ("weights", "states", "params")
    )
    with (
        mock.patch.object(forward, "plan", plan_for_chip),
        mock.patch.object(backward, "plan", plan_for_chip),
        offline.recorded() as launches,
    ):
        sequences, pre, _ = forward.forward(
            cell, inputs["x"], weights, inputs.get("bias"), states, params, [], False, True
        )
        given = [sequences[0]] + [None] * (len(states) - 1)
        backward.backward(
            cell, weights, states, params, [], sequences, pre, given, [None] * len(states), False
        )
    return launches


def _compile(cell, dtype, H, B, capability):
    """The audit of each different launch of a forward and a backward."""
    import dataclasses

    from fused_rnn.kernels import offline

    audits, seen = [], set()
    for kernel, _, arguments, constants in _launches(cell, dtype, H, 1, B, capability):
        key = (kernel.__name__, str(constants))
        if key not in seen:
            seen.add(key)
            audit = offline.audit(offline.compile_launch(kernel, arguments, constants, capability))
            audits.append((kernel.__name__, dataclasses.asdict(audit)))
    return audits


def _signature(cell, dtype, H, T, B):
    """What a launch is compiled for: constants, and the kinds of the arguments."""
    return str(
        [
            (kernel.__name__, sorted(constants.items(), key=lambda item: item[0]))
            for kernel, _, _, constants in _launches(cell, dtype, H, T, B, 90)
        ]
    )
