"""The ops called with wrong arguments: a typed error each time, and never a crash."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

import fused_rnn
import tests.support.cells as ours
from fused_rnn import cells

T, B, H = 4, 3, 6

# Right arguments of each op, one of them changed at random: it may raise RuntimeError or ValueError
# (TypeError and IndexError from PyTorch's own parsing), and nothing else may happen.
FUZZ = """
    import random, sys
    import torch, fused_rnn
    from fused_rnn import cells

    torch.set_num_threads(1)
    backend, seed = sys.argv[1], int(sys.argv[2])
    rng = random.Random(seed)
    T, B, D, I, H = 4, 3, 2, 5, 6

    def step(pre, state):
        return torch.tanh(pre[1]) * pre[0] + state[0]

    KEYS = ["lstm", "gru", "peephole_lstm", "gru_reset_before"]
    OWN = [
        fused_rnn.Cell("alone", step, ("e", "n"), stages=()),
        fused_rnn.Cell("late", step, ("e", "n"), stages=(fused_rnn.Stage(("n",)),)),
    ]

    def right(cell):
        weights = [torch.randn(D, (e - b) * H, n * H)
                   for (b, e), n in zip(cell.spans, cell.source_sizes)]
        bias = torch.randn(D, len(cell.bias_gates), H) if cell.bias_gates else None
        states = [torch.randn(D, B, H) for _ in cell.states]
        params = [torch.randn(D, H) for _ in cell.params]
        x = torch.randn(T, B, D, len(cell.x_gates), H)
        sequences = [torch.randn(T, B, D, H) for _ in cell.states]
        pre = torch.randn(T, B, D, len(cell.gates), H)
        width = D * len(cell.x_gates) * H
        head = (torch.randn(T, B, I), torch.randn(width, I), torch.randn(width))
        given = [0, 2 * len(cell.states)]
        cotangents = [torch.randn(T, B, D, H), torch.randn(D, B, H)]
        tail = [states, params, []]
        return {
            "forward": [cell.key, x, weights, bias, *tail, False, True, backend],
            "backward": [
                cell.key, weights, *tail, sequences, pre, cotangents, given, False, backend
            ],
            "aten": [
                rng.choice(["lstm", "gru", "rnn_tanh"]), torch.randn(T, B, I),
                [torch.randn(1, B, H)] * 2,
                [torch.randn(*size) for size in ((4 * H, I), (4 * H, H), (4 * H,), (4 * H,))],
                True, 1, False,
            ],
            "forward_without_gates": [cell.key, *head, weights, bias, *tail, False, backend],
        }

    def other(tensor):
        kind = rng.randrange(9)
        if kind == 0: return tensor[..., :-1]
        if kind == 1: return tensor.double()
        if kind == 2: return tensor.int()
        if kind == 3: return tensor.flatten()
        if kind == 4: return tensor.unsqueeze(0)
        if kind == 5: return tensor.transpose(0, -1)
        if kind == 6: return tensor[:0]
        if kind == 7: return torch.empty(0)
        return tensor.repeat(*[2] * tensor.dim())

    def changed(value):
        if isinstance(value, torch.Tensor): return other(value)
        if isinstance(value, bool): return not value
        if isinstance(value, str): return rng.choice(["", "lstm", "gru", "nobody", "lstm#7"])
        if isinstance(value, list):
            if value and isinstance(value[0], int):
                lists = [], [0], [5, 0], [0, 0], [-1, 2], [0, 99], [0, 1, 2], [2**40, 3]
                return rng.choice(lists)
            kind = rng.randrange(4)
            if kind == 0: return value[:-1]
            if kind == 1: return [*value, torch.randn(D, B, H)]
            if kind == 2: return value[::-1]
            return [other(v) if rng.random() < 0.7 else v for v in value]
        return torch.randn(2, 3)

    errors = 0
    for _ in range(150):
        cell = rng.choice([*map(cells.get, KEYS), *OWN])
        name, arguments = rng.choice(list(right(cell).items()))
        for _ in range(rng.choice([1, 1, 2])):
            place = rng.randrange(len(arguments))
            arguments[place] = changed(arguments[place])
        try:
            out = getattr(torch.ops.fused_rnn, name)(*arguments)
        except (RuntimeError, ValueError) as error:
            errors += 1
            assert str(error)
        else:
            assert isinstance(out, list)
    print("errors", errors)
