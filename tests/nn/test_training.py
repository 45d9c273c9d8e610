"""Training as PyTorch does it: autocast, determinism, and two processes with DDP and FSDP2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fused_rnn
import tests.support.cells as ours
from fused_rnn import Recurrent, RecurrentCell, scan
from tests.support.problems import make_problem
from tests.support.tolerances import assert_equal_in_float64

CELLS = [cell for cell in ours.ALL if not cell.streams]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=ours.name_of)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=ours.name_of)
@pytest.mark.parametrize("recompute", [False, True])
@every_cell
def test_autocast(cell, recompute, dtype):
    """All in autocast's dtype, as the module in that dtype; weights and their gradients fp32."""
    module = Recurrent(cell, 4, 4, 2, recompute=recompute, backend="sequence")
    x = torch.randn(5, 3, 4)
    with torch.autocast("cpu", dtype):
        output, finals = module(x)
    finals = [finals] if isinstance(finals, torch.Tensor) else finals
    assert {t.dtype for t in (output, *finals)} == {dtype}
    output.float().square().sum().backward()
    assert {p.grad.dtype for p in module.parameters()} == {torch.float32}
    got = [output, *(p.grad for p in module.parameters())]
    module.zero_grad()
    module.to(dtype)(x.to(dtype))[0].float().square().sum().backward()
    for value, p in zip(got[1:], module.parameters(), strict=True):
        torch.testing.assert_close(value, p.grad.float(), rtol=0, atol=0)


def _listed(states):
    return [states] if isinstance(states, torch.Tensor) else list(states)


@pytest.mark.parametrize("asked", ["lengths", "reset", "packed"])
@pytest.mark.parametrize("cell", ["lstm", "peephole_lstm", "gru", "gru_reset_before", "rnn_relu"])
def test_autocast_with_rows(cell, asked):
    """As the module in bfloat16, to the bit; the gradients of the weights are float32."""
    module = Recurrent(cell, 4, 4, 2, bidirectional=True, backend="sequence")
    x, lengths = torch.randn(5, 3, 4), torch.tensor([2, 5, 3])
    given = {"lengths": {"lengths": lengths}, "reset": {"reset": torch.rand(5, 3) < 0.3}}

    def run(x):
        if asked == "packed":
            x = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, finals = module(x, **given.get(asked, {}))
        return [output.data if asked == "packed" else output, *_listed(finals)]

    _same_as_in(torch.bfloat16, module, run, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=ours.name_of)
@every_cell
def test_autocast_of_one_step(cell, dtype):
    module = RecurrentCell(cell, 4, 4, backend="sequence")
    x, *hx = torch.randn(1 + len(cell.states), 3, 4).unbind()

    def run(x):
        states = [state.to(x.dtype) for state in hx]
        return _listed(module(x, states[0] if len(states) == 1 else states))

    _same_as_in(dtype, module, run, x)


def _same_as_in(dtype, module, run, x):
    results = []
    for rounded in (False, True):
        module.zero_grad()
        module.to(dtype if rounded else torch.float32)
        with torch.autocast("cpu", dtype, enabled=not rounded):
            outputs = run(x.to(dtype) if rounded else x)
        assert {output.dtype for output in outputs} == {dtype}
        sum(output.float().square().sum() for output in outputs).backward()
        gradients = [p.grad for p in module.parameters()]
        assert {g.dtype for g in gradients} == {dtype if rounded else torch.float32}
        results.append([*outputs, *(g.float() for g in gradients)])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@every_cell
