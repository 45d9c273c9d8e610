"""First use from several threads, after a fork, and cells that are made anew for each use."""

import gc
import os
import subprocess
import sys
import textwrap
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fused_rnn import Cell, Recurrent, Stage, cells, once

# In a process of its own each, where nothing is imported or traced yet: the cells, 8 threads that
# use each at once, and what one thread gets from equal cells later on.
FIRST_USE = """
    import sys, threading
    import torch, fused_rnn
    from fused_rnn import Cell, Recurrent, Stage, scan

    torch.set_num_threads(1)
    backend = sys.argv[1]

    def make(k):
        def reset(pre, state):
            return torch.sigmoid(pre[0]) * state[0]

        def step(pre, state, params):
            return (pre[1].tanh() * (0.5 + 0.01 * k) + params[0] * state[0]) / 2

        return Cell(f"fresh_{k}", step, gates=("r", "n"), params=("p",),
                    stages=(Stage(("r",)), Stage(("n",), reset)))

    def at_once(function, threads):
        barrier, found = threading.Barrier(threads), [None] * threads

        def work(i):
            barrier.wait()
            found[i] = function()

        workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        [worker.start() for worker in workers]
        [worker.join() for worker in workers]
        return found

    rounds, threads = (1, 4) if backend == "triton" else (3, 8)  # the interpreter is slow
    for k in range(rounds):
        torch.manual_seed(k)
        x = torch.randn(4, 2, 3)
        shapes = (4, 2, 10), (2, 5, 5), (2, 5), (5,)
        x_part, matrices, state, param = (torch.randn(s, requires_grad=True) for s in shapes)
        module, alone = (Recurrent(make(k), 3, 5, backend=backend) for _ in range(2))
        alone.load_state_dict(module.state_dict())

        def run(module):
            ws = [t.detach().requires_grad_() for t in (x_part, *matrices, state, param)]
            p, r, n, h, v = ws
            output, final = module(x, lengths=torch.tensor([4, 2]))
            loss = output.square().sum()
            found = [output, final, *torch.autograd.grad(loss, [*module.parameters()])]
            with torch.no_grad():
                found.append(module(x)[0])
            y, (f,) = scan(module.cell, p, [r, n], h, params=[v], backend=backend)
            return [*found, y, f, *torch.autograd.grad(y.sum() + f.square().sum(), ws)]

        got = at_once(lambda: run(module), threads)
        want = run(alone)
        for one in got:
            assert len(one) == len(want) == 15, len(want)
            assert all(torch.equal(a, b) for a, b in zip(one, want)), k
    print("same bits")
"""


def _run(code, *arguments, **environment):
    code = textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


@pytest.mark.parametrize("backend", ["cpp", "sequence", "reference", "auto", "triton"])
def test_first_use_from_several_threads(backend):
    interpret = {"TRITON_INTERPRET": "1"} if backend == "triton" else {}
    if backend == "triton":
        pytest.importorskip("triton")
    assert _run(FIRST_USE, backend, **interpret) == "same bits"


COMPILED = """
    import sys, threading
    import torch, fused_rnn
    from fused_rnn import Cell, Recurrent

    torch.set_num_threads(1)

    def fresh(k):
        cell = Cell("fresh", lambda pre, state: (pre[0] * k).tanh() + state[0] / 2, gates=("n",))
        return Recurrent(cell, 3, 5)

    module = torch.compile(fresh(0.3), backend="aot_eager", fullgraph=True)
    mapped, eager = fresh(0.4), fresh(0.5)
    x = torch.randn(4, 2, 3)
    calls = [
        lambda: module(x, lengths=torch.tensor([4, 2]))[0],
        lambda: torch.vmap(lambda v: mapped(v)[0])(x.unsqueeze(0))[0],
        lambda: eager(x)[0],
    ]
    found, barrier = [None] * 6, threading.Barrier(6)

    def work(i):
        barrier.wait()
        found[i] = calls[i % 3]()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(y is not None and y.isfinite().all() for y in found)
    assert torch.equal(found[0], found[3])
    print("fine")
"""


def test_compiling_mapping_and_first_uses_at_the_same_time():
    assert _run(COMPILED) == "fine"