"""


@pytest.mark.parametrize("backend", ["cpp", "sequence", "auto"])
def test_random_arguments(backend):
    code = textwrap.dedent(FUZZ)
    run = [sys.executable, "-X", "faulthandler", "-c", code, backend, "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_PERTURB_": "42"}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[1]) > 75


def _forward(**changes):
    arguments = {
        "cell": "lstm",
        "x": torch.zeros(T, B, 1, 4, H),
        "weights": [torch.zeros(1, 4 * H, H)],
        "bias": None,
        "states": [torch.zeros(1, B, H)] * 2,
        "params": [],
        "streams": [],
        "reverse": False,
        "save": True,
        "backend": "cpp",
    } | changes
    return torch.ops.fused_rnn.forward(*arguments.values())


WRONG = {
    "x": ({"x": torch.zeros(T, B, 4, H)}, "expected a tensor of 5 dims"),
    "gates": ({"x": torch.zeros(T, B, 1, 3, H)}, "x: expected .* with 4 gates"),
    "no steps": ({"x": torch.zeros(0, B, 1, 4, H)}, "at least one step"),
    "weights": ({"weights": [torch.zeros(1, H, H)]}, r"weights: expected shape \(1, 24, 6\)"),
    "too many": ({"weights": [torch.zeros(1, 24, 6)] * 2}, "weights: expected 1 tensors, got 2"),
    "states": ({"states": [torch.zeros(1, B, H), torch.zeros(1, 1, H)]}, r"states\[1\]: expected"),
    "bias": ({"bias": torch.zeros(1, 4, H)}, r"bias: expected shape \(1, 0, 6\)"),
    "params": ({"params": [torch.zeros(1, H)]}, "params: expected 0 tensors, got 1"),
    "weights of no stage": (
        {
            "cell": ours.GATED_AVERAGE.key,
            "x": torch.zeros(T, B, 1, 2, H),
            "states": [torch.zeros(1, B, H)],
        },
        "weights: expected 0 tensors, got 1",
    ),
    "dtype": ({"states": [torch.zeros(1, B, H).double()] * 2}, r"states\[0\]: expected dtype"),
    "dtype of x": ({"x": torch.zeros(T, B, 1, 4, H).long()}, "dtype: expected one of"),
    "device": ({"weights": [torch.zeros(1, 24, 6).to_sparse()]}, "weights: expected a dense"),
    "backend": ({"backend": "cuda"}, "backend: expected one of auto, triton, .*, got 'cuda'"),
    "cell": ({"cell": "nobody"}, "cell: expected the key of a cell, got 'nobody'"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_the_message_names_the_argument(wrong):
    _forward()
    changes, message = WRONG[wrong]
    with pytest.raises((RuntimeError, ValueError), match=message):
        _forward(**changes)


def test_an_empty_tensor_is_no_missing_one():
    for backend in ("cpp", "sequence"):
        out = _forward(bias=torch.zeros(1, 0, H), backend=backend)
        assert [tuple(t.shape) for t in out[:2]] == [(T, B, 1, H)] * 2


SCAN = {
    "cell": ({"cell": None}, "cell: expected a Cell or the name of one, got None"),
    "x_part": ({"x_part": None}, "x_part: expected a tensor, got NoneType"),
    "weights": ({"recurrent_weights": None}, "recurrent_weights: expected a sequence of tensors"),
    "states": ({"states": [None, None]}, "states: expected a tensor, got NoneType"),
    "params": ({"params": torch.zeros(3, H)}, "params: expected a sequence of tensors, got Tensor"),
    "streams": ({"streams": "x"}, "streams: expected a sequence of tensors, got str"),
    "bias": ({"bias": [1.0]}, "bias: expected a tensor, got list"),
    "reverse": ({"reverse": "no"}, "reverse: expected bool, got str"),
    "integers": ({"x_part": torch.zeros(T, B, 4 * H).long()}, "x_part: expected one of the dtypes"),
}


@pytest.mark.parametrize("wrong", SCAN)
def test_scan_names_the_argument(wrong):
    right = {
        "cell": "lstm",
        "x_part": torch.zeros(T, B, 4 * H),
        "recurrent_weights": torch.zeros(4 * H, H),
        "states": [torch.zeros(B, H)] * 2,
    }
    fused_rnn.scan(**right)
    changes, message = SCAN[wrong]
    with pytest.raises((TypeError, ValueError), match=message):
        fused_rnn.scan(**right | changes)


def test_scan_of_a_cell_without_stages_takes_no_weights():
    x, h = torch.zeros(T, B, 2 * H), torch.zeros(B, H)
    fused_rnn.scan(ours.GATED_AVERAGE, x, (), h)
    with pytest.raises(RuntimeError, match="recurrent_weights: .* expected 0 tensors, got 1"):
        fused_rnn.scan(ours.GATED_AVERAGE, x, torch.zeros(H, H), h)
    with pytest.raises(RuntimeError, match=r"bias: expected shape \(0,\)"):
        fused_rnn.scan(ours.GATED_AVERAGE, x, (), h, bias=torch.zeros(H))


def test_cells_and_sizes_of_another_type():
    with pytest.raises(TypeError, match="cell: expected a Cell or the name of one, got 3"):
        fused_rnn.check_kernels(3, device="cpu")
    with pytest.raises(ValueError, match="cell: expected one of rnn_tanh, .*, got 3"):
        cells.get(3)
    with pytest.raises(ValueError, match="T: expected a number greater than zero, got 0"):
        fused_rnn.explain("lstm", T=0, B=1, H=1)
    with pytest.raises(TypeError, match="H: expected int, got float"):
        fused_rnn.explain("lstm", T=1, B=1, H=1.5)