def test_autocast_leaves_float64_alone(cell):
    module = Recurrent(cell, 4, 4, dtype=torch.float64)
    x = torch.randn(5, 3, 4, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        got = module(x)[0]
    assert_equal_in_float64({"output": got}, {"output": module(x)[0]})


@pytest.mark.parametrize("cell", ours.ALL, ids=ours.name_of)
def test_scan_under_autocast(cell):
    problem = make_problem(cell, 3, 2, 4)
    leaves = problem.leaves()
    with torch.autocast("cpu", torch.bfloat16):
        output, finals = scan(**problem.scan_arguments(leaves))
    assert {t.dtype for t in (output, *finals)} == {torch.bfloat16}
    output.sum().backward()
    assert {leaf.grad.dtype for leaf in leaves.values()} == {torch.float32}
    want = scan(**problem.to(torch.bfloat16).scan_arguments(problem.to(torch.bfloat16).inputs))[0]
    assert torch.equal(output, want)


@pytest.mark.parametrize("recompute", [False, True])
@every_cell
def test_same_bits_and_no_complaint_of_deterministic_algorithms(cell, recompute):
    """Dropout too, with the same seed."""
    torch.use_deterministic_algorithms(True)  # the next test's start undoes it
    module = Recurrent(
        cell, 4, 4, 3, dropout=0.5, bidirectional=not cell.raw_gates, recompute=recompute
    )
    x, results = torch.randn(7, 5, 4), []
    for _ in range(2):
        torch.manual_seed(3)
        leaf = x.clone().requires_grad_()
        output, _ = module(leaf)
        (dx,) = torch.autograd.grad(output.square().sum(), leaf, create_graph=True)
        inputs = list(module.parameters())
        twice = torch.autograd.grad(dx.square().sum(), inputs, materialize_grads=True)
        results.append((output, dx, *twice))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class _Model(nn.Module):
    """What the two processes train."""

    def __init__(self):
        super().__init__()
        self.first = fused_rnn.PeepholeLSTM(3, 4, 2, bidirectional=True, recompute=True)
        self.second = fused_rnn.GRU(8, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        output, _ = self.second(self.first(x)[0])
        return self.head(output)


def _data():
    return torch.randn(2, 3, 6, 4, 3, generator=torch.Generator().manual_seed(7))


def _train(model, parts, rank=None):
    """Three steps of two micro-batches each; the mean over the processes' parts of the batch."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for step in range(3):
        optimizer.zero_grad()
        for micro in range(2):
            rows = _data()[micro, step]
            part = rows if rank is None else rows.chunk(parts, 1)[rank]
            yield micro, lambda part=part: (model(part).square().mean() / 2).backward()
        optimizer.step()


def _worker(kind):
    """One of two processes; leaves its parameters where the test finds them."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = _Model()
    if kind == "ddp":
        wrapped = DistributedDataParallel(model)
    else:
        mesh = dist.init_device_mesh("cpu", (2,))
        for layer in (model.first, model.second):
            fully_shard(layer, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    for micro, backward in _train(wrapped, 2, rank):
        if kind == "ddp" and micro == 0:  # gradient accumulation
            with wrapped.no_sync():
                backward()
        elif kind == "fsdp":
            wrapped.set_requires_gradient_sync(micro == 1)
            backward()
        else:
            backward()
    full = {
        name: p.full_tensor() if hasattr(p, "full_tensor") else p
        for name, p in model.named_parameters()
    }
    if rank == 0:
        torch.save({name: p.detach().clone() for name, p in full.items()}, os.environ["RESULT"])
    dist.barrier()
    # Nothing is torn down: a group's destructor keeps the GIL while it joins its thread, which may
    # wait for the GIL to release the Python objects of its last task (seen with torch 2.13).
    os._exit(0)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_as_one(kind, tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch is built without distributed")
    here, result = Path(__file__), tmp_path / "parameters.pt"
    environment = os.environ | {
        "RESULT": str(result),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(here.parents[2]),
    }
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__, kind]
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    torch.manual_seed(0)
    model = _Model()
    for _, backward in _train(model, 1):
        backward()
    got = torch.load(result)
    for name, p in model.named_parameters():
        # float32; the same sums in another order, over three steps.
        torch.testing.assert_close(got[name], p.detach(), rtol=1e-5, atol=1e-6)


if __name__ == "__main__":
    _worker(sys.argv[1])