FORK = """
    import os, threading, time
    import torch, fused_rnn
    from fused_rnn import once

    torch.set_num_threads(1)
    layer, x = fused_rnn.GRU(3, 5, backend="cpp"), torch.randn(4, 2, 3)

    def results():
        layer.zero_grad()
        layer(x)[0].square().sum().backward()
        return [p.grad.clone() for p in layer.parameters()]

    def slowly():
        with once.making():
            holds.set()
            time.sleep(0.5)

    want, holds = results(), threading.Event()
    threading.Thread(target=slowly).start()
    holds.wait()
    child = os.fork()  # waits until nothing is being made
    if child == 0:
        same = all(torch.equal(a, b) for a, b in zip(results(), want))
        fused_rnn.PeepholeLSTM(3, 5)(x)  # which needs the lock
        os._exit(0 if same else 1)
    print(os.waitpid(child, 0)[1])
"""


def test_a_fork_while_another_thread_makes_something():
    assert _run(FORK) == "0"


@pytest.mark.parametrize("kept", ["in the process", "with the cell"])
def test_a_value_is_made_once_and_again_after_an_error(kept):
    calls, cell = [], _new_cell()

    def make(*key):
        calls.append(key)
        if len(calls) == 1:
            raise ValueError("first")
        time.sleep(0.1)  # so that the others wait
        return [key]

    find = once.once(make) if kept == "in the process" else lambda key: cell.made[make, key]
    with pytest.raises(ValueError, match="first"):
        find(1)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(find, [1] * 8))
    assert len(calls) == 2
    assert all(value is found[0] for value in found)


def _new_cell():
    def reset(pre, state):
        return torch.sigmoid(pre[0]) * state[0]

    def step(pre, state):
        return (pre[1].tanh() + state[0]) / 2

    return Cell("anew", step, gates=("r", "n"), stages=(Stage(("r",)), Stage(("n",), reset)))


@pytest.mark.parametrize("backend", ["cpp", "sequence", "reference", "triton"])
def test_cells_made_anew_are_freed(backend, request):
    if backend == "triton":
        request.getfixturevalue("interpreter")
    made, before = [], len(cells.cell._REGISTRY)
    for _ in range(10 if backend == "sequence" else 5):
        module = Recurrent(_new_cell(), 3, 4, backend=backend)
        output = module(torch.randn(3, 2, 3), lengths=torch.tensor([3, 1]))[0]
        output.sum().backward()
        made += [weakref.ref(module.cell), weakref.ref(module.cell.step)]
    keys = {module.cell.key}
    del module, output
    gc.collect()
    assert not any(reference() for reference in made)
    assert len(cells.cell._REGISTRY) <= before
    again = _new_cell()
    assert again.key not in keys  # an old graph must not run another cell
    (key,) = keys
    with pytest.raises(ValueError, match=f"cell: '{key}' is gone: nothing holds it"):
        cells.lookup(key)


def test_a_backward_keeps_its_cell():
    module = Recurrent(_new_cell(), 3, 4, backend="cpp")
    want = torch.autograd.grad(module(torch.ones(3, 2, 3))[0].sum(), [*module.parameters()])
    output, parameters = module(torch.ones(3, 2, 3))[0].sum(), [*module.parameters()]
    del module
    gc.collect()
    for got, wanted in zip(torch.autograd.grad(output, parameters), want, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("how", ["export", "make_fx", "jit"])
def test_a_graph_keeps_its_cell(how):
    module, x = Recurrent(_new_cell(), 3, 4, backend="cpp"), torch.randn(3, 2, 3)
    if how == "export":
        graph = torch.export.export(module, (x,)).module()
    elif how == "jit":
        graph = torch.jit.trace(module, (x,), check_trace=False)
    else:
        graph = torch.fx.experimental.proxy_tensor.make_fx(module.__call__)(x)
    want = graph(x)[0]
    del module
    gc.collect()
    assert torch.equal(graph(x)[0], want)


def _module_level_step(pre, state):
    return pre[0].tanh() + state[0] / 2


def test_an_equal_cell_takes_the_place_of_one_that_is_gone():
    def make():
        return Cell("equal", _module_level_step, gates=("n",))

    first, second = make(), make()
    key, other = first.key, Cell("equal", lambda pre, state: pre[0], gates=("n",))
    assert second.key == key != other.key
    del first
    gc.collect()
    assert cells.lookup(key) is second
    del second
    gc.collect()
    with pytest.raises(ValueError, match="is gone"):
        cells.lookup(key)
    third = make()
    assert third.key == key
    assert cells.lookup(key) is third


def test_unknown_keys():
    for key in ("never_made", "never_made#2", "lstm#x", ""):
        with pytest.raises(ValueError, match="cell: expected the key of a cell, got"):
            cells.lookup(key)
