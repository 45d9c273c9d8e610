"""Lengths, resets, packed sequences, all states and projections of the modules."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fused_rnn
import tests.support.cells as ours
from fused_rnn import Recurrent
from tests.nn.test_modules import EVERY, _states
from tests.support.problems import run_module
from tests.support.tolerances import assert_equal_in_float64

T, B = 6, 4
LENGTHS = torch.tensor([3, 6, 0, 1])
every_module = pytest.mark.parametrize("module", EVERY.values(), ids=EVERY)
backends = pytest.mark.parametrize("backend", ["auto", "sequence", "reference"])


def _resets():
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[0, 0] = reset[2, 0] = reset[5, 0] = reset[1, 1] = reset[4, 1] = reset[5, 1] = True
    reset[0, 3] = reset[1, 3] = True
    return reset


def _every_row_alone(made, x, hx, lengths, reset):
    """The oracle: each segment of each row is a sequence of its own, layer by layer."""
    hx = (hx,) if isinstance(hx, torch.Tensor) else hx
    directions = 2 if made.bidirectional else 1
    finals = [[] for _ in hx]
    for layer in range(made.num_layers):
        names = list(made._shapes(1))
        one = Recurrent(
            made.cell,
            x.shape[-1],
            made.hidden_size,
            bidirectional=made.bidirectional,
            proj_size=made.proj_size,
            dtype=x.dtype,
            backend="reference",
        )
        given = {
            f"{name}_l0{side}": made.get_parameter(f"{name}_l{layer}{side}")
            for name in names
            for side in ("", "_reverse")[:directions]
        }
        start = [s[layer * directions : (layer + 1) * directions] for s in hx]
        rows, ends = [], []
        for b in range(x.shape[1]):
            length = len(x) if lengths is None else int(lengths[b])
            h0 = tuple(s[:, b] for s in start)
            cuts = [] if reset is None else [t for t in range(1, length) if reset[t, b]]
            parts, last, first = [], h0, h0
            for k, (begin, end) in enumerate(
                zip([0, *cuts], [*cuts, length], strict=True) if length else ()
            ):
                arguments = (x[begin:end, b], h0 if len(h0) > 1 else h0[0])
                y, h = torch.func.functional_call(one, given, arguments)
                last = (h,) if isinstance(h, torch.Tensor) else h
                first = last if k == 0 else first
                parts.append(y)
            parts.append(x.new_zeros(len(x) - length, directions * made._width(0)))
            rows.append(torch.cat(parts))
            ends.append(
                [
                    torch.stack([(a, z)[d][d] for d in range(directions)])
                    for a, z in zip(last, first, strict=True)
                ]
            )
        x = torch.stack(rows, 1)
        for i in range(len(hx)):
            finals[i].append(torch.stack([end[i] for end in ends], 1))
    finals = tuple(torch.cat(group) for group in finals)
    return x, finals if len(finals) > 1 else finals[0]


class _With(nn.Module):
    """A module called with options, or the oracle."""

    def __init__(self, module, run):
        super().__init__()
        self.module, self.run = module, run

    def forward(self, x, hx):
        return self.run(self.module, x, hx)


@pytest.mark.parametrize("which", ["lengths", "reset", "both"])
@every_module
def test_rows_as_if_alone(module, which):
    both = module is not EVERY["mut1"]
    made = module(4, 4, 2, bidirectional=both, dtype=torch.float64)
    lengths = None if which == "reset" else LENGTHS
    reset = None if which == "lengths" else _resets()
    torch.manual_seed(1)
    x = torch.randn(T, B, 4)
    hx = _states(made, len(made.cell.states), x)
    want = run_module(_With(made, lambda m, x, h: _every_row_alone(m, x, h, lengths, reset)), x, hx)
    for made.backend in ("auto", "sequence", "reference"):
        run = _With(made, lambda m, x, h: m(x, h, lengths=lengths, reset=reset))
        assert_equal_in_float64(run_module(run, x, hx), want, made.backend)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("which", ["lengths", "reset", "both"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before", "peephole_lstm"])
def test_kernels_with_rows_as_if_alone(cell, which):
    made = Recurrent(cell, 3, 5, bidirectional=True, dtype=torch.float64)
    lengths = None if which == "reset" else LENGTHS
    reset = None if which == "lengths" else _resets()
    x = torch.randn(T, B, 3)
    hx = _states(made, len(made.cell.states), x)
    results = []
    for made.backend in ("reference", "triton"):
        run = _With(made, lambda m, x, h: m(x, h, lengths=lengths, reset=reset))
        results.append(run_module(run, x, hx))
    assert_equal_in_float64(*reversed(results))


@backends
def test_zero_states_restart_at_zero(backend):
    made = fused_rnn.LSTM(3, 4, 2, bidirectional=True, dtype=torch.float64, backend=backend)
    x, reset = torch.randn(T, B, 3), _resets()
    zeros = (torch.zeros(4, B, 4),) * 2
    want = run_module(_With(made, lambda m, x, h: m(x, h, lengths=LENGTHS, reset=reset)), x, zeros)
    got = run_module(_With(made, lambda m, x, h: m(x, h, lengths=LENGTHS, reset=reset)), x)
    assert_equal_in_float64(got, {name: want[name] for name in got})


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("backend", ["sequence", "reference", "triton"])
def test_what_lies_beyond_a_row_does_nothing(backend):
    made = fused_rnn.LSTM(3, 4, 2, bidirectional=True, backend=backend)
    x = torch.randn(T, B, 3)
    beyond = torch.arange(T)[:, None] >= LENGTHS
    spoiled = x.clone()
    spoiled[beyond] = torch.nan
    run = _With(made, lambda m, x, h: m(x, h, lengths=LENGTHS))
    want, got = run_module(run, x), run_module(run, spoiled)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert not got["output"][beyond].any()
    assert not got["dx"][beyond].any()


@pytest.mark.parametrize(
    "dtype",
    ["int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"],
)
def test_lengths_of_any_integer_dtype_and_beyond_the_ends(dtype):
    made = fused_rnn.GRU(3, 4, batch_first=True)
    x = torch.randn(3, T, 3)
    got = made(x, lengths=torch.tensor([2, 200, 0], dtype=getattr(torch, dtype)))
    want = made(x, lengths=torch.tensor([2, T, 0]))
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_unbatched_and_batch_first_resets():
    made = fused_rnn.LSTM(3, 4, bidirectional=True, batch_first=True)
    x, reset = torch.randn(2, T, 3), _resets()[:, :2].t()
    both = made(x, reset=reset)[0]
    for b in range(2):
        torch.testing.assert_close(made(x[b], reset=reset[b])[0], both[b])


@pytest.mark.parametrize("reset", [None, _resets()], ids=["plain", "reset"])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "lengths"])
@backends
def test_all_states(backend, lengths, reset):
    made = fused_rnn.LSTM(3, 4, 2, dtype=torch.float64, backend=backend)
    x = torch.randn(T, B, 3, dtype=torch.float64)
    (h, c), (h_n, c_n) = made(x, lengths=lengths, reset=reset, return_states=True)
    assert torch.equal(h, made(x, lengths=lengths, reset=reset)[0]) or backend == "auto"
    last = torch.full((B,), T) if lengths is None else lengths
    for b in range(B):
        for t in range(int(last[b])):
            until = torch.full((B,), t + 1)
            want = made(x, lengths=until, reset=reset)[1][1][-1, b]
            torch.testing.assert_close(c[t, b], want, rtol=1e-12, atol=1e-12)
        assert not c[int(last[b]) :, b].any()
    some = last > 0
    assert torch.equal(c[last[some] - 1, some], c_n[-1, some])
    assert torch.equal(h[last[some] - 1, some], h_n[-1, some])


TORCH = [(nn.LSTM, fused_rnn.LSTM, 2), (nn.GRU, fused_rnn.GRU, 1), (nn.RNN, fused_rnn.RNN, 1)]
kinds = pytest.mark.parametrize(("theirs", "mine", "count"), TORCH)


@pytest.mark.parametrize("with_hx", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("lengths", [(3, 6, 2, 1), (6, 6, 5, 1)], ids=["unsorted", "sorted"])
@backends
@kinds
def test_packed_sequences(theirs, mine, count, lengths, backend, with_hx):
    options = {"num_layers": 3, "bidirectional": True, "dropout": 0.4, "dtype": torch.float64}
    theirs, mine = theirs(3, 4, **options), mine(3, 4, **options, backend=backend)
    mine.load_state_dict(theirs.state_dict())
    is_sorted = lengths == tuple(sorted(lengths, reverse=True))

    def run(module, x, hx):
        torch.manual_seed(3)
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=is_sorted)
        output, hn = module(packed, hx)
        assert isinstance(output, PackedSequence)
        assert torch.equal(output.batch_sizes, packed.batch_sizes)
        assert output.sorted_indices is packed.sorted_indices
        assert output.unsorted_indices is packed.unsorted_indices
        return output.data, hn

    x = torch.randn(T, B, 3)
    hx = _states(theirs, count, x) if with_hx else None
    results = [run_module(_With(module, run), x, hx) for module in (mine, theirs)]
    got, want = ({n.replace("dmodule.", "d"): t for n, t in r.items()} for r in results)
    assert_equal_in_float64(got, want)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@backends
def test_projection(backend, packed, bidirectional):
    options = {
        "num_layers": 2,
        "proj_size": 2,
        "bidirectional": bidirectional,
        "dtype": torch.float64,
        "dropout": 0.3,
    }
    theirs, mine = nn.LSTM(3, 5, **options), fused_rnn.LSTM(3, 5, **options, backend=backend)
    assert [(n, p.shape) for n, p in mine.named_parameters()] == [
        (n, p.shape) for n, p in theirs.named_parameters()
    ]
    assert str(mine).replace(f', backend="{backend}"', "") == str(theirs)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, 3)
    rows = 4 if bidirectional else 2
    for hx in (None, (torch.randn(rows, B, 2), torch.randn(rows, B, 5))):
        results = []
        for module in (mine, theirs):

            def run(m, x, h):
                torch.manual_seed(3)
                if packed:
                    x = pack_padded_sequence(x, torch.tensor([5, 1, 6, 2]), enforce_sorted=False)
                output, hn = m(x, h)
                return output.data if packed else output, hn

            results.append(run_module(_With(module, run), x, hx))
        assert_equal_in_float64(*results)


@pytest.mark.parametrize("which", ["lengths", "reset", "both"])
@backends
def test_projection_with_rows_as_if_alone(backend, which):
    made = fused_rnn.PeepholeLSTM(
        3, 5, 2, proj_size=2, bidirectional=True, dtype=torch.float64, backend=backend
    )
    lengths = None if which == "reset" else LENGTHS
    reset = None if which == "lengths" else _resets()
    x = torch.randn(T, B, 3)
    hx = (torch.randn(4, B, 2), torch.randn(4, B, 5))
    run = _With(made, lambda m, x, h: m(x, h, lengths=lengths, reset=reset))
    want = _With(made, lambda m, x, h: _every_row_alone(m, x, h, lengths, reset))
    assert_equal_in_float64(run_module(run, x, hx), run_module(want, x, hx))


@every_module
def test_derivatives_with_lengths_and_resets(module):
    """Of every input, state and parameter, against finite differences; to the second order."""
    made = module(2, 2, bidirectional=module is not EVERY["mut1"], dtype=torch.float64)
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    states = _listed(_states(made, len(made.cell.states), x))
    hx = [state.double().requires_grad_() for state in states]
    names, parameters = zip(*made.named_parameters(), strict=True)
    rows = {"lengths": torch.tensor([4, 0, 2]), "reset": _resets()[:4, :3]}

    def run(x, *tensors):
        hx, weights = tensors[: -len(names)], tensors[-len(names) :]
        weights = dict(zip(names, weights, strict=True))
        hx = hx[0] if len(hx) == 1 else hx
        output, finals = functional_call(made, weights, (x, hx), rows)
        return output, *_listed(finals)

    assert torch.autograd.gradcheck(run, (x, *hx, *parameters), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (x, *hx, *parameters), fast_mode=True)


def _listed(states):
    return [states] if isinstance(states, torch.Tensor) else list(states)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, "lengths: expected a tensor of integers, got list", {"lengths": [1, 2]}),
        (TypeError, "integers, got torch.float32", {"lengths": torch.ones(2)}),
        (RuntimeError, r"lengths: expected shape \(2,\), got", {"lengths": torch.tensor([1])}),
        (
            RuntimeError,
            "lengths: expected device cpu, got meta",
            {"lengths": torch.ones(2, dtype=torch.int64, device="meta")},
        ),
        (TypeError, "reset: expected a tensor of bool, got", {"reset": torch.ones(5, 2)}),
        (
            RuntimeError,
            r"reset: expected shape \(5, 2\), got \(2, 5\)",
            {"reset": torch.ones(2, 5, dtype=torch.bool)},
        ),
    ],
)
def test_bad_rows(error, message, options):
    with pytest.raises(error, match=message):
        fused_rnn.LSTM(3, 4)(torch.ones(5, 2, 3), **options)


def test_what_does_not_go_together():
    x, lengths = torch.ones(5, 2, 3), torch.tensor([1, 2])
    with pytest.raises(RuntimeError, match="without one"):
        fused_rnn.LSTM(3, 4)(x[:, 0], lengths=lengths[0])
    with pytest.raises(RuntimeError, match="lengths, reset: expected none with a Packed"):
        fused_rnn.LSTM(3, 4)(pack_padded_sequence(x, [5, 4]), lengths=lengths)
    for options in ({"lengths": lengths}, {"return_states": True}):
        with pytest.raises(RuntimeError, match=f'"aten" cannot run {next(iter(options))}'):
            fused_rnn.LSTM(3, 4, backend="aten")(x, **options)


def test_time_of_a_row_is_exact_in_bfloat16():
    """A clock counts the steps of its own segment, beyond the whole numbers of bfloat16."""
    made = Recurrent(ours.CLOCKWORK_RNN, 1, 2, dtype=torch.float64)
    with torch.no_grad():
        made.period_l0.copy_(torch.tensor([7.0, 11.0]))
    x = torch.randn(700, 1, 1, dtype=torch.float64).bfloat16()
    reset = torch.zeros(700, 1, dtype=torch.bool)
    reset[3] = True
    made = made.bfloat16()
    got = made(x, reset=reset)[0][3:]
    torch.testing.assert_close(got, made(x[3:])[0], rtol=0, atol=0)


@pytest.mark.parametrize("recompute", [False, True])
def test_compiled(recompute):
    torch.compiler.reset()  # what other tests compiled counts towards the limit of recompilations
    module = fused_rnn.LSTM(3, 4, recompute=recompute, dtype=torch.float64)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, 3, 3, dtype=torch.float64)
    lengths, reset = torch.tensor([2, 6, 3]), torch.rand(6, 3) < 0.4
    for asked in ({"lengths": lengths}, {"lengths": lengths, "reset": reset}):
        results = []
        for run in (compiled, module):
            leaf = x.clone().requires_grad_()
            output, (h, c) = run(leaf, **asked)
            (dx,) = torch.autograd.grad(output.square().sum() + c.sum(), leaf)
            results.append({"output": output, "h": h, "c": c, "dx": dx})
        assert_equal_in_float64(*results)
